from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from app.access.errors import TooManyCalls
from app.access.rate_limits import RateLimits, open_rates, owner_of_address
from app.access.tables import RateBucketRow
from app.gallery.sql.database import open_engine


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(engine: Engine) -> Iterator[Engine]:
    opened = open_rates(engine, timeout=10)
    yield opened
    opened.dispose()


def test_a_full_bucket_gives_a_burst_and_then_the_rate(rates: Engine, clock: Clock) -> None:
    limits = RateLimits(rates, rate=0.5, burst=3, clock=clock)
    for _ in range(3):
        limits.take("ada")
    with pytest.raises(TooManyCalls, match="admitted in 2 s") as caught:
        limits.take("ada")
    assert caught.value.retry_after == 2
    limits.take("somebody else")
    clock.now += 1.9
    with pytest.raises(TooManyCalls):
        limits.take("ada")
    clock.now += 0.1
    limits.take("ada")


def test_a_refusal_says_when_the_callers_own_bucket_has_a_token(rates: Engine, clock: Clock) -> None:
    limits = RateLimits(rates, rate=0.1, burst=1, clock=clock)
    for owner in ("bob", "ada", "carl"):
        limits.take(owner)
        clock.now += 2
    with pytest.raises(TooManyCalls, match="in 6 s"):
        limits.take("ada")


def test_a_refused_call_takes_nothing_and_a_bucket_does_not_run_over(rates: Engine, clock: Clock) -> None:
    limits = RateLimits(rates, rate=1, burst=2, clock=clock)
    limits.take("ada")
    clock.now += 1000
    for _ in range(2):
        limits.take("ada")
    for _ in range(5):
        with pytest.raises(TooManyCalls):
            limits.take("ada")
    clock.now += 1
    limits.take("ada")


def test_a_clock_that_goes_back_gives_and_takes_nothing(rates: Engine, clock: Clock) -> None:
    limits = RateLimits(rates, rate=1, burst=2, clock=clock)
    limits.take("ada")
    clock.now -= 100
    limits.take("ada")
    with pytest.raises(TooManyCalls, match="in 1 s"):
        limits.take("ada")


def test_an_empty_bucket_fills_again_after_the_clock_was_set_back(rates: Engine, clock: Clock) -> None:
    limits = RateLimits(rates, rate=1, burst=2, clock=clock)
    for _ in range(2):
        limits.take("ada")
    clock.now -= 3600
    with pytest.raises(TooManyCalls, match="in 1 s"):
        limits.take("ada")
    for _ in range(3):
        clock.now += 1
        limits.take("ada")
    with pytest.raises(TooManyCalls):
        limits.take("ada")


def test_a_bucket_follows_the_clock_that_is_a_little_ahead(rates: Engine, clock: Clock) -> None:
    behind = Clock()
    behind.now -= 4
    limits = [RateLimits(rates, rate=1, burst=2, clock=one) for one in (clock, behind)]
    limits[0].take("ada")
    limits[1].take("ada")
    for one in limits:
        with pytest.raises(TooManyCalls):
            one.take("ada")


def test_processes_share_a_bucket(engine: Engine, clock: Clock) -> None:
    opened = [open_rates(engine, timeout=30) for _ in range(2)]
    limits = [RateLimits(one, rate=0.001, burst=20, clock=clock) for one in opened]

    def take(number: int) -> bool:
        try:
            limits[number % 2].take("ada")
        except TooManyCalls:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(60))) == 20
    for one in opened:
        one.dispose()


def test_full_buckets_are_swept(rates: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)
    limits = RateLimits(rates, rate=1, burst=2, clock=clock)
    for number in range(5):
        limits.take(str(number))
    clock.now += 3
    limits.take("last")
    with rates.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(RateBucketRow)) == 1


def test_sqlite_calls_are_not_kept_from_by_a_writer_of_the_gallery(tmp_path: Path, clock: Clock) -> None:
    gallery = open_engine(f"sqlite:///{tmp_path}/gallery.db", timeout=0.1)
    limits = RateLimits(open_rates(gallery, timeout=0.1), rate=1, burst=2, clock=clock)
    with gallery.execution_options(immediate=True).begin():  # holds the write lock
        limits.take("ada")
    limits.close()
    gallery.dispose()


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("203.0.113.5", "address:203.0.113.5"),
        ("2001:db8:1:2:3:4:5:6", "address:2001:db8:1:2::/64"),
        ("::ffff:203.0.113.5", "address:203.0.113.5"),
        ("fe80::1%eth0", "address:fe80::/64"),
        ("testclient", "address:testclient"),
    ],
)
def test_an_address_has_a_bucket_and_of_ipv6_a_network(address: str, owner: str) -> None:
    assert owner_of_address(address) == owner
