"""Snapshots that nobody keeps any more: those that earlier settings left, and those of galleries that are gone."""

import re
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from app.gallery.snapshots.sealed import SnapshotKeys, listed, purpose_of


def drop_all(folder: Path, keys: SnapshotKeys) -> int:
    """Remove the snapshots that a machine has, and destroy the keys of those galleries' snapshots, wherever they are.

    Another machine that has a snapshot of such a gallery writes it anew.

    Args:
        folder: of all snapshots of this machine; need not be there.
        keys: the vault.

    Returns:
        Of how many galleries there were any.

    Raises:
        FacegalleryError: the vault does not answer; what was not dropped is there still.
    """
    return _drop(sorted(_galleries_in(folder)), [folder], keys)


def drop_gone(folders: Sequence[Path], keys: SnapshotKeys, present: Callable[[], Collection[int]]) -> int:
    """As `drop_all`, but of galleries that there are not, also of those of which keys alone are left.

    Nobody else does it where a process died over the erasure of a gallery, or where a restore has undone one.

    Args:
        folders: of all snapshots of this machine, sealed or open; need not be there.
        keys: the vault.
        present: reads the ids of the galleries that there are. It is asked after the snapshots were listed: a gallery
            is there before any snapshot of it.

    Returns:
        Of how many galleries there was anything.

    Raises:
        FacegalleryError: the vault or the database does not answer; what was not dropped is there still.
    """
    purposes = keys.purposes("snap")
    there = {gallery for purpose in purposes if (gallery := _gallery_of(purpose)) is not None}
    there = there.union(*map(_galleries_in, folders))
    return _drop(sorted(there.difference(present())), folders, keys) if there else 0


def _drop(galleries: Sequence[int], folders: Sequence[Path], keys: SnapshotKeys) -> int:
    for gallery in galleries:
        keys.discard(purpose_of(gallery))  # first: files without a key can stay, keys would be forgotten
        for folder in folders:
            shutil.rmtree(folder / f"gallery-{gallery}", ignore_errors=True)
    return len(galleries)


def _galleries_in(folder: Path) -> set[int]:
    there = [path.name[8:] for path in listed(folder) if path.name.startswith("gallery-") and path.is_dir()]
    return {int(number) for number in there if number.isdecimal()}


def _gallery_of(purpose: str) -> int | None:
    """The gallery whose keys are called so, None where the purpose is another."""
    found = re.fullmatch(r"snapshot (\d+)|snap ([0-9a-f]+)", purpose)
    if found is None:
        return None
    return int(found[1]) if found[1] else int(found[2], 16)
