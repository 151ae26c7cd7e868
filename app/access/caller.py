"""Who makes the present call."""

import getpass
from contextvars import ContextVar
from dataclasses import dataclass

from app.access.errors import Forbidden
from app.access.keys import ALL_SCOPES, Scope
from app.gallery.names import normalise_gallery_name


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what they may do.

    Args:
        by: id of the key; `open` where no key is asked for; `cli:` and the account for the command line; `service` for
            what the service does of itself.
        scopes: what the caller may do.
        galleries: the only galleries for the caller; None: all.
        address: address of the caller; None for the command line.
        request_id: id of the request.
    """

    by: str
    scopes: frozenset[Scope] = ALL_SCOPES
    galleries: frozenset[str] | None = None
    address: str | None = None
    request_id: str | None = None

    def require(self, scope: Scope, *, to: str | None = None) -> None:
        """Refuse what the key is not for.

        Args:
            scope: what is needed.
            to: what it is needed for; None: the call as a whole.

        Raises:
            Forbidden: the key has not that scope.
        """
        if scope not in self.scopes:
            raise Forbidden(f"{to or 'this call'} needs a key with the scope `{scope}`")

    def may_use(self, gallery: str) -> bool:
        """Whether the key is for that gallery, by its normalised name."""
        return self.galleries is None or gallery in self.galleries

    def require_gallery(self, gallery: str) -> None:
        """Refuse a gallery that the key is not for, whether it exists or not.

        Raises:
            Forbidden: the key is limited to other galleries.
            InvalidInput: that is no name of a gallery.
        """
        if self.galleries is not None and not self.may_use(normalise_gallery_name(gallery)):
            raise Forbidden("this key is for other galleries", part="gallery")


current_caller: ContextVar[Caller | None] = ContextVar("current_caller", default=None)


def present_caller() -> Caller:
    """The caller of the request that runs here; outside of one, the account that runs the command."""
    caller = current_caller.get()
    if caller is not None:
        return caller
    try:
        account = getpass.getuser()
    except (OSError, KeyError):  # a container's number without a name
        account = "unnamed"
    return Caller(f"cli:{account}")
