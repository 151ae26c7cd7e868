"""ReembeddingStore: the SQL of moving a gallery to another extractor."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Engine, exists, func, select
from sqlalchemy.orm import Session

from app.gallery.errors import MoveRefused
from app.gallery.records import Gallery
from app.gallery.reembedding.exchange import exchange_embeddings, has_spare
from app.gallery.sealing.encryption import Flaw, PlainRows, RowIdentity, RowSeals, SealedRow
from app.gallery.sql.database import another_value, let_others_write, lift_limits
from app.gallery.sql.pieces import erase_piece
from app.gallery.sql.rows import (
    EMBEDDING,
    Sessions,
    crop_identity,
    gallery_of,
    gallery_row,
    have_snapshots_erased,
    sealed_columns,
    template_identity,
)
from app.gallery.tables import CropRow, GalleryRow, SetAsideRow, SpareEmbeddingRow, SubjectRow, TemplateRow

_DISCARDED_AT_ONCE = 5_000  # embeddings of one transaction


@dataclass(frozen=True, slots=True)
class IncompleteSubject:
    """A subject that has templates which cannot follow to another extractor."""

    key: str
    missing: int
    templates: int


@dataclass(frozen=True, slots=True)
class KeptCrop:
    """A template's crop as a PNG file, empty where it does not open, and the digest that its pixels must have."""

    template_id: int
    sha256: str
    image: bytes


Embed = Callable[[Sequence[KeptCrop]], tuple[list[int], NDArray[np.float32]]]
"""Embeds crops: the ids of the templates whose crop is whole, and their embeddings (N, D)."""


@dataclass(frozen=True, slots=True)
class Spares:
    """Embeddings of another extractor that a gallery has: `previous` where a switch left them behind."""

    extractor: str
    previous: bool


@dataclass(frozen=True, slots=True)
class Switch:
    """What came of a switch.

    Args:
        state: `done`; `waiting`, templates came that still must be embedded; `refused`, some would be left behind.
        left_behind: subjects of which templates do not follow, as the transaction that switched found them.
        embedded: how many templates it embedded itself.
        unusable: templates of which it found the crop damaged.
    """

    state: Literal["done", "waiting", "refused"]
    left_behind: tuple[IncompleteSubject, ...] = ()
    embedded: int = 0
    unusable: frozenset[int] = frozenset()


