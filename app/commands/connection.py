"""Connections that take too long over their headers, send too many of them, or do not take their answer are cut off.

uvicorn bounds none of it: a caller could hold connections open with a byte now and then, fill the memory with a header
that never ends, in front of a body or behind it, or ask and never read, before any of the service's own limits is
reached.
"""

import asyncio
import json
from functools import cache
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.problems import MEDIA_TYPE, TYPE_PREFIX
from app.settings import Settings

_log = structlog.get_logger()


class HeadersTooLarge(Exception):
    """The address and the headers of a request have too many bytes."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a time and a number of bytes for the headers of each request, and a pace for answers.

    Args:
        header_timeout: seconds for the headers.
        max_header_bytes: bytes of address and headers; of what stands between and behind the chunks of a body, too.
        body_timeout: seconds after which an answer that the caller does not take at `min_body_rate` is given up.
        min_body_rate: bytes a second.
    """

    header_timeout: float
    max_header_bytes: int
    body_timeout: float
    min_body_rate: int

    _timer: asyncio.TimerHandle | None = None
    _in_headers = False
    _in_body = False
    _got_body = False
    _header_bytes = 0
    _answer_timer: asyncio.TimerHandle | None = None
    _answers = 0
    _running: Any = None  # the request that is being answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock with the connection: who connects has something to say."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop()
        if self._answer_timer is not None:
            self._answer_timer.cancel()
        self._give_up_answers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte behind the last request, if it does not run yet."""
        if self._timer is None and not self._in_headers and self._is_idle():
            self._await_headers()
        self._got_body = False
        super().data_received(data)
        # A header that does not end is not seen by `on_header`, nor is one behind a body in chunks.
        if (self._in_headers or (self._in_body and not self._got_body)) and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > self.max_header_bytes:
                self._refuse(
                    431, "Headers too large", f"address and headers have at most {self.max_header_bytes} bytes"
                )

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers, self._header_bytes, self._fields = True, 0, 0

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are here: the body has limits of its own."""
        self._stop()
        self._in_headers, self._in_body, self._header_bytes = False, True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._got_body, self._header_bytes = True, 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is here."""
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The whole answer is handed to the system, or waits for the caller to take what is before it."""
        self._answers += 1
        super().on_response_complete()
        self._watch_answer()

    def pause_writing(self) -> None:
        """The caller does not take its answer as fast as it is made."""
        super().pause_writing()
        self._watch_answer()

    def send_400_response(self, _msg: str) -> None:
        """What is no HTTP gets a problem document, too."""
        self._stop()
        if self._fields > self.max_header_bytes:
            self._refuse(431, "Headers too large", f"address and headers have at most {self.max_header_bytes} bytes")
        else:
            self._refuse(400, "Bad Request", "that is not HTTP")

    _fields = 0

    def _count(self, length: int) -> None:
        self._fields += length
        if self._fields > self.max_header_bytes:
            raise HeadersTooLarge  # comes out of the parser as an error of its own, see send_400_response

    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _await_headers(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up_answers(self) -> None:
        """Tell the application that nobody listens; uvicorn tells the request that came last, not the one at work."""
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True

    def _watch_answer(self) -> None:
        if self._answer_timer is None and (unsent := self.transport.get_write_buffer_size()):
            self._answer_timer = self.loop.call_later(self.body_timeout, self._check_answer, unsent, self._answers)

    def _check_answer(self, before: int, answers: int) -> None:
        self._answer_timer = None
        unsent = self.transport.get_write_buffer_size()
        taken = before - unsent if answers == self._answers else before  # who asks again has taken what was there
        if unsent and taken < min(before, self.min_body_rate * self.body_timeout):
            _log.info("answer.not_taken", unsent=unsent)
            self._give_up_answers()
            self.transport.abort()
        else:
            self._watch_answer()

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(408, "Request Timeout", f"the headers did not arrive within {self.header_timeout:g} s")

    def _refuse(self, status: int, title: str, detail: str) -> None:
        self._stop()
        body = json.dumps({"type": f"{TYPE_PREFIX}http", "title": title, "status": status, "detail": detail}).encode()
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\nX-Content-Type-Options: nosniff\r\n\r\n"
        )
        if self._is_idle():  # never into the middle of another answer
            self.transport.write(head.encode() + body)
        self.transport.close()


def guarded_protocol(settings: Settings) -> type[GuardedProtocol]:
    """The protocol for `uvicorn.run(http=…)`, which makes one object a connection."""
    return type("LimitedProtocol", (GuardedProtocol,), _limits_of(settings))


class ProtocolOfSettings(GuardedProtocol):
    """The same with the limits of the environment's settings: one of several processes finds them for itself."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.__dict__.update(_limits())


@cache
def _limits() -> dict[str, Any]:
    return _limits_of(Settings())


def _limits_of(settings: Settings) -> dict[str, Any]:
    return {
        name: getattr(settings, name)
        for name in ("header_timeout", "max_header_bytes", "body_timeout", "min_body_rate")
    }
