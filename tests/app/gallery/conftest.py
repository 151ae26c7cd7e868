"""Each kind of database, with galleries where a test wants some, and with a vault beside it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.receipts import ReceiptSigner
from app.gallery.sealing.encryption import SealedRows
from app.gallery.sealing.vault import Vault, open_vault
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.views.index_source import IndexSource

EXTRACTOR, DIMENSION = "net@0123456789ab", 8


@pytest.fixture
def store(store: GalleryStore, request: pytest.FixtureRequest) -> GalleryStore:
    """Store of a database with the empty galleries that the mark `galleries` names."""
    for mark in request.node.iter_markers("galleries"):
        for name in mark.args:
            store.create_gallery(name, extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
    return store


@pytest.fixture
def source(tmp_path: Path) -> IndexSource:
    """Where indexes come from that have snapshots."""
    return IndexSource(folder=tmp_path / "index")


@pytest.fixture
def open_again(tmp_path: Path) -> Iterator[Callable[[], Vault]]:
    """Opens the same vault, as another process would."""
    engines: list[Engine] = []

    def opened(*, expected: bool = False) -> Vault:
        engines.append(open_engine(f"sqlite:///{(tmp_path / 'vault.db').as_posix()}", timeout=30))
        return open_vault(engines[-1], master_key=None, master_key_file=tmp_path / "master.key", expected=expected)

    yield opened
    for engine in engines:
        engine.dispose()


@pytest.fixture
def vault(open_again: Callable[[], Vault]) -> Vault:
    """An empty vault in SQLite."""
    return open_again()


@pytest.fixture
def sealed_store(engine: Engine, vault: Vault) -> GalleryStore:
    """Store of an empty database with the vault."""
    vault.note_sealed()
    return GalleryStore(engine, seals=SealedRows(vault))


@pytest.fixture
def sealed_history(engine: Engine, vault: Vault) -> GalleryHistory:
    """History of the same database."""
    return GalleryHistory(engine, SealedRows(vault))


@pytest.fixture
def forgetting(engine: Engine, vault: Vault) -> Forgetting:
    """Erases from the same database."""
    return Forgetting(engine, vault, ReceiptSigner(bytes(32)))