class ReembeddingStore:
    """Embeddings of a second extractor beside a gallery's own, and the switch between the two."""

    def __init__(self, engine: Engine, seals: RowSeals | None = None) -> None:
        self._sessions = Sessions(engine)
        self._seals = seals or PlainRows()

    def spares(self, gallery: Gallery) -> Spares | None:
        """Of which other extractor the gallery has embeddings; there is one at most."""
        own = SpareEmbeddingRow.gallery_id == gallery.id
        with self._sessions.reading() as session:
            spare = session.scalar(select(SpareEmbeddingRow.extractor).where(own).limit(1))
            left = session.scalar(select(SpareEmbeddingRow.extractor).where(own, SpareEmbeddingRow.previous).limit(1))
            aside = session.scalar(select(SetAsideRow.extractor).where(SetAsideRow.gallery_id == gallery.id).limit(1))
        found = spare or aside
        return None if found is None else Spares(found, previous=(left or aside) is not None)

    def count_missing(self, gallery: Gallery, extractor: str) -> int:
        """How many templates have no embedding of an extractor yet."""
        with self._sessions.reading() as session:
            return (
                session.scalar(
                    select(func.count()).select_from(TemplateRow).where(_of(gallery.id), ~has_spare(extractor))
                )
                or 0
            )

    def incomplete(self, gallery: Gallery, extractor: str, *, with_crops: bool) -> list[IncompleteSubject]:
        """Subjects with templates that cannot get an embedding of an extractor, by key.

        Args:
            gallery: that should move.
            extractor: to which.
            with_crops: whether a crop helps, because the extractor is at hand.
        """
        with self._sessions.reading() as session:
            return _incomplete(session, gallery.id, extractor, with_crops=with_crops)

    def last_template(self, gallery: Gallery) -> int:
        """The highest id of a template that there is by now; 0 without any."""
        with self._sessions.reading() as session:
            return session.scalar(select(func.max(TemplateRow.id)).where(_of(gallery.id))) or 0

    def crops_to_embed(self, gallery: Gallery, extractor: str, *, after: int, limit: int) -> list[KeptCrop]:
        """Crops of templates without an embedding of an extractor, by id, from the one behind `after`."""
        wanted = _of(gallery.id) & (TemplateRow.id > after) & ~has_spare(extractor)
        with self._sessions.reading() as session:
            return self._crops(session, wanted, limit)

    def add(self, gallery: Gallery, extractor: str, ids: Sequence[int], embeddings: NDArray[np.float32]) -> None:
        """Keep embeddings (N, D) of an extractor beside the gallery's; templates that are gone are passed over.

        Raises:
            GalleryNotFound: it was erased meanwhile.
            MoveRefused: it belongs to another extractor by now, or has embeddings of a third.
            KeyUnavailable: a subject's key is not in the vault.
        """
        with self._sessions.writing() as session:
            owner = self._locked(session, gallery)
            own = SpareEmbeddingRow.gallery_id == owner.id
            if another_value(session, SpareEmbeddingRow.extractor, extractor, own) is not None:
                raise MoveRefused(f"gallery {owner.name!r} has begun to move to another extractor")
            self._keep(session, owner, extractor, dict(zip(ids, embeddings, strict=True)))

    def switch(
        self,
        gallery: Gallery,
        extractor: str,
        *,
        dimension: int | None,
        unusable: Collection[int],
        with_crops: bool,
        without_missing: bool = False,
        embed: Embed | None = None,
        at_most: int = 0,
    ) -> Switch:
        """Exchange a gallery's embeddings for those of another extractor, in one transaction.

        See `exchange_embeddings`; the old ones stay beside the new. Who is left behind is found in that transaction, so
        that nobody who was enrolled a moment ago is left behind without a word. Where people are enrolled all the time
        there is always somebody who was: the last few are embedded while the gallery is locked. What was embedded stays
        also where there were more.

        Args:
            gallery: as it was when the move began.
            extractor: to which.
            dimension: of its embeddings; None: as those that are there.
            unusable: templates whose crop is damaged.
            with_crops: a template with a crop is waited for.
            without_missing: switch although templates are left behind.
            embed: embeds the crops that came last; None: they are waited for.
            at_most: how many of them, as everybody who writes to the gallery waits meanwhile.

        Raises:
            MoveRefused: the gallery belongs to another extractor by now, or there is nothing to go back to.
        """
        made, damaged = 0, frozenset[int]()
        with self._sessions.writing() as session:
            lift_limits(session.connection())  # a million templates take minutes
            owner = self._locked(session, gallery)
            if with_crops:
                left = self._left(session, owner, extractor, unusable, limit=at_most + 1)
                now = left[:at_most]
                if now and embed is not None:
                    ids, embeddings = embed(self._crops(session, TemplateRow.id.in_(now), at_most))
                    self._keep(session, owner, extractor, dict(zip(ids, embeddings, strict=True)))
                    made, damaged = len(ids), frozenset(now) - frozenset(ids)
                if len(left) > made + len(damaged):
                    return Switch("waiting", embedded=made, unusable=damaged)
            left_behind = tuple(_incomplete(session, owner.id, extractor, with_crops=False))
            if left_behind and not without_missing:
                return Switch("refused", left_behind, made, damaged)
            exchange_embeddings(session, self._seals, owner, extractor, dimension=dimension)
            return Switch("done", left_behind, made, damaged)

    def count_others(self, gallery: Gallery) -> int:
        """How many embeddings of other extractors a gallery has."""
        with self._sessions.reading() as session:
            counts = (
                session.scalar(select(func.count()).select_from(table).where(table.gallery_id == gallery.id))
                for table in (SpareEmbeddingRow, SetAsideRow)
            )
            return sum(count or 0 for count in counts)

    def discard(self, gallery: Gallery, *, progress: Callable[[int], None] = lambda _: None) -> int:
        """Erase all embeddings of other extractors that the gallery has; answers how many those were.

        Many go in several transactions, so that others get their turn; what broke off goes on at the next call. Until
        it ends, who goes back is told whose embeddings are gone, as of everybody who was enrolled since. Snapshots by
        these extractors are erased by the service from the first transaction on, as after every erasure.

        Args:
            gallery: whose they are.
            progress: told the embeddings that were erased.

        Raises:
            GalleryNotFound: as named.
            MoveRefused: the gallery moved or was made anew meanwhile: what it has beside its own now is to be kept.
        """
        erased, begun = 0, False
        tables: tuple[type[SpareEmbeddingRow] | type[SetAsideRow], ...] = (SpareEmbeddingRow, SetAsideRow)
        for table in tables:
            piece = _DISCARDED_AT_ONCE
            while piece == _DISCARDED_AT_ONCE:
                with self._sessions.writing() as session:
                    owner = self._locked(session, gallery)
                    if not begun:
                        have_snapshots_erased(owner)
                    piece = erase_piece(session, table, owner.id, most=_DISCARDED_AT_ONCE)
                erased, begun = erased + piece, True
                progress(piece)
                if piece == _DISCARDED_AT_ONCE:
                    let_others_write(self._sessions.engine)
        return erased

    @staticmethod
    def _locked(session: Session, gallery: Gallery) -> GalleryRow:
        owner = gallery_row(session, gallery.name, lock=True)
        now = gallery_of(owner)
        if (now.id, now.extractor) != (gallery.id, gallery.extractor):
            raise MoveRefused(f"gallery {gallery.name!r} was moved or made anew meanwhile; look at it and try again")
        return owner

    def _crops(self, session: Session, wanted: ColumnElement[bool], limit: int) -> list[KeptCrop]:
        query = (
            select(TemplateRow.id, *sealed_columns(TemplateRow), CropRow.image)
            .select_from(TemplateRow)
            .join(CropRow, CropRow.template_id == TemplateRow.id)
            .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
            .where(wanted)
            .order_by(TemplateRow.id)
            .limit(limit)
        )
        rows = session.execute(query).all()
        opened = self._seals.open([SealedRow(row.key_id, crop_identity(row), row.image) for row in rows])
        return [
            KeptCrop(row.id, row.crop_sha256, b"" if isinstance(image, Flaw) else image)
            for row, image in zip(rows, opened, strict=True)
        ]

    def _keep(
        self, session: Session, owner: GalleryRow, extractor: str, values: dict[int, NDArray[np.float32]]
    ) -> None:
        """Keep embeddings (D,) by the ids of templates; `owner` is locked."""
        query = (
            select(TemplateRow.id, *sealed_columns(TemplateRow))
            .select_from(TemplateRow)
            .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
            .where(TemplateRow.id.in_(values), ~has_spare(extractor))
        )
        by_key: dict[str | None, list[tuple[int, RowIdentity]]] = {}
        for row in session.execute(query):
            by_key.setdefault(row.key_id, []).append((row.id, template_identity(row)))
        for key_id, own in by_key.items():
            plain = [(identity, values[one].astype(EMBEDDING).tobytes()) for one, identity in own]
            session.add_all(
                SpareEmbeddingRow(
                    template_id=template_id,
                    extractor=extractor,
                    gallery_id=owner.id,
                    previous=False,
                    embedding=sealed,
                )
                for (template_id, _), sealed in zip(own, self._seals.seal(key_id, plain), strict=True)
            )
        session.flush()

    @staticmethod
    def _left(
        session: Session, owner: GalleryRow, extractor: str, unusable: Collection[int], *, limit: int
    ) -> list[int]:
        """Templates that could still be embedded, some of them: those with a crop that is not known to be damaged.

        The newest first, and no further than that: everybody else who writes waits until they are found.
        """
        query = select(TemplateRow.id).where(_of(owner.id), ~has_spare(extractor), _has_crop())
        newest_first = query.order_by(TemplateRow.id.desc()).execution_options(yield_per=limit)
        with session.scalars(newest_first) as found:
            return list(islice((one for one in found if one not in unusable), limit))


def _of(gallery_id: int) -> ColumnElement[bool]:
    return TemplateRow.gallery_id == gallery_id


def _has_crop() -> ColumnElement[bool]:
    return exists().where(CropRow.template_id == TemplateRow.id).correlate(TemplateRow)


def _incomplete(session: Session, gallery_id: int, extractor: str, *, with_crops: bool) -> list[IncompleteSubject]:
    lost = ~has_spare(extractor) & ~_has_crop() if with_crops else ~has_spare(extractor)
    missing = (
        select(TemplateRow.subject_id, func.count().label("missing"))
        .where(_of(gallery_id), lost)
        .group_by(TemplateRow.subject_id)
        .subquery()
    )
    templates = (
        select(func.count()).where(TemplateRow.subject_id == SubjectRow.id).correlate(SubjectRow).scalar_subquery()
    )
    query = (
        select(SubjectRow.key, missing.c.missing, templates)
        .join(missing, missing.c.subject_id == SubjectRow.id)
        .order_by(SubjectRow.key)
    )
    return [IncompleteSubject(*row) for row in session.execute(query)]
