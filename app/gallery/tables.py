"""The tables. SQL is the truth; an index is a cache that can be rebuilt from it."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from app.gallery.points import new_mark

# SQLite counts only in its INTEGER type.
_Id = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with a zone, kept in UTC; SQLite drops the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """The moment in UTC.

        Raises:
            ValueError: it has no zone, so that nobody knows which moment it is.
        """
        if value is None:
            return None
        if value.utcoffset() is None:
            raise ValueError("a moment without a zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """The stored moment with its zone."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Root of the mapped tables."""


class GalleryRow(Base):
    """A named set of subjects; it belongs to one extractor."""

    __tablename__ = "gallery"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    extractor: Mapped[str] = mapped_column(String(200))
    dimension: Mapped[int]
    revision: Mapped[int] = mapped_column(BigInteger, default=0)
    mark: Mapped[int] = mapped_column(BigInteger, default=new_mark, server_default=text("0"))  # see `Point`
    erasure: Mapped[str | None] = mapped_column(String(32))  # the last that snapshots may still have to follow
    policy: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    privacy: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))  # see `PrivacyRules`
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class SubjectRow(Base):
    """One enrolled person, known by a key that the caller chooses."""

    __tablename__ = "subject"
    __table_args__ = (
        UniqueConstraint("gallery_id", "key"),
        Index("ix_subject_key_id", "key_id", unique=True),
        Index("ix_subject_gallery_id", "gallery_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey("gallery.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(200))
    # `metadata` is taken by the declarative base.
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON, default=dict)
    key_id: Mapped[str | None] = mapped_column(String(32))  # of the key in the vault; None: not sealed
    consent: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # kept where the gallery's rules ask for it
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class TemplateRow(Base):
    """One stored embedding of one face; an id is never used twice."""

    __tablename__ = "template"
    __table_args__ = (
        UniqueConstraint("subject_id", "crop_sha256"),
        Index("ix_template_gallery_id", "gallery_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey("gallery.id", ondelete="CASCADE"))
    subject_id: Mapped[int] = mapped_column(ForeignKey("subject.id", ondelete="CASCADE"))
    embedding: Mapped[bytes] = mapped_column(LargeBinary)  # little-endian float32, sealed with the subject's key
    # The type is named because SQLAlchemy 2.0 and 2.1 would choose different ones.
    detection_score: Mapped[float] = mapped_column(Float)
    face_size: Mapped[float] = mapped_column(Float)
    sharpness: Mapped[float] = mapped_column(Float)
    pose: Mapped[dict[str, float]] = mapped_column(JSON)  # yaw, pitch, roll in degrees
    crop_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class CropRow(Base):
    """The aligned crop of a template, where crops are kept; it goes with its template."""

    __tablename__ = "crop"

    template_id: Mapped[int] = mapped_column(
        ForeignKey("template.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    image: Mapped[bytes] = mapped_column(LargeBinary)  # PNG, 112×112, RGB


class ImportedPhotoRow(Base):
    """From which file a template was imported, so that a second import can pass the file over."""

    __tablename__ = "imported_photo"

    template_id: Mapped[int] = mapped_column(
        ForeignKey("template.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    photo_sha256: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


class SpareEmbeddingRow(Base):
    """A template's embedding by another extractor than the gallery's: one it moves to, or one it has left."""

    __tablename__ = "spare_embedding"
    __table_args__ = (Index("ix_spare_embedding_gallery_id", "gallery_id", "extractor"),)

    template_id: Mapped[int] = mapped_column(
        ForeignKey("template.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    extractor: Mapped[str] = mapped_column(String(200), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(ForeignKey("gallery.id", ondelete="CASCADE"))
    previous: Mapped[bool]  # left behind by a switch; else made for one that is to come
    embedding: Mapped[bytes] = mapped_column(LargeBinary)  # little-endian float32


class SetAsideRow(Base):
    """A template that could not follow its gallery to another extractor; it comes back if the gallery goes back."""

    __tablename__ = "set_aside_template"

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=False)
    gallery_id: Mapped[int] = mapped_column(ForeignKey("gallery.id", ondelete="CASCADE"), index=True)
    subject_id: Mapped[int] = mapped_column(ForeignKey("subject.id", ondelete="CASCADE"), index=True)
    extractor: Mapped[str] = mapped_column(String(200))
    embedding: Mapped[bytes] = mapped_column(LargeBinary)
    detection_score: Mapped[float] = mapped_column(Float)
    face_size: Mapped[float] = mapped_column(Float)
    sharpness: Mapped[float] = mapped_column(Float)
    pose: Mapped[dict[str, float]] = mapped_column(JSON)
    crop_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    crop: Mapped[bytes | None] = mapped_column(LargeBinary)  # as in `CropRow`, where it was kept


class ChangeRow(Base):
    """What a revision of a gallery changed, so that every process can follow it."""

    __tablename__ = "change"

    gallery_id: Mapped[int] = mapped_column(ForeignKey("gallery.id", ondelete="CASCADE"), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    template_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    subject_id: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String(10))  # add, remove, rebuild
    mark: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))  # of the revision, see `Point`
    previous: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))  # mark of the revision before


class FollowerRow(Base):
    """How far a process, or a snapshot, has followed a gallery: older changes are needed by nobody."""

    __tablename__ = "follower"

    gallery_id: Mapped[int] = mapped_column(ForeignKey("gallery.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)


class InheritedKeyRow(Base):
    """Key of a subject that was merged into another: it opens what backups hold, and goes when that other is erased.

    A trigger lists it then, as it does the subject's own (see `KeyToDestroyRow`).
    """

    __tablename__ = "inherited_key"

    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    subject_id: Mapped[int] = mapped_column(ForeignKey("subject.id", ondelete="CASCADE"), index=True)


class KeyToDestroyRow(Base):
    """Key of an erased subject; a trigger writes the row with the erasure. It stays, to be applied to a restored vault.

    `destroyed` is set once the vault has destroyed the key.
    """

    __tablename__ = "key_to_destroy"

    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    destroyed: Mapped[bool] = mapped_column(default=False, server_default=text("false"))


_left = KeyToDestroyRow.destroyed.is_(False)
Index("ix_key_to_destroy_left", KeyToDestroyRow.key_id, sqlite_where=_left, postgresql_where=_left)


class SweepRow(Base):
    """One row: the last moment in which a clock was believed or somebody written, and since when a leap is in doubt."""

    __tablename__ = "sweep"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    done_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    doubted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class StorageToDropRow(Base):
    """What an engine outside the process keeps of an erased gallery; the row is written with the erasure.

    It stays for a while, as a process that has not heard of the erasure yet may make the table or collection anew, and
    where no engine is set, until there is one. It says nothing about anybody.
    """

    __tablename__ = "storage_to_drop"

    prefix: Mapped[str] = mapped_column(String(60), primary_key=True)  # see `storage_prefix`
    since: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
