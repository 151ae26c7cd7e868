"""Tables of keys, of their rates and of the audit log."""

from datetime import datetime

from sqlalchemy import JSON, BigInteger, Float, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.gallery.tables import Base, UtcDateTime, now


class ApiKeyRow(Base):
    """A key without its secret."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    pepper_id: Mapped[str] = mapped_column(String(16))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    galleries: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    old_digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    old_until: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RateBucketRow(Base):
    """Calls that a key or an address has left; on SQLite in a file apart, so that no call waits for an enrolment."""

    __tablename__ = "rate_bucket"

    owner: Mapped[str] = mapped_column(String(80), primary_key=True)
    tokens: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)  # seconds since 1970


class AuditRow(Base):
    """One entry of the audit log; entries are numbered from 1 without gaps, and never changed."""

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    action: Mapped[str] = mapped_column(String(40), index=True)
    entry: Mapped[str] = mapped_column(Text)  # canonical JSON, the very text that is hashed
    hash: Mapped[bytes] = mapped_column(LargeBinary)


class AuditHeadRow(Base):
    """How long the audit log is and how it ends, sealed with the pepper; one row, locked by who adds an entry."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    seal: Mapped[bytes] = mapped_column(LargeBinary)
