"""GalleryHistory: what a process's index is built from and follows."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session

from app.gallery.points import Point
from app.gallery.records import Change, Gallery, OwnerBlock, TemplateBlock
from app.gallery.sealing.encryption import Flaw, PlainRows, RowIdentity, RowSeals, SealedRow
from app.gallery.sql.database import let_others_write
from app.gallery.sql.erased_galleries import is_there
from app.gallery.sql.followers import Report, galleries_to_prune, prune_gallery, write_reports
from app.gallery.sql.galleries import gallery_with
from app.gallery.sql.rows import (
    EMBEDDING,
    Sessions,
    gallery_of,
    gallery_row,
    in_parts,
    open_embeddings,
    record_changes,
    template_block,
    template_identity,
    template_rows,
)
from app.gallery.tables import ChangeRow, FollowerRow, GalleryRow, SubjectRow, TemplateRow

_MANY = 10_000  # rows of one read when an index is built
_PRUNED_AT_ONCE = 10_000  # rows of changes
_PIECES = 10  # at most in one call: it is part of a start, and of an upkeep that has other work

GalleryState = tuple[int, int, str | None]
"""A gallery's revision and mark, and the erasure that snapshots may still have to follow."""
SILENCE = timedelta(hours=1)
"""A process that has not reported for so long is taken for dead."""


