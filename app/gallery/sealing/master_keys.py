"""Master keys: they wrap the keys of subjects and come from a file or the environment, never from a database."""

import base64
import binascii
import hmac
import os
import stat
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.gallery.errors import MasterKeyMissing, StorageUnwritable
from model.replaced_file import flush_folder

KEY_BYTES = 32
_NONCE_BYTES = 12
_HEADER = "# Facegallery master key. Keep a copy apart from the database and the vault: without it no template opens."
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MasterKey:
    """A key of 256 bits; `id`, a keyed hash of nothing, tells keys apart and gives none away."""

    id: str
    secret: bytes = field(repr=False)
    cipher: AESGCM = field(repr=False, compare=False)

    @classmethod
    def of(cls, secret: bytes) -> "MasterKey":
        """The key with these 32 bytes."""
        return cls(hmac.digest(secret, b"facegallery master key id", "sha256")[:8].hex(), secret, AESGCM(secret))

    @classmethod
    def make(cls) -> "MasterKey":
        """A new random key."""
        return cls.of(os.urandom(KEY_BYTES))

    @property
    def written(self) -> str:
        """The key as it stands in a file or a variable: base64."""
        return base64.urlsafe_b64encode(self.secret).decode()

    def wrap(self, secret: bytes, associated: bytes) -> bytes:
        """Another key, sealed by this one (AES-256-GCM): 12 bytes of nonce, the ciphertext, 16 bytes of tag."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self.cipher.encrypt(nonce, secret, associated)

    def unwrap(self, wrapped: bytes, associated: bytes) -> bytes | None:
        """The key that was wrapped; None where this is not what was wrapped, with that associated data, by this key."""
        try:
            return self.cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], associated)
        except (InvalidTag, ValueError):
            return None


class MasterKeys:
    """The master keys at hand: the first is the one to wrap with, the others still open what they wrapped.

    A file is read again where a key is asked for that is not at hand, so that a rotation needs no restart.
    """

    def __init__(self, keys: Sequence[MasterKey], *, file: Path | None = None) -> None:
        self.file = file
        self._keys = tuple(keys)

    @property
    def first(self) -> MasterKey:
        """The key to wrap with."""
        return self._keys[0]

    @property
    def keys(self) -> tuple[MasterKey, ...]:
        """All keys, the first one first."""
        return self._keys

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all keys, the first one's first."""
        return tuple(key.id for key in self._keys)

    def get(self, key_id: str) -> MasterKey:
        """The key with that id.

        Raises:
            MasterKeyMissing: it was not given.
        """
        found = self._find(key_id)
        if found is None and self.file is not None and self.file.exists():
            self._keys = read_master_keys(self.file)
            found = self._find(key_id)
        if found is None:
            raise MasterKeyMissing(
                f"the vault's keys are wrapped by master key {key_id}, but the keys at hand are {', '.join(self.ids)}; "
                "set FACEGALLERY_MASTER_KEY_FILE or FACEGALLERY_MASTER_KEY to it"
            )
        return found

    def replace(self, keys: Sequence[MasterKey]) -> None:
        """Hold these keys instead, in the file first.

        Raises:
            MasterKeyMissing: the keys come from the environment, which cannot be written.
            StorageUnwritable: the file's folder cannot be written.
        """
        if self.file is None:
            raise MasterKeyMissing("master keys from FACEGALLERY_MASTER_KEY are changed where that variable is set")
        _write(self.file, keys, read_comments(self.file), over=True)
        self._keys = tuple(keys)

    def _find(self, key_id: str) -> MasterKey | None:
        return next((key for key in self._keys if key.id == key_id), None)


def load_master_keys(text: str | None, file: Path, *, make: bool) -> MasterKeys:
    """The master keys of the environment, or else of the file.

    Args:
        text: keys as base64 with blanks between them; empty or None: the file's.
        file: a key as base64 on each line.
        make: whether a missing file is made, with a random key and for its owner alone.

    Raises:
        MasterKeyMissing: there is none, or one is malformed.
        StorageUnwritable: the file cannot be made.
    """
    if text and text.strip():
        return MasterKeys(_parse(text, "FACEGALLERY_MASTER_KEY"))
    if make and not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _write(file, [MasterKey.make()], [_HEADER], over=False):
            _log.warning("master_key.made", file=str(file), advice="keep a copy apart from the database and the vault")
    return MasterKeys(read_master_keys(file), file=file)


def read_master_keys(file: Path) -> tuple[MasterKey, ...]:
    """The keys of a file, one a line; lines that begin with # are comments.

    Raises:
        MasterKeyMissing: the file is not there, cannot be read, has no key or a malformed one.
    """
    try:
        text = file.read_text()
        readable = stat.S_IMODE(file.stat().st_mode) & 0o077
    except FileNotFoundError as error:
        raise MasterKeyMissing(
            f"there is no master key: {file} is not there; restore it, or set FACEGALLERY_MASTER_KEY_FILE to where it "
            "is, or FACEGALLERY_MASTER_KEY to the key"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise MasterKeyMissing(f"the master key's file {file} cannot be read: {type(error).__name__}") from error
    if readable:
        _log.warning("master_key.readable_by_others", file=str(file), advice=f"chmod 600 {file}")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return _parse(" ".join(lines), str(file))


def read_comments(file: Path) -> list[str]:
    """The comments of a file of master keys, or of one that is not there the usual first line."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # which whoever reads the keys is told
        return [_HEADER]
    return [line.strip() for line in lines if line.lstrip().startswith("#")]


def write_comments(file: Path, comments: Sequence[str]) -> None:
    """Give a file of master keys other comments.

    Raises:
        MasterKeyMissing, StorageUnwritable: it cannot be read or written.
    """
    _write(file, read_master_keys(file), comments, over=True)


def _parse(text: str, where: str) -> tuple[MasterKey, ...]:
    words = text.split()
    keys = []
    for number, word in enumerate(words, 1):
        try:
            secret = base64.b64decode(word.replace("-", "+").replace("_", "/"), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) != KEY_BYTES:  # the word itself is not shown: it may be a secret with a typing error
            raise MasterKeyMissing(f"master key {number} of {where} is not {KEY_BYTES} bytes as base64")
        keys.append(MasterKey.of(secret))
    if not keys:
        raise MasterKeyMissing(f"{where} holds no master key; `facegallery master-key new` makes one")
    return tuple(keys)


def _write(file: Path, keys: Sequence[MasterKey], comments: Sequence[str], *, over: bool) -> bool:
    """Write the file whole or not at all; one that is there stays unless `over` is set. Answers whether it wrote.

    Who could read it before, the owner and its group, still can: it may be root who rotates for a service.
    """
    file = file.resolve()  # a link stays, and leads to the new keys
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as writer:
                writer.write("\n".join([*comments, *(key.written for key in keys), ""]))
                writer.flush()
                os.fsync(writer.fileno())
            if over:
                _hand_over(draft, file)
                draft.replace(file)
            else:
                try:
                    file.hardlink_to(draft)
                except FileExistsError:
                    return False  # another process was quicker; its key is the one
        finally:
            draft.unlink(missing_ok=True)
        flush_folder(file.parent)
        return True
    except OSError as error:
        raise StorageUnwritable(f"the master key's file {file} cannot be written: {error.strerror}") from error


def _hand_over(draft: Path, file: Path) -> None:
    """Give a draft the owner and the group of the file whose place it takes, where there is one and the system lets."""
    with suppress(FileNotFoundError, PermissionError):
        before = file.stat()
        os.chown(draft, before.st_uid, before.st_gid)
        draft.chmod(0o600 | before.st_mode & 0o040)
