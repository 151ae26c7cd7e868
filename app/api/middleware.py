"""Around every request: an id, a measured time, a line in the log."""

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import LOGGED, internal
from app.telemetry import REQUEST_SECONDS

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
REQUEST_ID = "facegallery.request_id"  # where the scope of a request has its id
_GONE = 499  # as nginx logs a request whose caller left before the answer
_log = structlog.get_logger()


class RequestContext:
    """Gives each request an id (the caller's `X-Request-ID` if it is a plain one), logs and measures it."""

    def __init__(self, app: ASGIApp, *, extractor: str) -> None:
        self._app = app
        self._extractor = extractor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        scope[REQUEST_ID] = request_id
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["Facegallery-Extractor"] = self._extractor
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or _GONE
        except Exception as error:
            # Answered here and not by the framework, whose answer would not carry the request's id.
            _log.error("request.failed", exc_info=error)
            if status:
                raise
            await internal()(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - start
            # The route's pattern, never the path itself: a path can hold a subject.
            route = getattr(scope.get("route"), "path", "unmatched")
            REQUEST_SECONDS.labels(scope["method"], route, str(status)).observe(seconds)
            if route not in {"/healthz", "/readyz", "/metrics"}:
                log = _log.warning if status >= 500 else _log.info
                log(
                    "request",
                    method=scope["method"],
                    route=route,
                    status=status,
                    seconds=round(seconds, 4),
                    **scope.get(LOGGED, {}),
                )
