"""What commands do to an engine outside the process."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.gallery.engines import storage_name, storage_prefix
from app.gallery.engines.pgvector import PgvectorEngine
from app.gallery.sql.database import open_engine
from app.gallery.store import GalleryStore
from tests.app.test_cli import Facegallery, people

__all__ = ["people"]  # a fixture


@pytest.fixture
def shared(postgresql_url: str) -> Iterator[PgvectorEngine]:
    engine = PgvectorEngine(postgresql_url, timeout=10)
    yield engine
    engine.close()


def test_a_move_drops_the_old_index_and_forgetting_reaches_the_new(
    tmp_path: Path, people: Path, two_extractors: Path, postgresql_url: str, shared: PgvectorEngine
) -> None:
    settings = {
        "FACEGALLERY_WEIGHTS_DIR": str(two_extractors),
        "FACEGALLERY_KEEP_CROPS": "true",
        "FACEGALLERY_DATABASE_URL": postgresql_url,
        "FACEGALLERY_INDEX": "pgvector",
    }
    before = Facegallery(tmp_path / "gallery", **settings)
    after = Facegallery(tmp_path / "gallery", **settings, FACEGALLERY_EXTRACTOR="other")
    photo = people / "Eileen Collins" / "1.png"
    store = GalleryStore(open_engine(postgresql_url, timeout=10))

    def names() -> list[str]:
        return shared.names(storage_prefix(store.gallery("default")))

    before("migrate")
    before("import", people)
    assert before("identify", photo).returncode == 0
    assert names() == [storage_name(store.gallery("default"))]
    assert before("reembed", "--extractor", "other").returncode == 0
    assert names() == []
    (face,) = json.loads(after("identify", photo, "--json").stdout)
    assert (face["subject"], names()) == ("Eileen Collins", [storage_name(store.gallery("default"))])
    receipt = json.loads(before("forget", "Eileen Collins").stdout)  # by the service of the other extractor
    assert receipt["pending"] == []
    assert len(shared.index(store.gallery("default"))) == 0
    assert after("reembed", "--back", "--without-missing").returncode == 1  # nothing is left to go back to
    store.close()
