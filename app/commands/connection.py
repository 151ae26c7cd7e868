"""Connections that take too long over their headers, or send too many of them, are cut off.

uvicorn bounds neither: a caller could hold connections open with a byte now and then, or fill the memory with a header
that never ends, before any of the service's own limits is reached.
"""

import asyncio
import json
from functools import cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.problems import MEDIA_TYPE, TYPE_PREFIX
from app.settings import Settings


class HeadersTooLarge(Exception):
    """The address and the headers of a request have too many bytes."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a time and a number of bytes for the headers of each request."""

    header_timeout: float
    max_header_bytes: int

    _timer: asyncio.TimerHandle | None = None
    _in_headers = False
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock with the connection: who connects has something to say."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte behind the last request, if it does not run yet."""
        if self._timer is None and not self._in_headers and self._is_idle():
            self._await_headers()
        super().data_received(data)
        # A header that does not end is not seen by `on_header`.
        if self._in_headers and not self.transport.is_closing():
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
        self._in_headers = False
        super().on_headers_complete()

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


def guarded_protocol(*, header_timeout: float, max_header_bytes: int) -> type[GuardedProtocol]:
    """The protocol for `uvicorn.run(http=…)`, which makes one object a connection."""
    limits: dict[str, Any] = {"header_timeout": header_timeout, "max_header_bytes": max_header_bytes}
    return type("LimitedProtocol", (GuardedProtocol,), limits)


class ProtocolOfSettings(GuardedProtocol):
    """The same with the limits of the environment's settings: one of several processes finds them for itself."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.header_timeout, self.max_header_bytes = _limits()


@cache
def _limits() -> tuple[float, int]:
    settings = Settings()
    return settings.header_timeout, settings.max_header_bytes
