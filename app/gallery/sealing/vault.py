"""The vault: wrapped keys in a database of their own, so that a backup of the gallery's database holds none of them.

A destroyed key leaves its id behind, so that a key that was destroyed is told from one that is missing.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import cast

import structlog
from sqlalchemy import Engine, Index, LargeBinary, String, Table, delete, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from app.gallery.errors import KeyUnavailable, MasterKeyMissing
from app.gallery.sealing.master_keys import KEY_BYTES, MasterKey, MasterKeys, load_master_keys
from app.gallery.sql.database import another_value, database_errors, empty_log, values_of
from app.gallery.sql.rows import in_parts
from app.gallery.tables import UtcDateTime, now

_MANY = 5_000  # ids of one query: SQLite takes 32 thousand
_log = structlog.get_logger()


class VaultBase(DeclarativeBase):
    """Root of the vault's tables, which are no part of the gallery's database."""


class DataKeyRow(VaultBase):
    """A key, wrapped by a master key; a destroyed one has neither."""

    __tablename__ = "data_key"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    purpose: Mapped[str] = mapped_column(String(20), index=True)
    name: Mapped[str | None] = mapped_column(String(40), unique=True)  # of a key that there is once
    master: Mapped[str | None] = mapped_column(String(16), index=True)
    wrapped: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    destroyed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


_destroyed = DataKeyRow.destroyed_at.is_not(None)
Index("ix_data_key_destroyed", DataKeyRow.id, sqlite_where=_destroyed, postgresql_where=_destroyed)


class VaultStateRow(VaultBase):
    """One row: which master key wraps, and since when every row of the gallery's database is sealed."""

    __tablename__ = "vault_state"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    master: Mapped[str] = mapped_column(String(16))
    sealed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key of 32 bytes and its id, 32 hexadecimal digits."""

    id: str
    secret: bytes = field(repr=False)


class Vault:
    """Makes, opens and destroys keys; safe to call from many threads and processes.

    Nothing is kept in memory but the master keys: a destroyed key is destroyed for every process at once.
    """

    def __init__(self, engine: Engine, masters: MasterKeys) -> None:
        self.engine = engine
        self.masters = masters
        self._immediate = engine.execution_options(immediate=True)

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with database_errors(), Session(self._immediate) as session, session.begin():
            yield session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with database_errors(), Session(self.engine) as session:
            yield session

    # -- keys

    def new_key(self, purpose: str) -> DataKey:
        """A new random key, wrapped and stored."""
        return self.new_keys(purpose, 1)[0]

    def new_keys(self, purpose: str, count: int) -> list[DataKey]:
        """So many new keys in one transaction."""
        with self._writing() as session:
            master = self._master(session)
            made = [DataKey(os.urandom(16).hex(), os.urandom(KEY_BYTES)) for _ in range(count)]
            session.add_all(_row(key, purpose, None, master) for key in made)
            return made

    def named_key(self, name: str) -> DataKey:
        """The one key of that name, made on first use."""
        with self._writing() as session:
            master = self._master(session, alone=True)  # two first uses at the same moment make one key
            row = session.scalar(select(DataKeyRow).filter_by(name=name))
            if row is None:
                made = DataKey(os.urandom(16).hex(), os.urandom(KEY_BYTES))
                session.add(_row(made, "service", name, master))
                return made
            secret = self._unwrap(row.id, row.purpose, row.master, row.wrapped)
            if secret is None:
                raise MasterKeyMissing(f"the vault's key {name!r} is damaged; restore the vault from its backup")
            return DataKey(row.id, secret)

    def open_keys(self, ids: Sequence[str]) -> dict[str, bytes | None]:
        """The keys with these ids; None for one that was destroyed; one that is missing or damaged is left out.

        Raises:
            MasterKeyMissing: a key is wrapped by a master key that was not given.
        """
        opened: dict[str, bytes | None] = {}
        columns = select(DataKeyRow.id, DataKeyRow.purpose, DataKeyRow.master, DataKeyRow.wrapped)
        for asked in in_parts(list(dict.fromkeys(ids)), _MANY):
            with self._reading() as session:
                rows = session.execute(columns.where(DataKeyRow.id.in_(asked))).all()
            for key_id, purpose, master, wrapped in rows:
                if wrapped is None:
                    opened[key_id] = None
                elif (secret := self._unwrap(key_id, purpose, master, wrapped)) is not None:
                    opened[key_id] = secret
                else:
                    _log.error("key.damaged", key=key_id)
        return opened

    def destroy(self, ids: Sequence[str]) -> int:
        """Destroy keys for good: their bytes are overwritten, their ids stay; answers how many were not yet."""
        destroyed = 0
        for asked in in_parts(ids, _MANY):
            statement = (
                update(DataKeyRow)
                .where(DataKeyRow.id.in_(asked), DataKeyRow.destroyed_at.is_(None))
                .values(master=None, wrapped=None, destroyed_at=now())
                .returning(DataKeyRow.id)
            )
            with self._writing() as session:
                destroyed += len(session.execute(statement).all())
        if destroyed:
            empty_log(self.engine)
        return destroyed

    def discard(self, purpose: str, *, keep: Sequence[str] = ()) -> int:
        """Destroy the keys of a purpose but some, and forget that there were any; answers how many.

        For keys of caches, of which nobody ever asks whether one was destroyed or lost.
        """
        gone = delete(DataKeyRow).where(DataKeyRow.purpose == purpose, DataKeyRow.id.not_in(keep))
        with self._writing() as session:
            discarded = len(session.scalars(gone.returning(DataKeyRow.id)).all())
        if discarded:
            empty_log(self.engine)
        return discarded

    def purposes(self, beginning: str) -> set[str]:
        """The purposes of the keys that are there, of those that begin so."""
        with self._reading() as session:
            return {one for one in values_of(session, DataKeyRow.purpose) if one.startswith(beginning)}

    def ids(self, purposes: Sequence[str]) -> set[str]:
        """Ids of the keys of some purposes that are there."""
        found = set[str]()
        for asked in in_parts(purposes, _MANY):
            own = select(DataKeyRow.id).where(DataKeyRow.purpose.in_(asked), DataKeyRow.destroyed_at.is_(None))
            with self._reading() as session:
                found.update(session.scalars(own))
        return found

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of some ids (at most 5,000) that the vault has or had."""
        with self._reading() as session:
            return set(session.scalars(select(DataKeyRow.id).where(DataKeyRow.id.in_(ids))))

    def undestroyed(self, ids: Sequence[str]) -> Sequence[str]:
        """Those of some ids (at most 5,000) whose keys are there."""
        there = select(DataKeyRow.id).where(DataKeyRow.id.in_(ids), DataKeyRow.destroyed_at.is_(None))
        with self._reading() as session:
            return session.scalars(there).all()

    def destroyed_keys(self) -> Iterator[list[str]]:
        """Ids of all destroyed keys, in lists that one query can carry."""
        after = ""
        while True:
            query = select(DataKeyRow.id).where(DataKeyRow.destroyed_at.is_not(None), DataKeyRow.id > after)
            with self._reading() as session:
                found = list(session.scalars(query.order_by(DataKeyRow.id).limit(_MANY)))
            if not found:
                return
            yield found
            after = found[-1]

    # -- master keys

    @property
    def master(self) -> str:
        """Id of the master key that wraps."""
        with self._reading() as session:
            return session.scalars(select(VaultStateRow.master)).one()

    def masters_in_use(self) -> set[str]:
        """Ids of the master keys that are needed: the one that wraps, and those that have wrapped any key."""
        with self._reading() as session:
            return {session.scalars(select(VaultStateRow.master)).one(), *values_of(session, DataKeyRow.master)}

    def wrapped_by(self) -> dict[str, int]:
        """How many keys each master key has wrapped, by its id; all keys are gone through."""
        query = select(DataKeyRow.master, func.count()).where(DataKeyRow.master.is_not(None))
        with self._reading() as session:
            return {str(master): count for master, count in session.execute(query.group_by(DataKeyRow.master))}

    def use_master(self, master: MasterKey) -> None:
        """Have every process wrap with this key from now on."""
        with self._writing() as session:
            session.execute(update(VaultStateRow).values(master=master.id))

    def rewrap(self, limit: int) -> int:
        """Wrap so many keys anew that another master key has wrapped; answers how many that were.

        Nothing sealed with them is touched. The rows are locked, so that no destroyed key comes back.
        """
        with self._writing() as session:
            master = self._master(session)
            # By equality, for which there is an index: those that were wrapped already are not looked through again.
            other = another_value(session, DataKeyRow.master, master.id)
            if other is None:
                return 0
            rows = session.execute(
                select(DataKeyRow.id, DataKeyRow.purpose, DataKeyRow.master, DataKeyRow.wrapped)
                .where(DataKeyRow.master == other)
                .limit(limit)
                .with_for_update()
            ).all()
            changed = []
            for key_id, purpose, old, wrapped in rows:
                secret = self._unwrap(key_id, purpose, old, wrapped)
                if secret is None:
                    raise MasterKeyMissing(f"key {key_id} of the vault is damaged; restore the vault from its backup")
                sealed = master.wrap(secret, _associated(key_id, purpose))
                changed.append({"id": key_id, "master": master.id, "wrapped": sealed})
            if changed:
                session.execute(update(DataKeyRow), changed)
        if changed:
            empty_log(self.engine)
        return len(changed)

    # -- the gallery's database

    @property
    def sealed(self) -> bool:
        """Whether every row of the gallery's database was sealed once: what is not, then, was tampered with."""
        with self._reading() as session:
            return session.scalars(select(VaultStateRow.sealed_at)).one() is not None

    def note_sealed(self) -> None:
        """Remember that every row is sealed."""
        with self._writing() as session:
            session.execute(update(VaultStateRow).values(sealed_at=now()))

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def _master(self, session: Session, *, alone: bool = False) -> MasterKey:
        """The key to wrap with, which no rotation changes before this transaction ends."""
        query = select(VaultStateRow.master).with_for_update(read=not alone)
        return self.masters.get(session.scalars(query).one())

    def _unwrap(self, key_id: str, purpose: str, master: str | None, wrapped: bytes | None) -> bytes | None:
        if master is None or wrapped is None:
            return None
        return self.masters.get(master).unwrap(wrapped, _associated(key_id, purpose))


