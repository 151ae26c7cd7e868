"""The journal of imports: which photo led to which template."""

from collections.abc import Iterable

from sqlalchemy import Engine, null, select

from app.gallery.crops import is_whole
from app.gallery.sealing.encryption import Flaw, RowSeals, SealedRow
from app.gallery.sql.rows import (
    Sessions,
    crop_identity,
    gallery_row,
    open_embeddings,
    sealed_columns,
    template_identity,
)
from app.gallery.tables import CropRow, GalleryRow, ImportedPhotoRow, SubjectRow, TemplateRow


class ImportJournal:
    """Entries hang on templates and go when they go; safe to call from many threads."""

    def __init__(self, engine: Engine, seals: RowSeals) -> None:
        self._sessions = Sessions(engine)
        self._seals = seals

    def has(self, gallery: str, subject: str, photo_sha256: str, *, with_crop: bool) -> bool:
        """Whether a photo was imported for a subject whose template of it is still there, and opens.

        Args:
            gallery: its name; need not be there.
            subject: its key; need not be there.
            photo_sha256: digest of the photo's bytes.
            with_crop: only if the template's crop is kept, too, and whole.
        """
        crop = CropRow.image if with_crop else null().label("image")
        query = (
            select(TemplateRow.id, TemplateRow.embedding, *sealed_columns(TemplateRow), GalleryRow.dimension, crop)
            .join(ImportedPhotoRow, ImportedPhotoRow.template_id == TemplateRow.id)
            .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
            .join(GalleryRow, GalleryRow.id == SubjectRow.gallery_id)
            .where(ImportedPhotoRow.photo_sha256 == photo_sha256, SubjectRow.key == subject, GalleryRow.name == gallery)
        )
        if with_crop:
            query = query.join(CropRow, CropRow.template_id == TemplateRow.id)
        with self._sessions.reading() as session:
            found = session.execute(query).all()
        if with_crop:
            crops = self._seals.open([SealedRow(row.key_id, crop_identity(row), row.image) for row in found])
            found = [
                row
                for row, image in zip(found, crops, strict=True)
                if not isinstance(image, Flaw) and is_whole(image, sha256=row.crop_sha256)
            ]
        if not found:
            return False
        rows = [(row.id, SealedRow(row.key_id, template_identity(row), row.embedding)) for row in found]
        opened = open_embeddings(rows, self._seals, dimension=found[0].dimension, sessions=self._sessions)
        return any(value is not None for value in opened)

    def remember(self, gallery: str, photos: Iterable[tuple[int, str]]) -> None:
        """Write down which templates came from which photos; templates that are gone by now are passed over.

        Raises:
            GalleryNotFound: the gallery was erased meanwhile.
        """
        wanted = set(photos)
        if not wanted:
            return
        with self._sessions.writing() as session:
            gallery_row(session, gallery, lock=True)  # keeps the templates where they are
            ids = {template_id for template_id, _ in wanted}
            there = set(session.scalars(select(TemplateRow.id).where(TemplateRow.id.in_(ids))))
            known = session.execute(
                select(ImportedPhotoRow.template_id, ImportedPhotoRow.photo_sha256).where(
                    ImportedPhotoRow.template_id.in_(ids)
                )
            )
            wanted -= {(row.template_id, row.photo_sha256) for row in known}
            session.add_all(
                ImportedPhotoRow(template_id=template_id, photo_sha256=photo)
                for template_id, photo in wanted
                if template_id in there
            )
