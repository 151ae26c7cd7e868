"""Whether a process is told to end while it starts: uvicorn looks at signals once a start is over."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]
_ENDS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def told_to_end() -> Iterator[Callable[[], bool]]:
    """Give what says whether a signal to end has come since, which whoever handles it gets as well.

    Python handles signals in the main thread alone; another one that asks is told of none.
    """
    came = list[int]()

    def note(handler: _Handler, number: int, frame: FrameType | None) -> None:
        came.append(number)
        handler(number, frame)

    heard = threading.current_thread() is threading.main_thread()
    before = {number: handler for number in _ENDS if heard and callable(handler := signal.getsignal(number))}
    for number, handler in before.items():
        signal.signal(number, partial(note, handler))
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
