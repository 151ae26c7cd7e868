"""Snapshots at rest: a sealed copy of every snapshot that is in use, which lies open in memory alone.

A sealed snapshot is a folder with the id of its key and a sealed file for each of the snapshot's. What names itself by
chance and never changes (a segment) is linked from one sealed snapshot to the next; so both have one key, until an
erasure takes a new one and has the vault forget the old: then no copy of the older ones opens, wherever it lies.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from app.gallery.errors import FileTampered
from app.gallery.index import SnapshotDamaged
from app.gallery.sealing.sealed_files import open_file, seal_file, try_file
from app.gallery.snapshots.private_folder import make_private
from model.errors import FacegalleryError
from model.replaced_file import flush_folder

_log = structlog.get_logger()
_SEALED = re.compile(r"(\d{20})\.sealed")
_KEY = "key"
_NEVER_CHANGES = re.compile(r"segment-[0-9a-f]{16}\.(ids|vectors|codes)")
_KEY_ID = re.compile(r"[0-9a-f]{32}")


class _Key(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def secret(self) -> bytes: ...


class SnapshotKeys(Protocol):
    """What sealed snapshots need of the vault."""

    def new_key(self, purpose: str) -> _Key:
        """A new key."""
        ...

    def open_keys(self, ids: Sequence[str]) -> Mapping[str, bytes | None]:
        """Keys by id; one that is not there is left out."""
        ...

    def discard(self, purpose: str, *, keep: Sequence[str] = ()) -> int:
        """Destroy the keys of a purpose but some, and forget that there were any."""
        ...

    def purposes(self, beginning: str) -> set[str]:
        """The purposes of the keys that are there, of those that begin so."""
        ...

    def ids(self, purposes: Sequence[str]) -> set[str]:
        """Ids of the keys of some purposes that are there."""
        ...


class KeyDestroyed(Exception):
    """Something was erased while a snapshot was written that may still hold it: it is to be begun anew."""


@dataclass(frozen=True, slots=True)
class SealingKey:
    """What a snapshot is sealed with, taken before its content is captured.

    Whoever erases something commits that first and destroys all keys that there are afterwards. So a key that is new
    seals content that was read after it was made, and every erasure that this content lacks destroys the key, on
    whichever machine it is.

    Args:
        id: the vault's.
        secret: the key itself.
        before: folder of the snapshot that has the key, too; None: it is new.
    """

    id: str
    secret: bytes = field(repr=False)
    before: Path | None


class SealedSnapshots:
    """The sealed snapshots of one gallery and one extractor, in a folder that may lie on any disk.

    Args:
        folder: of this gallery and extractor, beside those of other extractors of the gallery.
        place: what the snapshots are of; they open as nothing else.
        gallery: id of the gallery.
        keys: the vault.
    """

    def __init__(self, folder: Path, *, place: str, gallery: int, keys: SnapshotKeys) -> None:
        self.folder = folder
        self._place = place
        self._purpose = purpose_of(gallery)
        self._keys = keys
        self._unused: SealingKey | None = None  # made for a snapshot that was not written

    @property
    def revisions(self) -> list[int]:
        """Revisions of what is there, oldest first."""
        return sorted(int(found[1]) for path in listed(self.folder) if (found := _SEALED.fullmatch(path.name)))

    def place_of(self, revision: int) -> Path:
        """Folder of the sealed snapshot of a revision, there or not."""
        return self.folder / f"{revision:020d}.sealed"

    def take_key(self, *, anew: bool) -> SealingKey:
        """The key of the newest snapshot, or a new one where there is none, or it was destroyed, or `anew` asks for it.

        One that was made before and has sealed nothing is as good as a new one, as long as nobody has destroyed it.

        Raises:
            FacegalleryError: the vault does not answer.
        """
        before = None if anew else self._newest()
        if before is not None:
            return before
        if anew or self._unused is None or not self._is_there(self._unused):
            made = self._keys.new_key(self._purpose)
            self._unused = SealingKey(made.id, made.secret, None)
        return self._unused

    def write(self, source: Path, revision: int, key: SealingKey, *, alone: bool) -> None:
        """Seal a snapshot's folder, and drop the older ones.

        Args:
            source: the folder; it stays.
            revision: of the snapshot.
            key: taken before what the folder holds was captured; where another snapshot has it, what has not changed
                is linked from there.
            alone: nothing else stays, also where this fails: all other keys are destroyed, other machines' too.

        Raises:
            KeyDestroyed: an erasure has destroyed the key since it was taken; nothing was written.
            OSError, FacegalleryError: the disk is full, or the vault does not answer.
        """
        make_private(self.folder)
        self._sweep()  # first: drafts of processes that died may be what the disk is full of
        draft = self.folder / f"writing-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        draft.mkdir(mode=0o700)
        place = self.place_of(revision)
        kept: list[str] = []
        try:
            _write(draft / _KEY, key.id)
            for path in sorted(source.rglob("*")):
                target = draft / path.relative_to(source)
                if path.is_dir():
                    target.mkdir()
                elif key.before is None or not _linked(key.before / path.relative_to(source), target):
                    seal_file(path, target, key.secret, self._associated(path.relative_to(source), revision))
            for folder in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
                flush_folder(folder)
            if not self._is_there(key):
                raise KeyDestroyed
            if place.exists():
                place.rename(self.folder / f"writing-old-{uuid.uuid4().hex[:8]}")
            draft.rename(place)
            flush_folder(self.folder)
            kept = [key.id]
            if key == self._unused:
                self._unused = None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if alone:
                self.drop(but=place if kept else None, keys=kept)
        self._sweep(place)

    def open(self, revision: int, target: Path) -> bool:
        """Open a sealed snapshot into an empty folder that is there; False where its key was destroyed.

        Raises:
            SnapshotDamaged: it was changed, or is of another place.
            OSError, FacegalleryError: there is no room, or the vault does not answer.
        """
        source = self.place_of(revision)
        with _as_damage():
            secret = self._secret(source)
            if secret is None:
                return False
            for path in sorted(source.rglob("*")):
                name = path.relative_to(source)
                if path.is_dir():
                    (target / name).mkdir()
                elif name != Path(_KEY):
                    open_file(path, target / name, secret, self._associated(name, revision))
        return True

    def try_out(self, revision: int) -> None:
        """See whether a sealed snapshot opens, unless its key was destroyed, and write nothing; raises as `open`."""
        source = self.place_of(revision)
        with _as_damage():
            secret = self._secret(source)
            if secret is None:
                return
            for path in sorted(source.rglob("*")):
                name = path.relative_to(source)
                if not path.is_dir() and name != Path(_KEY):
                    try_file(path, secret, self._associated(name, revision))

    @property
    def key_id(self) -> str | None:
        """Which key the newest one names; None where there is none, or it names none."""
        try:
            return (self.place_of(self.revisions[-1]) / _KEY).read_text()
        except (IndexError, OSError, UnicodeDecodeError):
            return None

    @property
    def key_destroyed(self) -> bool:
        """Whether somebody destroyed the newest one's key: something was erased that this machine still holds."""
        return bool(self.revisions) and self._newest() is None

    def set_aside(self, revision: int, reason: str) -> None:
        """Trust that one no more."""
        set_aside(self.place_of(revision), reason)

    def drop(self, *, but: Path | None = None, keys: Sequence[str] = ()) -> None:
        """Remove all but one, those of other extractors and what was set aside included, and destroy their keys."""
        self._keys.discard(self._purpose, keep=keys)  # first: files whose keys are gone can stay, the others owe them
        for path in (*listed(self.folder), *listed(self.folder.parent)):
            if path not in {but, self.folder} and path.is_dir():
                _remove(path)

    def erase(self) -> None:
        """Remove every trace."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        self._keys.discard(self._purpose)

    def remove_open_ones(self) -> None:
        """Remove snapshots that lie there open, from before encryption."""
        left = [path for path in listed(self.folder) if path.is_dir() and re.match(r"(damaged-)?\d{20}", path.name)]
        for path in left:
            if not _SEALED.search(path.name):
                _log.warning("snapshot.open_one_removed", folder=str(path), advice="a backup may hold it")
                shutil.rmtree(path, ignore_errors=True)

    def _secret(self, source: Path) -> bytes | None:
        """What opens a sealed snapshot; None where it was destroyed."""
        key_id = (source / _KEY).read_text()
        if not _KEY_ID.fullmatch(key_id):
            raise SnapshotDamaged("it does not name its key")
        secret = self._keys.open_keys([key_id]).get(key_id)
        if secret is None:  # it goes with the next snapshot; what is there by now may be another one
            _log.info("snapshot.key_destroyed", folder=str(source))
        return secret

    def _newest(self) -> SealingKey | None:
        """The key of the newest, if it can be gone on with."""
        for revision in reversed(self.revisions):
            try:
                key_id = (self.place_of(revision) / _KEY).read_text()
            except (OSError, UnicodeDecodeError):
                return None
            secret = self._keys.open_keys([key_id]).get(key_id)
            return None if secret is None else SealingKey(key_id, secret, self.place_of(revision))
        return None

    def _is_there(self, key: SealingKey) -> bool:
        return self._keys.open_keys([key.id]).get(key.id) is not None

    def _associated(self, name: Path, revision: int) -> bytes:
        when = "any" if _NEVER_CHANGES.fullmatch(name.name) else str(revision)
        return f"facegallery/snapshot/1/{self._place}/{when}/{name.as_posix()}".encode()

    def _sweep(self, keep: Path | None = None) -> None:
        for path in list(self.folder.iterdir()):
            older = keep is not None and _SEALED.fullmatch(path.name) and path.name < keep.name
            if path.name.startswith("writing-") or older:
                _remove(path)


def purpose_of(gallery: int) -> str:
    """What the vault calls the keys of a gallery's snapshots: 20 characters at most, also of ids after a restore."""
    return f"snapshot {gallery}" if gallery < 10**11 else f"snap {gallery:x}"


