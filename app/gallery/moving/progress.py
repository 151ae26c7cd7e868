"""How far a long work is, told to whoever shows it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int], None]
"""Told how much has been done since it was told last."""

Shown = Callable[[str, int], AbstractContextManager[Progress]]
"""Shows a piece of work as long as it goes on: a word or two for it, and how much there is to do."""


@contextmanager
def not_shown(_what: str, _total: int) -> Iterator[Progress]:
    """Show nothing."""
    yield lambda _: None
