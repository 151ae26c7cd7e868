"""A change of the master key, by one process at a time: two would each drop the key that the other wraps with."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from app.gallery.errors import Busy, MasterKeyMissing
from app.gallery.held_file import held
from app.gallery.sealing.key_users import needed_by_others, write_note
from app.gallery.sealing.master_keys import MasterKey, MasterKeys, read_master_keys
from app.gallery.sealing.vault import Vault
from app.gallery.sql.database import database_errors, let_others_write, lift_limits

_REFUSAL = "another rotation of the master key is under way; wait until it has ended"


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did.

    Attributes:
        master: id of the key that wraps now.
        wrapped: how many keys were wrapped anew.
        before: ids of the master keys before.
        needed: those of them that stay in the file, as another vault needs them, each with the place of one.
    """

    master: str
    wrapped: int
    before: tuple[str, ...]
    needed: dict[str, str]


def rotate_master_key(
    vault: Vault, *, keep_old: bool = False, batch: int = 5_000, advance: Callable[[int], None] = lambda _: None
) -> Rotation:
    """Wrap every key of a vault anew with the first master key, or, where that wraps already, with a new one.

    The new key is in the file before the vault names it, and an old one leaves the file when the vault names it no
    more, nor any other that has noted its use of the file: what was interrupted goes on when it is run again.

    Args:
        vault: others may use it meanwhile.
        keep_old: leave the old keys in the file.
        batch: keys of one transaction, so that a serving process gets its turn.
        advance: told how many keys were wrapped.

    Raises:
        Busy: another rotation is under way, of this vault or with this file.
        MasterKeyMissing: a key that is needed is not at hand, or a new one would have to be made in the environment.
        StorageUnwritable: the file's folder cannot be written.
    """
    with _alone(vault):
        masters = vault.masters
        if masters.file is not None:  # as it is now: another rotation may have ended since the vault was opened
            masters = vault.masters = MasterKeys(read_master_keys(masters.file), file=masters.file)
        if vault.masters_in_use() == {masters.first.id}:
            if masters.file is None:
                raise MasterKeyMissing(
                    "put the new key in front of the old in FACEGALLERY_MASTER_KEY, a blank between them, restart the "
                    "services and run this again; `facegallery master-key new` makes one"
                )
            masters.replace([MasterKey.make(), *masters.keys])
        new, *old = masters.keys
        file = masters.file
        if file is not None and not os.access(file.resolve().parent, os.W_OK):
            file = None  # somebody else changes it
        if file is not None:
            write_note(vault, file, also=(new.id,))
        vault.use_master(new)
        wrapped_in_all = 0
        while wrapped := vault.rewrap(batch):
            wrapped_in_all += wrapped
            advance(wrapped)
            let_others_write(vault.engine)
        before, needed = tuple(key.id for key in old), dict[str, str]()
        if file is not None:
            write_note(vault, file)
            if not keep_old:
                others = needed_by_others(vault, file)
                needed = {key: others[key] for key in before if key in others}
                _drop(masters, file, set(before).difference(vault.masters_in_use(), needed))
        return Rotation(new.id, wrapped_in_all, before, needed)


def _drop(masters: MasterKeys, file: Path, unwanted: set[str]) -> None:
    """Take keys out of the file; what somebody has put there by hand meanwhile stays."""
    masters.replace([key for key in read_master_keys(file) if key.id not in unwanted])


@contextmanager
def _alone(vault: Vault) -> Iterator[None]:
    """Hold the file of the master keys and the vault, which may be shared by machines, against other rotations."""
    file, url = vault.masters.file, vault.engine.url
    with ExitStack() as stack:
        if file is not None and os.access(file.resolve().parent, os.W_OK):  # else nobody changes it from here
            stack.enter_context(held(file.resolve(), refusal=_REFUSAL))
        if url.get_backend_name() == "postgresql":
            with database_errors():
                connection = stack.enter_context(vault.engine.begin())
                lift_limits(connection)  # it idles while keys are wrapped
                lock = text("SELECT pg_try_advisory_xact_lock(hashtext('facegallery master key'))")
                if not connection.execute(lock).scalar_one():
                    raise Busy(_REFUSAL)
        elif url.database and Path(url.database).is_file():
            stack.enter_context(held(Path(url.database).resolve(), refusal=_REFUSAL))
        yield
