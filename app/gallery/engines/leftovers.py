"""What an engine outside the process still has of extractors that galleries have left, and of those that are gone."""

import time
from contextlib import suppress
from datetime import timedelta
from functools import partial

import structlog
from sqlalchemy import Engine, delete, select

from app.gallery.engines import IndexEngine, storage_name, storage_prefix
from app.gallery.engines.protocol import STORAGE, prefix_in
from app.gallery.errors import GalleryNotFound
from app.gallery.records import Gallery
from app.gallery.sql.galleries import all_galleries
from app.gallery.sql.rows import Sessions, gallery_of, gallery_row, in_parts
from app.gallery.tables import StorageToDropRow, now
from app.gallery.try_each import try_each

_EVERY = 60.0  # seconds between two sweeps of `look`
_LATE = timedelta(days=1)  # how long a process may take to hear that a gallery is gone
_log = structlog.get_logger()


class EngineLeftovers:
    """Drops them. SQL says what is needed, so whatever broke off in between is done by the next sweep of any process.

    Args:
        database: engine of the gallery's database.
        engine: where indexes are kept.
    """

    def __init__(self, database: Engine, engine: IndexEngine) -> None:
        self._sessions = Sessions(database)
        self._engine = engine
        self._next_sweep = time.monotonic()
        self._nobodys = set[str]()  # as the last sweep found them

    def drop_left(self, name: str) -> None:
        """Drop what is kept of a gallery by other extractors than its present one.

        Raises:
            GalleryNotFound, DatabaseUnavailable, Busy: as named; what is still there goes with the next sweep.
        """
        with self._sessions.reading() as session:
            gallery = gallery_of(gallery_row(session, name))
        if not self._left(gallery, self._engine.names(storage_prefix(gallery))):
            return
        # Locked, so that the gallery does not move to the extractor whose index is being dropped.
        with self._sessions.writing() as session:
            gallery = gallery_of(gallery_row(session, name, lock=True))
            self._engine.drop(storage_prefix(gallery), but=storage_name(gallery))
        _log.info("index.dropped", gallery=name, reason="the gallery has left its extractor")

    def sweep(self) -> None:
        """Drop all that nobody needs.

        Raises:
            DatabaseUnavailable, Busy: as named; what could be dropped is.
        """
        there = dict[str, list[str]]()
        for name in self._engine.names(STORAGE):
            there.setdefault(prefix_in(name), []).append(name)
        with self._sessions.reading() as session:
            erased = dict(session.execute(select(StorageToDropRow.prefix, StorageToDropRow.since)).all())
            galleries = all_galleries(session)
        needed = {storage_prefix(gallery): gallery for gallery in galleries}
        gone = (erased.keys() & there.keys()) - needed.keys()  # a backup may have brought an erased one back
        left = [one.name for prefix, one in needed.items() if self._left(one, there.get(prefix, []))]
        late = now() - _LATE
        settled = [prefix for prefix, since in erased.items() if since < late and prefix not in gone]
        try_each(
            [
                *(partial(self._engine.drop, prefix) for prefix in sorted(gone)),
                *(partial(self._drop_left_if_there, name) for name in left),
                self._drop_nobodys,
                lambda: self._settle(settled),
            ]
        )

    def look(self) -> None:
        """Sweep if it is time, the first time at once; called every second or so."""
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + _EVERY
            self.sweep()

    def _drop_left_if_there(self, name: str) -> None:
        with suppress(GalleryNotFound):
            self.drop_left(name)

    def _drop_nobodys(self) -> None:
        """Drop what is kept of galleries that no database has, as a restore leaves them, at the second look.

        In between, a restore that is under way comes to its end. Where the galleries are in another database than the
        engine, nobody can tell.
        """
        if self._sessions.engine.dialect.name != "postgresql":
            return
        found = set(self._engine.nobodys())
        again, self._nobodys = found & self._nobodys, found
        try_each(partial(self._drop_nobodys_table, name) for name in sorted(again))

    def _drop_nobodys_table(self, name: str) -> None:
        self._engine.drop(name)
        _log.info("index.dropped", table=name, reason="no database has its gallery")

    def _settle(self, prefixes: list[str]) -> None:
        """Forget erased galleries of which the engine has nothing, and which no process makes anew any more."""
        for part in in_parts(prefixes):
            with self._sessions.writing() as session:
                settled = delete(StorageToDropRow).where(StorageToDropRow.prefix.in_(part))
                session.execute(settled, execution_options={"synchronize_session": False})

    @staticmethod
    def _left(gallery: Gallery, names: list[str]) -> list[str]:
        prefix, present = storage_prefix(gallery), storage_name(gallery)
        return [name for name in names if name.startswith(prefix) and name != present]
