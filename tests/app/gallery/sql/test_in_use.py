"""A database is not replaced under a service."""

import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.gallery.errors import DatabaseInUse
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.in_use import refuse_in_use
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.tables import FollowerRow, now
from tests.app.test_cli import Facegallery
from tests.http.conftest import Server, serve

__all__ = ["serve"]  # a fixture


def test_restore_waits_for_the_service_to_end(tmp_path: Path, serve: Callable[..., Server]) -> None:
    (tmp_path / "gallery").mkdir()
    facegallery, server = Facegallery(tmp_path / "gallery"), serve(tmp_path / "gallery")
    assert facegallery("backup", tmp_path / "copy.db").returncode == 0
    for words in (("restore",), ("restore", tmp_path / "copy.db")):
        done = facegallery(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("error: a service uses the database; stop it first")
    assert facegallery("restore", tmp_path / "copy.db", "--while-running").returncode == 0
    server.stop(signal.SIGKILL)
    assert facegallery("restore", tmp_path / "copy.db").returncode == 0


def test_a_database_that_is_not_there_or_is_none_is_not_in_use(tmp_path: Path) -> None:
    (tmp_path / "damaged.db").write_bytes(b"x" * 5000)
    for name in ("missing.db", "damaged.db"):
        refuse_in_use(f"sqlite:///{tmp_path / name}", timeout=5)
    assert not (tmp_path / "missing.db").exists()


def test_a_service_on_postgresql_is_known_by_its_reports(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_in_use(postgresql_url, timeout=5)  # without tables
    engine = open_engine(postgresql_url, timeout=5)
    migrate(engine)
    gallery = GalleryStore(engine).create_gallery("people", extractor="net@1", dimension=8, policy=None)
    history = GalleryHistory(engine)
    history.report(gallery.id, "snapshot host:/data/index", 0)
    refuse_in_use(postgresql_url, timeout=5)
    history.report(gallery.id, "host:1:abcd", 0)
    with pytest.raises(DatabaseInUse, match="--while-running"):
        refuse_in_use(postgresql_url, timeout=5, waiting=lambda: history.report(gallery.id, "host:1:abcd", 0))
    with pytest.raises(DatabaseInUse, match="--while-running"):
        refuse_in_use(postgresql_url, timeout=5, waiting=lambda: history.report(gallery.id, "another:2:ef01", 0))
    waited = list[str]()
    monkeypatch.setattr("app.gallery.sql.in_use._SILENT", timedelta(seconds=1))
    history.report(gallery.id, "host:1:abcd", 0)
    refuse_in_use(
        postgresql_url, timeout=5, waiting=lambda: waited.append("until it was silent")
    )  # as after pg_restore
    assert waited == ["until it was silent"]
    monkeypatch.undo()
    for seconds in (-61, 61 + 10**8):  # silent since, or by a clock that was far ahead
        with Session(engine) as session, session.begin():
            session.execute(update(FollowerRow).values(seen_at=now() + timedelta(seconds=seconds)))
        refuse_in_use(postgresql_url, timeout=5)
    engine.dispose()
