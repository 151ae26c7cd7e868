"""What stands in the first line of a request: its method and its address."""

from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem


class RequestLine:
    """Answers HEAD as GET, and refuses an address that is not UTF-8.

    Of such an address the server makes one with replacement characters, which may be another subject's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not _is_utf8(scope.get("raw_path") or b"", scope["query_string"]):
            await problem("http", "the address is not UTF-8, percent-encoded")(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self._answer_head(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            scope["method"] = "HEAD"  # by which the server drops the body
            await send(message)

        scope["method"] = "GET"
        try:
            await self._app(scope, receive, answer)
        finally:
            scope["method"] = "HEAD"


def _is_utf8(*parts: bytes) -> bool:
    try:
        for part in parts:
            unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        return False
    return True
