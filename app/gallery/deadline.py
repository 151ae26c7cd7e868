"""Until when the work on the present request may take.

Work in a thread cannot be stopped from outside without leaving something half done, so it looks at the clock itself:
before it waits for a worker, before every photo, and before anything is stored.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from app.gallery.errors import TimedOut


class Deadline:
    """A moment by the monotonic clock that can be put off."""

    __slots__ = ("_seconds", "_until")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Count the seconds from now on."""
        self._until = time.monotonic() + self._seconds

    @property
    def left(self) -> float:
        """Seconds until then; 0 where it is over."""
        return max(0.0, self._until - time.monotonic())


_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float) -> Iterator[Deadline]:
    """Give the work inside a deadline."""
    deadline = Deadline(seconds)
    token = _deadline.set(deadline)
    try:
        yield deadline
    finally:
        _deadline.reset(token)


def seconds_left() -> float:
    """Seconds until the deadline; infinite without one (a lock waits at most `threading.TIMEOUT_MAX`)."""
    deadline = _deadline.get()
    return math.inf if deadline is None else deadline.left


@contextmanager
def holding(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock that others may hold for long, and wait for it no longer than the request may take.

    Raises:
        TimedOut: the time is over.
    """
    if not lock.acquire(timeout=min(seconds_left(), threading.TIMEOUT_MAX)):
        raise _timed_out()
    try:
        yield
    finally:
        lock.release()


def check_deadline() -> None:
    """Stop here where the time is over.

    Raises:
        TimedOut: it is.
    """
    if seconds_left() <= 0:
        raise _timed_out()


def _timed_out() -> TimedOut:
    return TimedOut("the request took too long and was given up; nothing was stored")