def open_vault(engine: Engine, *, master_key: str | None, master_key_file: Path, expected: bool) -> Vault:
    """The vault of a database; an empty one is set up, with a new master key where there is none.

    Args:
        engine: the vault's own database.
        master_key: keys as base64, or None for those of the file.
        master_key_file: a key as base64 on each line.
        expected: whether the gallery's database has sealed rows, so that an empty vault must be the wrong one.

    Raises:
        MasterKeyMissing: no master key, or the wrong one.
        KeyUnavailable: an empty vault where one with keys is expected.
        DatabaseUnavailable, StorageUnwritable: as named.
    """
    with database_errors(), engine.execution_options(immediate=True).begin() as connection:
        if connection.dialect.name == "postgresql":  # two processes must not make the tables at the same moment
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('facegallery vault'))"))
        VaultBase.metadata.create_all(connection)
        for index in cast(Table, DataKeyRow.__table__).indexes:  # a vault of before may lack one
            index.create(connection, checkfirst=True)
    with database_errors(), Session(engine) as session:
        empty = session.scalar(select(VaultStateRow.id)) is None
    if empty and expected:
        raise KeyUnavailable(
            "the database has sealed templates, but the vault is empty; restore the vault from its backup, or set "
            "FACEGALLERY_VAULT_URL to where it is; without a backup see docs/operations.md#without-a-copy"
        )
    masters = load_master_keys(master_key, master_key_file, make=empty)
    vault = Vault(engine, masters)
    with database_errors(), Session(engine.execution_options(immediate=True)) as session, session.begin():
        if session.scalar(select(VaultStateRow.id)) is None:
            if session.get_bind().dialect.name == "postgresql":
                session.execute(text("SELECT pg_advisory_xact_lock(hashtext('facegallery vault'))"))
            if session.scalar(select(VaultStateRow.id)) is None:
                session.add(VaultStateRow(id=1, master=masters.first.id))
    for needed in vault.masters_in_use():
        masters.get(needed)
    return vault


def _row(key: DataKey, purpose: str, name: str | None, master: MasterKey) -> DataKeyRow:
    wrapped = master.wrap(key.secret, _associated(key.id, purpose))
    return DataKeyRow(id=key.id, purpose=purpose, name=name, master=master.id, wrapped=wrapped)


def _associated(key_id: str, purpose: str) -> bytes:
    return f"facegallery/key/1/{purpose}/{key_id}".encode()
