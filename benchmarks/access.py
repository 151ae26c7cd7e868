"""What it costs a call to be written down and counted: the audit log and the rate limits, on both databases.

    PYTHONPATH=. taskset -c 0 python benchmarks/access.py [--calls 300]

Medians in milliseconds of elapsed time, most of which a commit waits for the disk. *By itself* is an entry of the audit
log in a transaction of its own, *handed over* one that is given to the thread which writes them in batches, as an
identification does; *counted* is a token taken from a bucket of the rate limits. PostgreSQL is the one out of a wheel.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine

from app.access.audit_log import AuditLog
from app.access.pepper import Pepper
from app.access.rate_limits import RateLimits, open_rates
from app.gallery.journal import Event
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import migrate
from app.gallery.sql.rows import Sessions
from tests.postgresql import postgresql

_TIMEOUT = 30.0


def main() -> None:
    """Print a row for each database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    calls = parser.parse_args().calls
    print("| ms | by itself | handed over | counted |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="facegallery-") as folder:
        _measure("SQLite", open_engine(f"sqlite:///{Path(folder) / 'gallery.db'}", timeout=_TIMEOUT), calls)
    with postgresql() as server:
        _measure("PostgreSQL", open_engine(server.address, timeout=_TIMEOUT), calls)


def _measure(name: str, engine: Engine, calls: int) -> None:
    migrate(engine)
    audit, sessions = AuditLog(engine, Pepper("x" * 32), patience=_TIMEOUT), Sessions(engine)
    limits = RateLimits(open_rates(engine, timeout=_TIMEOUT), rate=1e6, burst=1e6)
    event = Event("identify", "default", ("somebody",), {"probes": 1, "identified": 1})

    def by_itself() -> None:
        with sessions.writing() as session:
            audit.write(session, event)

    times = [
        _median(by_itself, calls),
        _median(lambda: audit.note(event), calls),
        _median(lambda: limits.take("key:0123456789ab"), calls),
    ]
    print(f"| {name} | {' | '.join(f'{1000 * seconds:.3f}' for seconds in times)} |", flush=True)
    audit.close()
    limits.close()
    engine.dispose()


def _median(call: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(calls + calls // 10):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[calls // 10 :])


if __name__ == "__main__":
    main()
