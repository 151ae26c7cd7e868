"""KeyStore: the keys in SQL."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import Engine, or_, select, text, update
from sqlalchemy.orm import Session

from app.access.errors import KeyNotFound, PepperUnusable
from app.access.keys import ALL_SCOPES, ApiKey, KeyHasher, Scope, StoredKey, new_key, new_key_id
from app.access.tables import ApiKeyRow
from app.gallery.errors import InvalidInput
from app.gallery.journal import Event, Journal
from app.gallery.names import normalise_gallery_name, normalise_name
from app.gallery.sql.rows import Sessions
from app.gallery.tables import now

_USED_EVERY = timedelta(minutes=1)


class KeyStore:
    """Makes, lists, finds, revokes and rotates keys; safe to call from many threads.

    Nothing is kept in the process, so that a revoked key is refused by every process on its next call.
    """

    def __init__(self, engine: Engine, hasher: KeyHasher, journal: Journal) -> None:
        self._sessions = Sessions(engine)
        self._postgresql = engine.dialect.name == "postgresql"
        self._hasher = hasher
        self._journal = journal

    def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        galleries: Iterable[str] | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key; answers what is kept of it, and the key itself, which is not.

        Raises:
            InvalidInput: a name that is none, no scope, an empty list of galleries, or an expiry in the past.
        """
        with self._sessions.writing() as session:
            return self._insert(session, name, scopes, galleries, expires_at)

    def first_key(self) -> str | None:
        """A key for everything where no key was ever made; None where one was.

        Raises:
            PepperUnusable: there are keys, and another pepper hashed them.
        """
        with self._sessions.writing() as session:
            if self._postgresql:  # of two processes that start at once, one finds the other's key
                session.execute(text("LOCK TABLE api_key IN SHARE ROW EXCLUSIVE MODE"))
            peppers = set(session.scalars(select(ApiKeyRow.pepper_id)))
            if not peppers:
                return self._insert(session, "first key", ALL_SCOPES, None, None)[1]
        if self._hasher.pepper_id not in peppers:
            raise PepperUnusable(
                "the keys were hashed with another pepper, so that no key would be taken; put the file `key-pepper` "
                "or FACEGALLERY_KEY_PEPPER back, or see `facegallery audit begin-anew --help`"
            )
        return None

    def keys(self) -> tuple[ApiKey, ...]:
        """All keys in the order they were made, revoked ones too."""
        query = select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
        with self._sessions.reading() as session:
            return tuple(_key(row) for row in session.scalars(query))

    def find(self, key_id: str) -> StoredKey | None:
        """The key with that id, as it is at this moment; one indexed row."""
        with self._sessions.reading() as session:
            row = session.get(ApiKeyRow, key_id)
            return None if row is None else StoredKey(_key(row), row.digest, row.old_digest)

    def revoke(self, key_id: str) -> ApiKey:
        """Refuse a key from now on; again changes nothing.

        Raises:
            KeyNotFound: no key has that id.
        """
        with self._sessions.writing() as session:
            row = _row(session, key_id)
            if row.revoked_at is None:
                row.revoked_at = now()
                self._journal.write(session, Event("revoke-key", details={"key": key_id, "name": row.name}))
            return _key(row)

    def rotate(self, key_id: str, *, grace: timedelta = timedelta()) -> tuple[ApiKey, str]:
        """Give a key a new secret; the old one is taken for the grace time, none but the last two ever.

        Raises:
            KeyNotFound: no key has that id.
            InvalidInput: it was revoked, or a grace time below zero.
        """
        if grace < timedelta():
            raise InvalidInput("a grace time is not below zero", part="grace")
        with self._sessions.writing() as session:
            row = _row(session, key_id)
            if row.revoked_at is not None:
                raise InvalidInput(f"key {key_id} was revoked; create another", part="key")
            key = new_key(key_id)
            row.old_digest, row.old_until = (row.digest, now() + grace) if grace else (None, None)
            row.digest, row.pepper_id = self._hasher.digest(key), self._hasher.pepper_id
            details = {"key": key_id, "name": row.name, "grace_seconds": grace.total_seconds()}
            self._journal.write(session, Event("rotate-key", details=details))
            session.flush()
            return _key(row), key

    def used(self, key: ApiKey, at: datetime) -> None:
        """Write that a key is in use, at most once a minute whatever the number of processes."""
        due = at - _USED_EVERY
        unwritten = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < due)
        with self._sessions.writing() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key.id, unwritten).values(last_used_at=at))

    def is_unwritten(self, key: ApiKey, at: datetime) -> bool:
        """Whether the last call that is written is more than a minute ago."""
        return key.last_used_at is None or key.last_used_at < at - _USED_EVERY

    def _insert(
        self,
        session: Session,
        name: str,
        scopes: Iterable[Scope],
        galleries: Iterable[str] | None,
        expires_at: datetime | None,
    ) -> tuple[ApiKey, str]:
        wanted = sorted(set(scopes))
        limits = None if galleries is None else sorted({normalise_gallery_name(gallery) for gallery in galleries})
        if not wanted:
            raise InvalidInput("a key needs a scope", part="scope")
        if limits is not None and not limits:
            raise InvalidInput("name a gallery, or leave the limit out", part="gallery")
        if expires_at is not None and expires_at <= now():
            raise InvalidInput("a key expires in the future", part="expires")
        key_id = new_key_id()
        key = new_key(key_id)
        row = ApiKeyRow(
            id=key_id,
            name=normalise_name(name, part="name"),
            digest=self._hasher.digest(key),
            pepper_id=self._hasher.pepper_id,
            scopes=[str(scope) for scope in wanted],
            galleries=limits,
            expires_at=expires_at,
        )
        session.add(row)
        details = {"key": key_id, "name": row.name, "scopes": row.scopes, "galleries": limits}
        self._journal.write(
            session, Event("create-key", details=details | {"expires_at": expires_at and expires_at.isoformat()})
        )
        session.flush()
        return _key(row), key


def _row(session: Session, key_id: str) -> ApiKeyRow:
    row = session.scalar(select(ApiKeyRow).filter_by(id=key_id).with_for_update())
    if row is None:
        raise KeyNotFound(f"there is no key {key_id!r}; `facegallery keys list` shows them", part="key")
    return row


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=frozenset(Scope(name) for name in row.scopes),
        galleries=None if row.galleries is None else frozenset(row.galleries),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        old_until=row.old_until,
    )
