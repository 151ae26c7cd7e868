"""Processes that search a gallery, and what is asked of them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Follower:
    """One process that searches."""

    def __init__(self, url: str, folder: Path, kind: str = "auto") -> None:
        command = [sys.executable, "-m", "tests.processes.follower", url, str(folder), "people", kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready"

    def nearest(self, embedding: NDArray[np.float32]) -> int | None:
        """The subject whose template this is."""
        found = self._ask(json.dumps(embedding.tolist()))
        return int(found[0]) if found is not None and found[1] < 1e-3 else None

    def compressed(self) -> bool:
        """Whether the index has codes."""
        return bool(self._ask(json.dumps("compressed")))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0

    def _ask(self, line: str) -> list[float] | None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer: list[float] | None = json.loads(self._read())
        return answer

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def following(url: str, folder: Path, count: int, kind: str = "auto") -> Iterator[list[Follower]]:
    """So many processes, which end well."""
    followers = [Follower(url, folder, kind) for _ in range(count)]
    try:
        yield followers
        for follower in followers:
            follower.close()
    finally:
        for follower in followers:
            follower.process.kill()
            with follower.process:  # closes its pipes
                pass