def listed(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it is not there, or cannot be read: that keeps nobody from going on."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def set_aside(place: Path, reason: str) -> None:
    """Give a snapshot's folder a name by which nobody trusts it, if it is there and lets itself be renamed.

    The last one that was set aside stays to be looked at, those before go: each is as large as the index.
    """
    aside = place.with_name(f"damaged-{place.name}-{uuid.uuid4().hex[:8]}")
    try:
        place.rename(aside)
    except FileNotFoundError:  # another process was first, or a newer one has taken its place
        return
    except OSError as error:
        _log.error("snapshot.damaged", folder=str(place), reason=reason, not_set_aside=error.strerror)
        return
    _log.error("snapshot.set_aside", folder=str(aside), reason=reason)
    for earlier in place.parent.glob("damaged-*"):
        if earlier != aside:
            _remove(earlier)


@contextmanager
def _as_damage() -> Iterator[None]:
    """What is wrong with the files of a sealed snapshot, as `SnapshotDamaged`."""
    try:
        yield
    except FileTampered as error:
        raise SnapshotDamaged(str(error)) from error
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise SnapshotDamaged(f"{type(error).__name__}: {error}") from error


def _remove(folder: Path) -> None:
    """Remove a folder in one step: who dies halfway leaves a draft, not half a snapshot."""
    with suppress(OSError):  # it is gone, or cannot be renamed: then piece by piece
        folder = folder.rename(folder.with_name(f"writing-old-{uuid.uuid4().hex[:8]}"))
    shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    """Write a text so that it outlasts a loss of power."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _linked(source: Path, target: Path) -> bool:
    if not _NEVER_CHANGES.fullmatch(source.name):
        return False
    try:
        os.link(source, target)
    except OSError:  # not there, or no links here: it is sealed again
        return False
    return True


FAILURES = (OSError, FacegalleryError)
"""What keeps a snapshot from being sealed or opened though nothing is wrong with it."""
