"""Several pieces of work, of which one that fails keeps no other waiting."""

from collections.abc import Callable, Iterable
from traceback import format_exception_only

from model.errors import FacegalleryError


def try_each(works: Iterable[Callable[[], object]]) -> None:
    """Do all of them, and raise what failed at the end.

    Raises:
        Exception: the first failure, with a note of the others; one that is no FacegalleryError, a bug, comes before
            all that are.
    """
    failures: list[Exception] = []
    for work in works:
        try:
            work()
        except Exception as error:
            failures.append(error)
    if not failures:
        return
    first = min(failures, key=lambda error: isinstance(error, FacegalleryError))
    if len(failures) > 1:
        reasons = dict.fromkeys(
            "".join(format_exception_only(error)).strip() for error in failures if error is not first
        )
        first.add_note(f"and {len(failures) - 1} more: " + "; ".join(reasons))
    raise first
