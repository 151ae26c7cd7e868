"""What a service keeps people in, put together as it does: rows, a vault that seals them, and sealed snapshots."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.gallery.sealing.encryption import SealedRows
from app.gallery.snapshots.private_folder import PrivateFolder, private_base
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.views.index_source import IndexSource, SnapshotSeal
from app.settings import Settings
from app.vault import vault_beside


@dataclass(frozen=True, slots=True)
class Deployed:
    """A process's stores and where its indexes come from."""

    store: GalleryStore
    history: GalleryHistory
    source: IndexSource


def made_database(url: str) -> None:
    """Make the tables of a database."""
    engine = open_engine(url, timeout=30)
    migrate(engine)
    engine.dispose()


@contextmanager
def deployed(url: str, folder: Path, make_source: Callable[..., IndexSource] = IndexSource) -> Iterator[Deployed]:
    """Open a database that has its tables, with the vault, the master key and the snapshots in a folder."""
    engine = open_engine(url, timeout=30)
    vault = vault_beside(Settings(database_url=url, data_dir=folder, _env_file=None), engine)
    seals, memory = SealedRows(vault), PrivateFolder(private_base(folder / "memory"), "people")
    source = make_source(folder=folder / "index", seal=SnapshotSeal(vault, memory))
    try:
        yield Deployed(GalleryStore(engine, seals=seals), GalleryHistory(engine, seals), source)
    finally:
        memory.close()
        for one in (engine, vault.engine):
            one.dispose()
