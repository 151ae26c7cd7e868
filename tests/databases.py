"""Real databases: SQLite in a file, and PostgreSQL in a server of this test run."""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from sqlite3 import SQLITE_LIMIT_VARIABLE_NUMBER, Connection, OperationalError, connect
from threading import Barrier

import numpy as np
import psycopg
import pytest
import torch
from psycopg import sql
from sqlalchemy import Engine, event, make_url

from app.gallery.records import NewTemplate
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from model.card import file_sha256, read_card, write_card
from model.network_file import read_network, write_network
from model.pipeline import WEIGHTS
from model.quality import Quality
from tests.postgresql import postgresql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Address of a server that lives as long as the test run."""
    with postgresql() as server:
        with psycopg.connect(server.address, autocommit=True) as connection:
            for setting in ("fsync", "full_page_writes"):  # nobody pulls the plug
                connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
            connection.execute("SELECT pg_reload_conf()")
        yield server.address


def empty_schema(server: str) -> str:
    """Address of an empty schema in PostgreSQL, which is made in a hundredth of the time of a database."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    url = make_url(server).update_query_dict({"options": f"-csearch_path={name}"})
    return url.render_as_string(hide_password=False)


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """Address of an empty schema in PostgreSQL."""
    return empty_schema(postgresql_server)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Address of an SQLite database that is not there yet."""
    return f"sqlite:///{(tmp_path / 'gallery.db').as_posix()}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Address of an empty database of each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def empty_engine(database_url: str) -> Iterator[Engine]:
    """Engine of a database without tables."""
    engine = open_engine(database_url, timeout=30)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(empty_engine: Engine) -> Engine:
    """Engine of a database with this version's tables."""
    migrate(empty_engine)
    return empty_engine


@pytest.fixture
def store(engine: Engine) -> GalleryStore:
    """Store of an empty database."""
    return GalleryStore(engine)


@contextmanager
def store_in(file: Path) -> Iterator[GalleryStore]:
    """The store of another database than the test's, in an SQLite file that is made."""
    engine = open_engine(f"sqlite:///{file.as_posix()}", timeout=30)
    try:
        migrate(engine)
        yield GalleryStore(engine)
    finally:
        engine.dispose()


@contextmanager
def steps_of(engine: Engine) -> Iterator[list[int]]:
    """What SQLite does meanwhile, an item for every hundred steps of its machine, whatever the clock says."""
    steps = list[int]()

    def watch(connection: Connection, *_: object) -> None:
        connection.set_progress_handler(lambda: steps.append(1), 100)

    event.listen(engine, "checkout", watch)
    try:
        yield steps
    finally:
        event.remove(engine, "checkout", watch)


@contextmanager
def others_wait(engine: Engine, statement: str, *, many: int = 8) -> Iterator[list[int]]:
    """Others wait to write to SQLite's file from the first such statement on.

    For each such statement there is an item that says how many of them have had their turn before it.
    """
    turns, done = list[int](), list[bool]()
    all_wait, waiting = Barrier(many + 1, timeout=60), list[Future[None]]()

    def write() -> None:
        with closing(connect(str(engine.url.database), timeout=0, isolation_level=None)) as connection:
            with pytest.raises(OperationalError, match="locked"):
                connection.execute("BEGIN IMMEDIATE")
            connection.execute("PRAGMA busy_timeout=60000")
            all_wait.wait()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
            done.append(True)

    def look(_connection: object, _cursor: object, executed: str, *_: object) -> None:
        if executed.startswith(statement):
            turns.append(len(done))
            if not waiting:
                waiting.extend(threads.submit(write) for _ in range(many))
                all_wait.wait()

    event.listen(engine, "before_cursor_execute", look)
    try:
        with ThreadPoolExecutor(many) as threads:
            yield turns
    finally:
        event.remove(engine, "before_cursor_execute", look)
    for one in waiting:
        one.result()


@contextmanager
def few_values(engine: Engine, most: int) -> Iterator[None]:
    """SQLite takes no statement with more values from now on; else that is one with more than 32,766."""

    def limit(connection: Connection, *_: object) -> None:
        connection.setlimit(SQLITE_LIMIT_VARIABLE_NUMBER, most)

    event.listen(engine, "checkout", limit)
    try:
        yield
    finally:
        event.remove(engine, "checkout", limit)


@pytest.fixture
def new_templates() -> Callable[[int], list[NewTemplate]]:
    """Makes so many templates of 8 dimensions, never the same twice."""
    random, numbers = np.random.default_rng(7), count()

    def make(wanted: int) -> list[NewTemplate]:
        vectors = random.normal(size=(wanted, 8)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        quality = Quality(detection_score=0.9, face_size=80.5, sharpness=130.25, yaw=-3.5, pitch=2.0, roll=0.25)
        return [
            NewTemplate(vector, quality, hashlib.sha256(str(next(numbers)).encode()).hexdigest()) for vector in vectors
        ]

    return make


@pytest.fixture(scope="session")
def two_extractors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with the shipped networks and an extractor `other`, which sees faces a little differently."""
    weights = tmp_path_factory.mktemp("weights")
    for name in ("yunet", "sface"):
        (weights / name).symlink_to(WEIGHTS / name)
    card = read_card(WEIGHTS / "sface")
    network = read_network(WEIGHTS / "sface" / card.file)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05 * float(parameter.std()))
    (weights / "other").mkdir()
    write_network(network, weights / "other" / "other.onnx")
    digest = file_sha256(weights / "other" / "other.onnx")
    write_card(replace(card, name="other", file="other.onnx", sha256=digest), weights / "other")
    return weights
