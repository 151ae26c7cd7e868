"""Authentication: who calls is known before a byte of the body is read."""

import ipaddress
from collections.abc import Collection
from urllib.parse import parse_qsl, urlsplit

import structlog
from anyio import CapacityLimiter, Semaphore, move_on_after, to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.caller import Caller, current_caller
from app.access.errors import Forbidden, KeyInAddress
from app.access.gate import Gate
from app.access.keys import KEY_FORM
from app.api.middleware import REQUEST_ID
from app.api.problems import known
from app.gallery.deadline import within
from app.gallery.errors import Busy
from model.errors import FacegalleryError

WITHOUT_KEY = frozenset({"/healthz", "/readyz"})
_AT_ONCE = 8  # calls that the gate looks at; photos that wait for a worker take no threads from them
_KEY_NAMES = frozenset({"access_token", "api-key", "api_key", "apikey", "authorization", "bearer", "token"})
_PROXY_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


class Authentication:
    """Admits callers through a gate, whatever the address they ask for; only health checks go past it.

    A service that asks for no key listens to this machine's programs, not to web pages that its browser shows and not
    to a proxy that nobody meant: see `_refuse_others`.

    Args:
        app: what is guarded.
        gate: decides.
        origins: whose pages may call.
        behind_proxy: whether the operator chose to be open behind a proxy.
        timeout: seconds that a call may wait for its turn at the gate, and the gate for the database.
    """

    def __init__(
        self, app: ASGIApp, *, gate: Gate, origins: Collection[str], behind_proxy: bool, timeout: float
    ) -> None:
        self._app = app
        self._gate = gate
        self._origins = frozenset(origins)
        self._behind_proxy = behind_proxy
        self._timeout = timeout
        self._turns: Semaphore | None = None  # made in the loop that uses it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in WITHOUT_KEY:
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._admit(scope)
        except FacegalleryError as error:
            answer = known(error)
            answer.headers["Connection"] = "close"  # the body behind the headers is not read
            await answer(scope, receive, send)
            return
        structlog.contextvars.bind_contextvars(by=caller.by)
        token = current_caller.set(caller)
        try:
            await self._app(scope, receive, send)
        finally:
            current_caller.reset(token)

    async def _admit(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        _refuse_key_in_address(scope["path"], scope["query_string"].decode("latin-1"))
        if self._gate.is_open:
            self._refuse_others(scope, headers)
        given = headers.getlist("authorization")
        authorization = given[0] if len(given) == 1 else None  # of two, nobody knows which a proxy looked at
        address = scope["client"][0] if scope.get("client") else "local"

        def admit() -> Caller:
            with within(self._timeout):
                return self._gate.admit(authorization, address=address, request_id=scope.get(REQUEST_ID, ""))

        if not self._gate.waits:
            return admit()
        if self._turns is None:
            self._turns = Semaphore(_AT_ONCE)
        with move_on_after(self._timeout) as waiting:
            await self._turns.acquire()
        if waiting.cancelled_caught:
            raise Busy("too many calls wait for the database; try again")
        try:
            return await to_thread.run_sync(admit, limiter=CapacityLimiter(1))
        finally:
            self._turns.release()

    def _refuse_others(self, scope: Scope, headers: Headers) -> None:
        """Refuse what reaches an open service otherwise than from a program on this machine.

        Raises:
            Forbidden: the connection came in on another address than a loopback one (a server that was started around
                the settings); a proxy handed the call on; the name in `Host` is of another machine (a page whose name
                was bound to 127.0.0.1); or the page of another origin sent a form.
        """
        server = scope.get("server")
        if server and not _stays_here(server[0]):
            raise Forbidden("without keys the service answers on a loopback address only")
        if not self._behind_proxy and any(name in headers for name in _PROXY_HEADERS):
            raise Forbidden(
                "a proxy handed this call to a service that asks for no key; set FACEGALLERY_AUTHENTICATION to keys, "
                "or to open if the proxy asks for them"
            )
        host = headers.get("host", "")
        if not self._behind_proxy and not _stays_here(_host_of(host)):
            raise Forbidden("without keys the service answers to localhost and 127.0.0.1 only", part="Host")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and origin.partition("://")[2] != host:
            raise Forbidden("pages of other origins may not call a service that asks for no key", part="Origin")


def _stays_here(host: str) -> bool:
    """Whether a host is this machine, as far as its name says: a loopback address, or a name without a dot."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "." not in host.removesuffix(".localhost")


def _host_of(host: str) -> str:
    """The name in a header `Host`, without the port; of what is no host a name that is not this machine."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # a bracket without its twin
        return "not.a.host"


def _refuse_key_in_address(path: str, query: str) -> None:
    fields = parse_qsl(query, keep_blank_values=True)
    if any(name.lower() in _KEY_NAMES for name, _ in fields) or any(
        KEY_FORM.search(text) for text in (path, *(text for field in fields for text in field))
    ):
        raise KeyInAddress(
            "addresses end up in logs and histories: a key that was sent in one should be revoked; send it in the "
            "header `Authorization: Bearer`"
        )
