"""When a virtual machine tells its host of memory that it does not use (Linux's free page reporting).

The host takes that memory back, and on some all other memory of the machine has to be found anew then, page by page, as
it is touched: whatever runs works on, several times as slowly, and no counter of the machine tells. Which processes let
the memory go, or whether it was the system's own copy of files, is not known.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_INSTANCES = Path("/sys/kernel/tracing/instances")
_WORK = "page_reporting_process"
_EVENT = re.compile(r"\s(\d+\.\d+): workqueue_execute_start")

Moments = NDArray[np.float64]


@contextmanager
def host_reports() -> Iterator[Callable[[], Moments] | None]:
    """What answers the moments so far at which the machine began a report, (R,), in seconds of `time.perf_counter`.

    None where the kernel does not tell, or not this process: root may ask.
    """
    trace = _INSTANCES / f"host_reports_{os.getpid()}"
    try:
        trace.mkdir()
    except OSError:
        yield None
        return
    try:
        yield _reader(trace)
    finally:
        trace.rmdir()


def _reader(trace: Path) -> Callable[[], Moments] | None:
    with suppress(OSError):  # a kernel that does not know the work
        event = trace / "events/workqueue/workqueue_execute_start"
        (event / "filter").write_text(f"function.function == {_WORK}")
        (trace / "trace_clock").write_text("mono")
        (event / "enable").write_text("1")
        return lambda: np.array(_EVENT.findall((trace / "trace").read_text()), np.float64)
    return None
