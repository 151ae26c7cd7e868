"""Erasing people for good: rows, keys, index entries, traces in snapshots, and what a restored backup brings back."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Engine, func, select, update

from app.gallery.deadline import is_ending, seconds_left
from app.gallery.erasure.receipts import ReceiptSigner
from app.gallery.errors import Busy, GalleryNotFound
from app.gallery.journal import Event, Journal, NoJournal
from app.gallery.records import Gallery
from app.gallery.sealing.vault import Vault
from app.gallery.sql.database import empty_log, let_others_write
from app.gallery.sql.erased_galleries import end_erasures
from app.gallery.sql.failures import in_full
from app.gallery.sql.galleries import gallery_with
from app.gallery.sql.rows import Due, Sessions, erase_subject, gallery_of, gallery_row, subject_row
from app.gallery.tables import InheritedKeyRow, KeyToDestroyRow, SubjectRow, now
from app.gallery.try_each import try_each
from model.errors import FacegalleryError

ERASED_AT_ONCE = 100
"""Subjects of one transaction, so that others get their turn."""
_MANY = 1000
_log = structlog.get_logger()


EraseTraces = Callable[[Gallery, bool], int | None]
"""Erases a gallery's snapshots, at once where asked; answers how many, None where it is left to another moment."""


@dataclass(frozen=True, slots=True)
class Traces:
    """What went besides the rows, and what could not yet go; a sweep tries again."""

    snapshots: int
    pending: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _ErasedRows:
    """Of whom, how many templates and keys, and the moment under the gallery's lock, before anybody enrolls anew."""

    gallery: Gallery
    templates: int
    keys: int
    enrolled_at: datetime
    erased_at: datetime


