"""What a route needs: a scope, and a gallery that the key is for."""

import math
from typing import Annotated, Any

from fastapi import Depends, Security
from fastapi.security import HTTPBearer, SecurityScopes

from app.access.caller import Caller, current_caller
from app.access.errors import Unauthorized
from app.access.keys import Scope

_bearer = HTTPBearer(
    scheme_name="key",
    bearerFormat="fg_…",
    description="A key of `facegallery keys create`. The scopes of a call stand beside it.",
    auto_error=False,  # the key itself was looked at before the route was known
)


async def _caller() -> Caller:
    caller = current_caller.get()
    if caller is None:  # no middleware admitted anybody: closed, not open
        raise Unauthorized("send a key in the header `Authorization: Bearer fg_…`", given=False)
    return caller


CallerHere = Annotated[Caller, Depends(_caller)]


async def _authorised(caller: CallerHere, needed: SecurityScopes, _shown: Annotated[Any, Depends(_bearer)]) -> None:
    for scope in needed.scopes:
        caller.require(Scope(scope))


def needs(*scopes: Scope) -> Any:
    """A dependency of a route: the caller's key must have these scopes; without any, every valid key will do."""
    return Security(_authorised, scopes=[str(scope) for scope in scopes])


def require_scores(caller: Caller, *, threshold: float | None, all_candidates: bool = False) -> None:
    """Refuse what would let a caller measure distances: with free thresholds they are found by halving.

    Raises:
        Forbidden: the key has not the scope `scores`.
    """
    if threshold is not None:
        caller.require(Scope.SCORES, to="a threshold of one's own")
    if all_candidates:
        caller.require(Scope.SCORES, to="all_candidates")


def shown_distance(distance: float, caller: Caller) -> float:
    """The distance as that caller may see it: exact with the scope `scores`, else rounded down to two decimals.

    Exact distances let a caller climb, photo by photo, towards a face that is taken for somebody else's. What is
    accepted stays within its threshold, whatever the rounding.
    """
    return distance if Scope.SCORES in caller.scopes else math.floor(distance * 100) / 100
