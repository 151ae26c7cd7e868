"""Twins, the templates of one crop that two subjects have: one of the two goes when the subjects are merged."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.gallery.crops import is_whole
from app.gallery.sealing.encryption import Flaw, RowIdentity, RowSeals, SealedRow
from app.gallery.sql.rows import beside_templates
from app.gallery.sql.templates import closed_templates
from app.gallery.tables import CropRow, SpareEmbeddingRow, SubjectRow, TemplateRow


def complete_twins(
    session: Session,
    seals: RowSeals,
    twins: Sequence[tuple[TemplateRow, TemplateRow]],
    *,
    source: SubjectRow,
    target: SubjectRow,
    dimension: int,
) -> list[TemplateRow]:
    """Give the target's templates what theirs lack and the source's, which are about to go, have.

    That is the embedding, the crop, embeddings of other extractors; what does not open counts as lacking, on both
    sides, and so does a crop of the target that is not its template's. Nothing is flushed.

    Args:
        session: of a transaction that writes.
        seals: that the values were sealed with.
        twins: templates of the source, each with the one of the target that has the same crop.
        source: the subject that goes.
        target: the subject that stays.
        dimension: D of their gallery.

    Returns:
        Templates of the target that open by now, and did not.

    Raises:
        KeyUnavailable: the target's key is not in the vault.
    """
    digests = {kept.id: kept.crop_sha256 for _, kept in twins}
    pairs = [(gone.id, kept.id) for gone, kept in twins]
    between = _Between(session, seals, source, target, pairs, digests)
    closed = {
        one.id for one in closed_templates(seals, [(kept, target.key_id) for _, kept in twins], dimension=dimension)
    }
    mended = [(gone, kept) for gone, kept in twins if kept.id in closed]
    useless = {
        one.id for one in closed_templates(seals, [(gone, source.key_id) for gone, _ in mended], dimension=dimension)
    }
    mended = [(gone, kept) for gone, kept in mended if gone.id not in useless]
    values = [(kept.id, gone.embedding) for gone, kept in mended]
    for (_, kept), sealed in zip(mended, between.sealed_anew("template", values), strict=True):
        if sealed is not None:
            kept.embedding = sealed
    between.complete_crops()
    between.complete_spares()
    return [kept for _, kept in mended]


@dataclass(frozen=True, slots=True)
class _Between:
    """What goes from one subject to the other, for pairs of template ids (gone, kept) and the kept ones' digests."""

    session: Session
    seals: RowSeals
    source: SubjectRow
    target: SubjectRow
    pairs: Sequence[tuple[int, int]]
    digests: dict[int, str]

    def complete_crops(self) -> None:
        """Give kept templates the crops that they lack."""
        rows = {row.template_id: row for row in beside_templates(self.session, CropRow, self._ids)}
        own = {kept: rows[kept].image for _, kept in self.pairs if kept in rows}
        opened = self._opened("crop", list(own.items()), self.target)
        whole = {
            kept
            for kept, image in zip(own, opened, strict=True)
            if image is not None and is_whole(image, sha256=self.digests[kept])
        }
        wanted = [(gone, kept) for gone, kept in self.pairs if gone in rows and kept not in whole]
        values = [(kept, rows[gone].image) for gone, kept in wanted]
        for (_, kept), sealed in zip(wanted, self.sealed_anew("crop", values), strict=True):
            if sealed is not None:
                self.session.merge(CropRow(template_id=kept, image=sealed))

    def complete_spares(self) -> None:
        """Give kept templates the embeddings of other extractors that they lack."""
        kept_of, theirs, own = dict(self.pairs), list[SpareEmbeddingRow](), dict[str, dict[int, bytes]]()
        for row in beside_templates(self.session, SpareEmbeddingRow, self._ids):
            if row.template_id in kept_of:
                theirs.append(row)
            else:
                own.setdefault(row.extractor, {})[row.template_id] = row.embedding
        whole = {extractor: self._whole(values) for extractor, values in own.items()}
        wanted = [row for row in theirs if kept_of[row.template_id] not in whole.get(row.extractor, set())]
        values = [(kept_of[row.template_id], row.embedding) for row in wanted]
        for row, sealed in zip(wanted, self.sealed_anew("template", values), strict=True):
            if sealed is not None:
                self.session.merge(
                    SpareEmbeddingRow(
                        template_id=kept_of[row.template_id],
                        extractor=row.extractor,
                        gallery_id=row.gallery_id,
                        previous=row.previous,
                        embedding=sealed,
                    )
                )

    def sealed_anew(self, kind: str, values: Sequence[tuple[int, bytes]]) -> list[bytes | None]:
        """Values (kept template, sealed for the source), sealed for the target; None for one that does not open."""
        opened = self._opened(kind, values, self.source)
        good = [
            (RowIdentity(kind, self.target.gallery_id, self.target.id, self.digests[kept]), value)
            for (kept, _), value in zip(values, opened, strict=True)
            if value is not None
        ]
        sealed = iter(self.seals.seal(self.target.key_id, good) if good else ())
        return [None if value is None else next(sealed) for value in opened]

    @property
    def _ids(self) -> list[int]:
        return [one for pair in self.pairs for one in pair]

    def _whole(self, values: dict[int, bytes]) -> set[int]:
        """The kept templates whose own embedding opens."""
        opened = self._opened("template", list(values.items()), self.target)
        return {kept for kept, value in zip(values, opened, strict=True) if value is not None}

    def _opened(self, kind: str, values: Sequence[tuple[int, bytes]], subject: SubjectRow) -> list[bytes | None]:
        rows = [
            SealedRow(subject.key_id, RowIdentity(kind, subject.gallery_id, subject.id, self.digests[kept]), value)
            for kept, value in values
        ]
        return [None if isinstance(value, Flaw) else value for value in self.seals.open(rows)]
