"""Token buckets that all processes share: one fills with `rate` tokens a second up to `burst`; a call takes one."""

import ipaddress
import math
import random
import time
from collections.abc import Callable

from sqlalchemy import ColumnElement, Engine, Table, case, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.access.errors import TooManyCalls
from app.access.tables import RateBucketRow
from app.gallery.sql.database import database_errors, open_engine, sqlite_address

_SWEEP_EVERY = 1000  # calls, on average, after which full buckets are removed
_CLOCKS_DIFFER = 5.0  # seconds, at most, between the clocks of processes that share buckets


class RateLimits:
    """Takes tokens out of buckets in the database, one statement a call.

    Args:
        engine: SQLite or PostgreSQL; on SQLite one of `open_rates`, apart from the gallery, whose writers do not wait
            then for calls, nor calls for them.
        rate: tokens a second, above 0.
        burst: tokens of a full bucket, at least 1.
        clock: seconds since 1970; the processes' clocks may differ by a few seconds, a bucket then follows the one that
            is ahead. One that is further ahead than it takes to fill is of a clock that was set back, and fills from
            now on.
    """

    def __init__(self, engine: Engine, *, rate: float, burst: float, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
        on_sqlite = engine.dialect.name == "sqlite"
        self._least: Callable[..., ColumnElement[float]] = func.min if on_sqlite else func.least
        self._most: Callable[..., ColumnElement[float]] = func.max if on_sqlite else func.greatest
        self._rate, self._burst, self._clock = rate, burst, clock
        self._ahead = burst / rate + _CLOCKS_DIFFER

    def take(self, owner: str) -> None:
        """Take one token of that owner's bucket.

        Raises:
            TooManyCalls: the bucket is empty; says when it is not any more.
            Busy, DatabaseUnavailable, StorageUnwritable: as named.
        """
        now = self._clock()
        row = RateBucketRow
        passed = self._most(0.0, now - row.at)
        filled = self._least(self._burst, row.tokens + passed * self._rate)
        taken = (
            self._insert(row)
            .values(owner=owner, tokens=self._burst - 1, at=now)
            .on_conflict_do_update(
                index_elements=["owner"],
                set_={"tokens": filled - 1, "at": case((row.at.between(now, now + self._ahead), row.at), else_=now)},
                where=filled >= 1,
            )
            .returning(row.tokens)
        )
        with database_errors(), self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":  # nothing of value is lost with a count
                connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
            if connection.scalar(taken) is not None:
                if random.random() * _SWEEP_EVERY < 1:
                    connection.execute(delete(row).where(row.at < now - self._burst / self._rate))
                return
            left = connection.scalar(select(filled).where(row.owner == owner)) or 0.0
            connection.execute(update(row).where(row.owner == owner, row.at > now + self._ahead).values(at=now))
        seconds = max(1, math.ceil((1 - left) / self._rate))
        raise TooManyCalls(f"too many calls; the next is admitted in {seconds} s", retry_after=seconds)

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()


def open_rates(engine: Engine, *, timeout: float) -> Engine:
    """The engine for the buckets beside a gallery's: PostgreSQL's own, on SQLite another file.

    Nothing of value is lost with that file, so that its commits need not reach the disk.
    """
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return engine
    rates = open_engine(
        sqlite_address(f"{engine.url.database}-rates"), timeout=timeout, synchronous="OFF", immediate=True
    )
    table = RateBucketRow.__table__
    assert isinstance(table, Table)
    with database_errors():
        table.create(rates, checkfirst=True)
    return rates


def owner_of_address(address: str) -> str:
    """The bucket of an address; of IPv6 the network of 64 bits, which is what one customer has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"address:{address[:64]}"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return f"address:{parsed.ipv4_mapped}"
        return f"address:{ipaddress.ip_network((parsed, 64), strict=False)}"
    return f"address:{parsed}"
