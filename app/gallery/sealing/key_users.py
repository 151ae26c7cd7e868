"""Which vaults use a file of master keys: each notes in it, as a comment, which of its keys it needs.

A rotation of one vault would else take a key out of the file that another one cannot do without.
"""

import json
import re
from pathlib import Path

import structlog

from app.gallery.errors import Busy, StorageUnwritable
from app.gallery.held_file import held
from app.gallery.sealing.master_keys import read_comments, write_comments
from app.gallery.sealing.vault import Vault

_NAME = "vault"  # of the key that is there for its id alone, which tells vaults apart wherever they are moved
_PATIENCE = 1.0  # seconds for another process that writes the file; where it takes longer, the next start notes it
_NOTE = re.compile(r"# vault (?P<vault>[0-9a-f]{32}) needs (?P<keys>[0-9a-f ]+), at (?P<place>.*)")
_log = structlog.get_logger()


def note_use(vault: Vault) -> None:
    """Note in the file of the master keys which of them a vault needs, if it does not stand there."""
    file = vault.masters.file
    if file is None or _note(vault, ()) in read_comments(file):
        return
    try:
        with held(file.resolve(), refusal="the master key's file is being written", patience=_PATIENCE):
            write_note(vault, file)
    except (Busy, OSError, StorageUnwritable) as error:  # nor can a rotation by this user take keys out
        _log.debug("master_key.use_not_noted", file=str(file), reason=str(error))


def write_note(vault: Vault, file: Path, *, also: tuple[str, ...] = ()) -> None:
    """Write the note, by who holds the file's lock.

    Args:
        vault: it needs what wraps, and what has wrapped any of its keys.
        file: of the master keys.
        also: ids of further keys that it is about to need.

    Raises:
        StorageUnwritable: the file's folder cannot be written.
    """
    note, comments = _note(vault, also), read_comments(file)
    if note not in comments:
        mine = note.partition(" needs ")[0]
        write_comments(file, [*(line for line in comments if not line.startswith(f"{mine} needs ")), note])


def needed_by_others(vault: Vault, file: Path) -> dict[str, str]:
    """Ids of the master keys that other vaults have noted, each with the place of one that needs it."""
    own = vault.named_key(_NAME).id
    notes = [found for line in read_comments(file) if (found := _NOTE.fullmatch(line)) and found["vault"] != own]
    return {key: found["place"] for found in notes for key in found["keys"].split()}


def _note(vault: Vault, also: tuple[str, ...]) -> str:
    needed = sorted(vault.masters_in_use().union(also))
    place = vault.engine.url.set(query={}).render_as_string(hide_password=True)
    return f"# vault {vault.named_key(_NAME).id} needs {' '.join(needed)}, at {json.dumps(place)}"
