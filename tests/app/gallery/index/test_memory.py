"""Memory that goes back in pieces."""

import gc
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from app.gallery.index import memory

_LARGE = 3 * (4 << 20)  # bytes


def resident() -> int:
    """Kilobytes that the process has in memory."""
    return told("status", "RssAnon")


def told(file: str, name: str) -> int:
    """What the system says of this process."""
    lines = Path("/proc/self", file).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("source", ["new", "a file"])
def test_memory_goes_back_when_the_last_array_on_it_is_gone(tmp_path: Path, source: str) -> None:
    rows = 64 * _LARGE // 512
    if source == "new":
        array = memory.room(rows, 128, np.float32)
        assert not array.any()
    else:
        np.zeros((rows, 128), np.float32).tofile(tmp_path / "file")
        array = memory.mapped(tmp_path / "file", rows, 128, np.float32)
    array[:] = 1
    gc.collect()
    part, before = array[-1:], resident()
    del array
    gc.collect()
    assert part[0, 0] == 1  # a part keeps all
    assert resident() > before - 64 * _LARGE // 1024 // 2
    del part
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "memory":
            thread.join()
    assert resident() < before - 64 * _LARGE // 1024 // 2


def test_a_process_ends_that_holds_such_memory_in_a_cycle() -> None:
    program = f"""
from app.gallery.index import memory
class Holder: ...
holder = Holder()
holder.itself, holder.array = holder, memory.room({_LARGE // 512}, 128, "f4")
holder.array[:] = 1
print("main ends", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("main ends\n", "")


@pytest.mark.skipif("THP_enabled" not in Path("/proc/self/status").read_text(encoding="ascii"), reason="no huge pages")
def test_no_memory_lies_in_huge_pages() -> None:
    program = """
import numpy as np
from app.gallery.index import use_no_huge_pages
from tests.app.gallery.index.test_memory import told
does, large = use_no_huge_pages(), np.ones(2**26, np.uint8)  # numpy asks for huge pages for it
print(does, told("status", "THP_enabled"), told("smaps_rollup", "AnonHugePages"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "0", "0"]
