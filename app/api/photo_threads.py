"""Threads for calls that read photos: they wait for a worker there and keep nobody else waiting."""

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from app.gallery.photos import waiting_for_worker

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

_THREADS = 40  # as many as all other calls have together
_limiter: RunVar[CapacityLimiter] = RunVar("photo_threads")  # of each event loop its own


async def in_photo_thread(call: Callable[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
    """What a call answers that is run in one of the threads for photos."""
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = CapacityLimiter(_THREADS)
        _limiter.set(limiter)
    with waiting_for_worker():  # also for a thread
        return await to_thread.run_sync(partial(call, *args, **kwargs), limiter=limiter)


def reads_photos(route: Callable[Given, Answer]) -> Callable[Given, Awaitable[Answer]]:
    """The route, run in one of the threads for photos and not in those that all other routes share."""

    @wraps(route)
    async def run(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
        return await in_photo_thread(route, *args, **kwargs)

    return run
