"""Which methods an address answers."""

from starlette.requests import Request
from starlette.routing import Match

_METHODS = ("DELETE", "GET", "PATCH", "POST")


def allowed_methods(request: Request) -> str:
    """The methods that the address of a request answers, as `Allow` lists them; HEAD goes where GET does."""
    routes = request.app.routes
    found = {
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    }
    return ", ".join(sorted(found | ({"HEAD"} if "GET" in found else set())))