class Forgetting:
    """Erases subjects. The rows go first, in one transaction; then the key, the log, the index, the snapshots.

    The order matters: a trigger lists the key with the rows' transaction, so a crash in between loses nothing, and an
    erasure that is refused (a full disk, a busy database) has destroyed no key.
    """

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        signer: ReceiptSigner,
        *,
        journal: Journal | None = None,
    ) -> None:
        self.engine = engine
        self.vault = vault
        self.signer = signer
        self._journal = journal or NoJournal()
        self._sessions = Sessions(engine)
        self._follow: Callable[[Gallery], None] = lambda _gallery: None
        self._erase_traces: EraseTraces = lambda _gallery, _at_once: 0
        self._drop_gone: Callable[[], None] = lambda: None

    def connect(
        self,
        *,
        follow: Callable[[Gallery], None],
        erase_traces: EraseTraces,
        drop_gone: Callable[[], None] = lambda: None,
    ) -> None:
        """Name what follows an erasure: this process's index, the gallery's snapshots, those of galleries that went."""
        self._follow, self._erase_traces, self._drop_gone = follow, erase_traces, drop_gone

    def forget(self, gallery: str, key: str) -> dict[str, Any]:
        """Erase a subject and all that is held about it; answers a signed receipt.

        Raises:
            GalleryNotFound, SubjectNotFound: as named; nothing was erased.
        """
        rows = self._erase_rows("forget", gallery, key)
        traces = self.finish(rows.gallery, at_once=True)
        erased = {"subjects": 1, "templates": rows.templates, "keys": rows.keys, "snapshots": traces.snapshots}
        return self.signer.sign(
            gallery=rows.gallery,
            subject=key,
            enrolled_at=rows.enrolled_at,
            erased_at=rows.erased_at,
            erased=erased,
            pending=list(traces.pending),
        )

    def erase(self, gallery: str, key: str) -> int:
        """As `forget`, without a receipt; answers how many templates went."""
        rows = self._erase_rows("delete-subject", gallery, key)
        self.finish(rows.gallery)
        return rows.templates

    def erase_those(self, gallery: Gallery, ids: Sequence[int], due: Due, *, why: str = "expire") -> int:
        """Erase those of some subjects that are due still, now that the gallery is locked; answers how many.

        The caller calls `finish` afterwards. `why` is the action that the journal gets.
        """
        keys, templates = list[str](), 0
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery.name, lock=True)
            for row in session.scalars(select(SubjectRow).where(SubjectRow.id.in_(ids))).all():
                if row.gallery_id == owner.id and due(gallery_of(owner), row):
                    keys.append(row.key)
                    templates += erase_subject(session, owner, row)
            if keys:
                session.flush()
                self._journal.write(session, Event(why, owner.name, tuple(keys), {"templates": templates}))
        return len(keys)

    def finish(self, gallery: Gallery, *, at_once: bool = False) -> Traces:
        """Destroy the keys of what was erased and whatever else remembers it; what fails waits for the next sweep.

        Args:
            gallery: in which something was erased.
            at_once: have the snapshots written anew now, if this process may; else in the background.
        """
        pending = []
        try:
            self.destroy_keys()
            if _out_of_time() and self._listed_keys(1):
                pending.append("key")
            if not empty_log(self.vault.engine):
                pending.append("vault-log")
        except FacegalleryError as error:
            pending.append("key")
            _log.error("erasure.pending", what="key", reason=in_full(error))
        try:
            if not empty_log(self.engine):
                pending.append("database-log")
        except FacegalleryError as error:
            pending.append("database-log")
            _log.error("erasure.pending", what="database-log", reason=in_full(error))
        try:
            self._follow(gallery)
        except FacegalleryError as error:
            pending.append("index")
            _log.error("erasure.pending", what="index", gallery=gallery.name, reason=in_full(error))
        snapshots: int | None = 0
        try:
            snapshots = self._erase_traces(gallery, at_once)
            if snapshots is None:
                pending.append("snapshots")
        except (FacegalleryError, OSError) as error:
            pending.append("snapshots")
            _log.error("erasure.pending", what="snapshots", gallery=gallery.name, reason=in_full(error))
        return Traces(snapshots or 0, tuple(pending))

    def erase_rest(self, gallery: Gallery) -> None:
        """Erase what `GalleryStore.delete_gallery` has left of a large gallery; what fails waits for the next sweep."""
        try:
            self._end_erasures()
        except FacegalleryError as error:
            _log.error("erasure.pending", what="rows", gallery=gallery.name, reason=in_full(error))

    def destroy_keys(self) -> int:
        """Destroy the keys of all erased subjects; answers how many that were.

        In a process that is ending, or a request that is out of time, some thousand; the others stay listed for the
        next sweep.
        """
        destroyed = 0
        while ids := self._listed_keys(_MANY):
            destroyed += self.vault.destroy(ids)
            with self._sessions.writing() as session:
                done = update(KeyToDestroyRow).where(KeyToDestroyRow.key_id.in_(ids))
                session.execute(done.values(destroyed=True), execution_options={"synchronize_session": False})
            if _out_of_time():
                break
        return destroyed

    def _listed_keys(self, most: int) -> Sequence[str]:
        with self._sessions.reading() as session:
            listed = select(KeyToDestroyRow.key_id).where(KeyToDestroyRow.destroyed.is_(False))
            return session.scalars(listed.limit(most)).all()

    def _end_erasures(self) -> None:
        """Erase the rest of galleries, the keys with each piece: whoever erases meanwhile destroys all that are listed.

        The caller destroys them afterwards, too, and tells why that cannot be done.
        """
        vault_answers = True
        for _ in end_erasures(self._sessions):
            if vault_answers:
                try:
                    self.destroy_keys()
                except Busy:  # for a moment
                    continue
                except FacegalleryError:
                    vault_answers = False

    def try_again(self) -> None:
        """Do what was left pending: rows of erased galleries, keys to destroy, logs to empty, snapshots of the former.

        Raises:
            FacegalleryError: what could not be done; the rest was.
        """
        try_each(
            [
                self._end_erasures,
                self.destroy_keys,
                lambda: empty_log(self.vault.engine),
                lambda: empty_log(self.engine),
                self._drop_gone,
            ]
        )

    def erase_what_came_back(self) -> int:
        """Erase what a restored backup brought back, of the database or of the vault; answers how many subjects.

        A subject whose key was destroyed is a forgotten one out of an old database. A key that this database has seen
        destroyed and that is there again comes out of an old vault.
        """
        self._destroy_again()
        galleries: dict[int, Gallery] = {}
        erased = 0
        for ids in self.vault.destroyed_keys():
            if is_ending():
                break
            dead = set(ids)
            with self._sessions.reading() as session:
                query = select(SubjectRow.id, SubjectRow.gallery_id).where(SubjectRow.key_id.in_(ids))
                found = session.execute(query).all()
                for gallery_id in {gallery_id for _, gallery_id in found} - set(galleries):
                    if (gallery := gallery_with(session, gallery_id)) is not None:
                        galleries[gallery_id] = gallery
            for gallery_id in {gallery_id for _, gallery_id in found} & set(galleries):
                own = [subject_id for subject_id, gallery in found if gallery == gallery_id]
                with suppress(GalleryNotFound):  # it was erased meanwhile, with all of them
                    for first in range(0, len(own), ERASED_AT_ONCE):
                        if is_ending():
                            break
                        some = own[first : first + ERASED_AT_ONCE]
                        erased += self.erase_those(galleries[gallery_id], some, _has_key_of(dead), why="erase-again")
                        let_others_write(self.engine)
        for gallery in galleries.values():
            self.finish(gallery)
        if erased:
            _log.warning("subjects.erased_again", subjects=erased, reason="a backup brought back what was forgotten")
        return erased

    def _destroy_again(self) -> None:
        after = ""
        while True:
            query = select(KeyToDestroyRow.key_id).where(KeyToDestroyRow.destroyed, KeyToDestroyRow.key_id > after)
            with self._sessions.reading() as session:
                ids = session.scalars(query.order_by(KeyToDestroyRow.key_id).limit(_MANY)).all()
            if not ids or is_ending():
                return
            if again := self.vault.destroy(self.vault.undestroyed(ids)):  # as a rule none, and nothing is written
                _log.warning("keys.destroyed_again", keys=again, reason="an old vault was restored")
            after = ids[-1]

    def _erase_rows(self, action: str, gallery: str, key: str) -> _ErasedRows:
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            row = subject_row(session, owner, key)
            inherited = select(func.count()).select_from(InheritedKeyRow).filter_by(subject_id=row.id)
            keys = int(row.key_id is not None) + (session.scalar(inherited) or 0)
            templates = erase_subject(session, owner, row)
            session.flush()
            self._journal.write(session, Event(action, gallery, (key,), {"templates": templates}))
            return _ErasedRows(gallery_of(owner), templates, keys, enrolled_at=row.created_at, erased_at=now())


def _out_of_time() -> bool:
    return is_ending() or seconds_left() <= 0


def _has_key_of(dead: set[str]) -> Due:
    return lambda _gallery, row: row.key_id in dead
