"""Work that a process does of itself, again and again, in a thread of its own."""

import contextvars
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from app.gallery.deadline import WaitLimit, waiting_at_most

_LOWER_PRIORITY = 10
_LAST_ANSWER = 0.5  # seconds for the database, once the process ends


class Background:
    """A thread that does some work after each pause, on behalf of who makes this.

    Args:
        name: of the thread.
        work: what is done; it must not fail.
        pause: seconds.
        steps_back: whether a search that wants the processor goes first.
    """

    def __init__(self, name: str, work: Callable[[], None], *, pause: float, steps_back: bool = True) -> None:
        self._work = work
        self._pause = pause
        self._steps_back = steps_back
        self._ended = threading.Event()
        self._limit = WaitLimit()
        # In the caller's context, which says on whose behalf it is done.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def started(self) -> bool:
        """Whether it has begun."""
        return self._thread.ident is not None

    def end(self) -> None:
        """Begin no more; what is being done hardly waits for the database, and may ask whether it `is_ending`."""
        self._ended.set()
        self._limit.cut(_LAST_ANSWER)

    def is_ended(self) -> bool:
        """Whether it is to end."""
        return self._ended.is_set()

    def left_behind(self, patience: float) -> bool:
        """Whether what is being done goes on for more than so many seconds."""
        if self._thread.is_alive():
            self._thread.join(patience)
        return self._thread.is_alive()

    def _run(self) -> None:
        if self._steps_back:
            # Of this thread alone, on Linux.
            with suppress(OSError):  # the whole process may have a lower one, which nobody but root may raise
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWER_PRIORITY)
        with waiting_at_most(self._limit):
            while not self._ended.wait(self._pause):
                self._work()
