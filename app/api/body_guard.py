"""BodyGuard: bodies that are too large, too slow, or too many at once are refused while they stream in."""

import asyncio
import time

from fastapi.responses import JSONResponse
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import body_too_slow, problem, request_too_large, too_much_at_once
from app.gallery.deadline import within

MAX_PLAIN_BYTES = 2**20
"""Bytes of a body that is not a form with files. JSON takes thirty times its length in memory once it is parsed, and
the whole process waits meanwhile; no call needs a tenth of this."""


# Compared as text: Python keeps every name of a charset that it is asked for, for good.
_CHARSETS = frozenset(
    {"ascii", "cp1252", "iso-8859-1", "iso-8859-15", "iso8859-1", "iso8859-15", "latin-1", "latin1", "us-ascii"}
    | {"utf-8", "utf-8-sig", "utf8", "windows-1252"}
)
_CHARSETS_SHOWN = "UTF-8, US-ASCII, ISO-8859-1, ISO-8859-15 or Windows-1252"


class BodyRefused(Exception):
    """The rest of the body is not read."""


class BodyGuard:
    """Refuses a body by its declared length at once, else while it streams in, and starts the clock for the work on it.

    Args:
        app: what is guarded.
        max_bytes: bytes of one body, at most `max_held_bytes`; of one that is no form with files at most
            `MAX_PLAIN_BYTES`.
        max_held_bytes: bytes of all bodies that are here at the same time; they stay until their requests are answered.
        late: seconds that a body may be late.
        min_rate: bytes a second by which it is late; only the time counts that the service waited for it.
        work: seconds for the work once the body is here.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, max_held_bytes: int, late: float, min_rate: float, work: float
    ) -> None:
        self._app = app
        self._max_bytes, self._max_held = min(max_bytes, max_held_bytes), max_held_bytes
        self._late, self._min_rate, self._work = late, min_rate, work
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            await problem("http", "Content-Length is not a number")(scope, receive, send)
            return
        kind = headers.get("content-type", "")
        with_files = kind.partition(";")[0].strip().lower() == "multipart/form-data"
        if with_files and _charset(kind) not in _CHARSETS:
            await problem("http", f"the charset of a form is {_CHARSETS_SHOWN}")(scope, receive, send)
            return
        max_bytes = self._max_bytes if with_files else min(self._max_bytes, MAX_PLAIN_BYTES)
        if int(declared[:20]) > max_bytes:
            await request_too_large(max_bytes)(scope, receive, send)
            return
        refusal: JSONResponse | None = None
        received, waited, complete, started = 0, 0.0, False, False

        async def guarded() -> Message:
            nonlocal refusal, received, waited, complete
            if complete:  # what comes is the caller's leaving, which may take as long as it likes
                return await receive()
            begin = time.monotonic()
            allowed = self._late + received / self._min_rate - waited
            try:
                async with asyncio.timeout(max(0.0, allowed)):
                    message = await receive()
            except TimeoutError:
                refusal = body_too_slow(self._late)
                raise BodyRefused from None
            waited += time.monotonic() - begin
            length = len(message.get("body", b""))
            received += length
            self._held += length
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            if received > max_bytes:
                refusal = request_too_large(max_bytes)
            elif self._held > self._max_held:
                refusal = too_much_at_once()
            if refusal is not None:
                raise BodyRefused
            if complete:
                deadline.restart()
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            # The route may turn the exception into an answer of its own; ours goes out instead.
            if refusal is not None and not started:
                raise BodyRefused
            started = True
            await send(message)

        try:
            with within(self._work) as deadline:
                await self._app(scope, guarded, watched)
        except BodyRefused:
            if refusal is not None and not started:
                await refusal(scope, receive, send)
        finally:
            self._held -= received


def _charset(content_type: str) -> str:
    """What the reader of forms will take for its charset: Python knows some that end in no text, or in none at all."""
    name = parse_options_header(content_type)[1].get(b"charset", b"utf-8").decode("latin-1")
    return name.lower().replace("_", "-")
