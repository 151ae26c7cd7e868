"""Ctrl-C in a training run: the loop ends after its step, and the processes that read for it do not notice."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C ends the run after the step; a second one ends it at once."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def without_interruption() -> Iterator[None]:
    """Block Ctrl-C: processes that are started in here inherit it from their first moment; for this one it waits.

    A worker imports torch before it could ask to be left alone, and would die of a signal in those seconds.
    """
    resource_tracker.ensure_running()  # else it is started with the first worker and unblocks the signal for it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
