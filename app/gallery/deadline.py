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

BACKGROUND_SECONDS = 300.0
"""What a service waits for one answer of the database outside of requests."""


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


class WaitLimit:
    """How long work outside of requests waits for the database's answers.

    A request has a deadline; what the service does of itself may take hours and has none, but no single answer does.

    Args:
        each: seconds for one answer.
        total: seconds for all together, which `cut` may shorten at any moment, from any thread.
    """

    __slots__ = ("_each", "_left", "is_cut")

    def __init__(self, each: float = BACKGROUND_SECONDS, total: float = math.inf) -> None:
        self._each, self._left = each, total
        self.is_cut = False

    @property
    def left(self) -> float:
        """Seconds that the next answer may take."""
        return min(self._each, self._left)

    def spend(self, seconds: float) -> None:
        """Count what was waited."""
        self._left = max(0.0, self._left - seconds)

    def cut(self, seconds: float) -> None:
        """Wait no longer than so many seconds from now on, all answers together: the work is to end."""
        self._left = min(self._left, seconds)
        self.is_cut = True


_limit: ContextVar[WaitLimit | None] = ContextVar("wait limit", default=None)


@contextmanager
def waiting_at_most(limit: WaitLimit) -> Iterator[None]:
    """Give the work inside a limit of what it waits for the database."""
    token = _limit.set(limit)
    try:
        yield
    finally:
        _limit.reset(token)


def wait_limit() -> WaitLimit | None:
    """The limit of the present work, None where there is none, as in a command."""
    return _limit.get()


def is_ending() -> bool:
    """Whether the process is ending, and with it the present work outside of requests, at the next good place."""
    limit = _limit.get()
    return limit is not None and limit.is_cut


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