class GalleryHistory:
    """The templates of galleries in blocks, and their changes by revision."""

    def __init__(self, engine: Engine, seals: RowSeals | None = None) -> None:
        self._sessions = Sessions(engine)
        self._seals = seals or PlainRows()

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        """All templates of a gallery in blocks, in the order of their ids; one that does not open is left out.

        Blocks that are read after the gallery has moved to another extractor have its dimension.
        """
        after = 0
        while True:
            with self._sessions.reading() as session:
                rows = template_rows(session, TemplateRow.gallery_id == gallery_id, after=after, limit=_MANY)
                point = _point(session, gallery_id)  # after the rows, and by the same connection
            if not rows:
                return
            dimension = rows[0].dimension
            block = template_block(rows, self._seals, dimension=dimension, sessions=self._sessions)
            if len(block.ids):
                yield replace(block, point=point)
            if len(rows) < _MANY:
                return
            after = rows[-1].id

    def owner_blocks(self, gallery_id: int) -> Iterator[OwnerBlock]:
        """The subjects of all templates of a gallery in blocks, in the order of the templates' ids."""
        after, limit = 0, 10 * _MANY
        while True:
            query = (
                select(TemplateRow.id, TemplateRow.subject_id)
                .where(TemplateRow.gallery_id == gallery_id, TemplateRow.id > after)
                .order_by(TemplateRow.id)
                .limit(limit)
            )
            with self._sessions.reading() as session:
                rows = np.array(session.execute(query).all(), np.int64).reshape(-1, 2)
                point = _point(session, gallery_id)  # after the rows, and by the same connection
            if len(rows):
                yield OwnerBlock(rows[:, 0].copy(), rows[:, 1].copy(), point)
            if len(rows) < limit:
                return
            after = int(rows[-1, 0])

    def embeddings(self, template_ids: NDArray[np.int64], dimension: int) -> NDArray[np.float32]:
        """The embeddings (N, D) of templates (N,); a row of NaN for one that is gone or does not open."""
        found = np.full((len(template_ids), dimension), np.nan, np.float32)
        place = {template_id: row for row, template_id in enumerate(template_ids.tolist())}
        wanted = list(place)
        with self._sessions.reading() as session:
            for asked in in_parts(wanted):
                rows = template_rows(session, TemplateRow.id.in_(asked), after=0, limit=None)
                block = template_block(rows, self._seals, dimension=dimension, sessions=self._sessions)
                for template_id, embedding in zip(block.ids.tolist(), block.embeddings, strict=True):
                    found[place[template_id]] = embedding
        return found

    def flaws(self, template_ids: Sequence[int]) -> dict[int, Flaw]:
        """Why templates do not open; one that does, or is gone, is left out."""
        found: dict[int, Flaw] = {}
        with self._sessions.reading() as session:
            for asked in in_parts(template_ids):
                rows = template_rows(session, TemplateRow.id.in_(asked), after=0, limit=None)
                sealed = [SealedRow(row.key_id, template_identity(row), row.embedding) for row in rows]
                for row, value in zip(rows, self._seals.open(sealed), strict=True):
                    if isinstance(value, Flaw):
                        found[row.id] = value
        return found

    def owners(self, gallery_id: int, template_ids: Sequence[int]) -> dict[int, int]:
        """The subjects of a gallery's templates; one that is gone, or another gallery's, is left out."""
        found: dict[int, int] = {}
        with self._sessions.reading() as session:
            for asked in in_parts(template_ids):
                own = (TemplateRow.gallery_id == gallery_id) & TemplateRow.id.in_(asked)
                rows = session.execute(select(TemplateRow.id, TemplateRow.subject_id).where(own))
                found |= dict(rows.all())
        return found

    def has_more_than(self, gallery_id: int, templates: int) -> bool:
        """Whether a gallery has more templates than that."""
        query = select(TemplateRow.id).where(TemplateRow.gallery_id == gallery_id).order_by(TemplateRow.id)
        with self._sessions.reading() as session:
            return session.scalar(query.offset(templates).limit(1)) is not None

    def states(self) -> dict[int, GalleryState]:
        """What there may be to follow in all galleries, by id."""
        columns = select(GalleryRow.id, GalleryRow.revision, GalleryRow.mark, GalleryRow.erasure).where(is_there())
        with self._sessions.reading() as session:
            return {one: (revision, mark, erasure) for one, revision, mark, erasure in session.execute(columns)}

    def galleries(self, ids: Sequence[int]) -> dict[int, Gallery]:
        """Those of some galleries that are there, by id, with their present revisions."""
        with self._sessions.reading() as session:
            parts = (select(GalleryRow).where(GalleryRow.id.in_(asked), is_there()) for asked in in_parts(ids))
            return {row.id: gallery_of(row) for part in parts for row in session.scalars(part)}

    def points(self) -> dict[int, Point]:
        """Where in their history all galleries are at present, by id."""
        with self._sessions.reading() as session:
            rows = session.execute(select(GalleryRow.id, GalleryRow.revision, GalleryRow.mark).where(is_there()))
            return {gallery_id: Point(revision, mark) for gallery_id, revision, mark in rows}

    def gallery(self, gallery_id: int) -> Gallery | None:
        """A gallery with its present revision, None where it is gone."""
        with self._sessions.reading() as session:
            return gallery_with(session, gallery_id)

    def point(self, gallery_id: int) -> Point | None:
        """Where in its history a gallery is at present, None where it is gone."""
        with self._sessions.reading() as session:
            return _point(session, gallery_id)

    def contradiction(self, gallery_id: int, point: Point) -> str | None:
        """Why a gallery's history does not go through a point, as that of a database that was set back.

        None where it does, or where nobody knows any more, as the changes from there on were dropped: who follows from
        that point finds the gap.
        """
        with self._sessions.reading() as session:
            present = _point(session, gallery_id)
            if present is None or point.revision > present.revision:
                return f"it is of revision {point.revision}, the gallery of {present and present.revision}"
            next_one = (ChangeRow.gallery_id == gallery_id) & (ChangeRow.revision == point.revision + 1)
            mark: int | None = present.mark
            if point.revision < present.revision:
                mark = session.scalar(select(ChangeRow.previous).where(next_one).limit(1))
        return f"its revision {point.revision} was undone" if mark not in {None, point.mark} else None

    def changes(self, gallery_id: int, *, after: int, up_to: int) -> list[Change]:
        """The changes of the revisions behind `after`, up to and with `up_to`, in order.

        A template that does not open counts as gone.
        """
        query = (
            select(
                *(ChangeRow.revision, ChangeRow.kind, ChangeRow.template_id, ChangeRow.subject_id),
                *(ChangeRow.mark, ChangeRow.previous, GalleryRow.dimension),
                *(TemplateRow.subject_id, TemplateRow.crop_sha256, TemplateRow.embedding, SubjectRow.key_id),
            )
            .join(GalleryRow, GalleryRow.id == ChangeRow.gallery_id)
            .outerjoin(TemplateRow, TemplateRow.id == ChangeRow.template_id)
            .outerjoin(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
            .where(ChangeRow.gallery_id == gallery_id, ChangeRow.revision > after, ChangeRow.revision <= up_to)
            .order_by(ChangeRow.revision, ChangeRow.template_id)
        )
        with self._sessions.reading() as session:
            found = session.execute(query).all()
        if not found:
            return []
        dimension = found[0].dimension  # read with the embeddings, as the gallery may move to another extractor
        sealed = {
            template_id: SealedRow(key_id, RowIdentity("template", gallery_id, owner, crop_sha256), embedding)
            for _, _, template_id, *_, owner, crop_sha256, embedding, key_id in found
            if embedding is not None
        }
        opened = open_embeddings(list(sealed.items()), self._seals, dimension=dimension, sessions=self._sessions)
        embeddings = {
            template_id: np.frombuffer(value, EMBEDDING)
            for template_id, value in zip(sealed, opened, strict=True)
            if value is not None
        }
        return [
            Change(
                revision=revision,
                kind=cast(Any, kind),
                template_id=template_id,
                subject_id=subject_id,
                embedding=embeddings.get(template_id),
                mark=mark,
                previous=previous,
            )
            for revision, kind, template_id, subject_id, mark, previous, *_ in found
        ]

    def slice_of_changes(self, gallery_id: int, *, after: int, up_to: int) -> tuple[int, int]:
        """Up to which revision changes are well read in one go, and how many revisions that are.

        That is some ten thousand rows, and never the first half of a merge alone. Fewer revisions than lie in between
        mean that some were dropped.
        """
        query = (
            select(ChangeRow.revision, func.count(), func.min(ChangeRow.kind))
            .where(ChangeRow.gallery_id == gallery_id, ChangeRow.revision > after, ChangeRow.revision <= up_to)
            .group_by(ChangeRow.revision)
            .order_by(ChangeRow.revision)
            .limit(_MANY + 2)
        )
        with self._sessions.reading() as session:
            found = session.execute(query).all()
        taken, rows, before = 0, 0, ""
        for revision, count, kind in found:
            rows += count
            if taken and rows > _MANY and (before, kind) != ("remove", "add"):
                return revision - 1, taken
            taken, before = taken + 1, kind
        return up_to, taken

    def request_rebuild(self, gallery: str) -> Gallery:
        """Have every process build its index of the gallery anew, beside its searches."""
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            record_changes(session, owner, "rebuild", [(0, 0)])
            session.flush()
            return gallery_of(owner)

    def snapshots_erased(self, gallery_id: int, erasure: str) -> None:
        """Write down that no snapshot holds any more what was erased so far, unless more has been since."""
        done = update(GalleryRow).where(GalleryRow.id == gallery_id, GalleryRow.erasure == erasure)
        with self._sessions.writing() as session:
            session.execute(done.values(erasure=None))

    # -- who follows

    def report(self, gallery_id: int, follower: str, revision: int) -> None:
        """Write down how far a process, or a snapshot, has followed a gallery."""
        self.report_all([(gallery_id, follower, revision)])

    def report_all(self, reports: Iterable[Report]) -> None:
        """As `report`, some hundred in one transaction.

        A gallery that somebody writes to at the moment gets a transaction of its own: while that is waited for, the
        others would wait as well.
        """
        for part in in_parts(sorted(reports)):  # processes that report the same snapshots lock rows in one order
            with self._sessions.writing() as session:
                busy = write_reports(session, part, wait=len(part) == 1)
            for gallery_id in busy:
                with self._sessions.writing() as session:
                    write_reports(session, [one for one in part if one[0] == gallery_id], wait=True)

    def leave(self, followers: Sequence[str]) -> None:
        """Forget followers that have ended."""
        with self._sessions.writing() as session:
            session.execute(delete(FollowerRow).where(FollowerRow.name.in_(followers)))

    def prune_all(self, gallery_ids: Iterable[int]) -> None:
        """As `prune`, of those galleries in which there is anything to drop; the others cost no write."""
        for part in in_parts(sorted(gallery_ids)):
            with self._sessions.reading() as session:
                due = galleries_to_prune(session, part, silent_for=SILENCE)
            for gallery_id in due:
                self.prune(gallery_id)

    def prune(self, gallery_id: int, *, silent_for: timedelta = SILENCE) -> int:
        """Drop changes that every follower has behind it; answers how many rows that were.

        A follower that was silent for so long, by the database's clock, is dropped; should it live on, it finds a gap
        and loads anew. So is one that reported from so far in the future: the clock was wrong then, and as long as it
        takes to get there the changes would stay. Many changes go in several transactions, so that others get their
        turn, and a hundred thousand at most: the rest is left to the next call.
        """
        dropped = 0
        for _ in range(_PIECES):
            with self._sessions.writing() as session:
                piece = prune_gallery(session, gallery_id, silent_for=silent_for, piece=_PRUNED_AT_ONCE)
            dropped += piece
            if piece < _PRUNED_AT_ONCE:
                break
            let_others_write(self._sessions.engine)
        return dropped


def _point(session: Session, gallery_id: int) -> Point | None:
    point = select(GalleryRow.revision, GalleryRow.mark).where(GalleryRow.id == gallery_id, is_there())
    row = session.execute(point).one_or_none()
    return None if row is None else Point(*row)
