"""Rows sealed at rest: AES-256-GCM with a key for each subject; no SQL here.

A sealed value says where it belongs (gallery, subject, crop, kind) in its associated data, so that one that was moved
to another row does not open there.
"""

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.gallery.errors import KeyUnavailable

_FORM = b"\x01"  # version of the form: this byte, 12 bytes of nonce, the ciphertext, 16 bytes of tag
_NONCE_BYTES = 12
SUBJECT_KEY = "subject"
_MISSING = (
    "the subject's key is not in the vault, so nothing that is stored of it opens and nothing can be added; restore "
    "the newest vault, or erase the subject and enroll it anew"
)
_FORGOTTEN = (
    "the subject was forgotten and came back with a backup; erase it, or wait for the next sweep, and enroll it anew"
)


@dataclass(frozen=True, slots=True)
class RowIdentity:
    """Where a sealed value belongs. A subject has each crop once, so this names one row before it has an id.

    `kind` is what the value is: `template`, `crop`, or any other word that is one's own.
    """

    kind: str
    gallery_id: int
    subject_id: int
    crop_sha256: str

    @property
    def associated(self) -> bytes:
        """The identity as associated data."""
        numbers = struct.pack(">QQ", self.gallery_id, self.subject_id)
        return b"facegallery/row/1/" + self.kind.encode() + b"/" + numbers + self.crop_sha256.encode()


class Flaw(StrEnum):
    """Why a row does not open, or to nothing of use; the value is the event that the log gets."""

    TAMPERED = "template.tampered"  # not what was sealed there, or not sealed at all
    KEY_MISSING = "template.key_missing"  # the vault does not have the subject's key
    FORGOTTEN = "template.forgotten"  # the key was destroyed: the row comes from a restored backup
    NOT_NORMALISED = "template.not_normalised"  # an embedding that is not of length 1, which no index takes


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A value as stored, with the id of its subject's key; None where the subject has none."""

    key_id: str | None
    identity: RowIdentity
    data: bytes


class RowSeals(Protocol):
    """How values get into rows and out again."""

    def new_keys(self, count: int) -> list[str | None]:
        """Ids of new keys, one for each of so many new subjects."""
        ...

    def seal(self, key_id: str | None, values: Sequence[tuple[RowIdentity, bytes]]) -> list[bytes]:
        """Seal values of one subject for their rows.

        Raises:
            KeyUnavailable: the subject's key is missing or destroyed.
        """
        ...

    def open(self, rows: Sequence[SealedRow]) -> list[bytes | Flaw]:
        """The values of rows, of any subjects; each key is fetched once."""
        ...


class SubjectKeys(Protocol):
    """What the seals need of the vault."""

    def new_keys(self, purpose: str, count: int) -> Sequence["_Named"]:
        """New keys."""
        ...

    def open_keys(self, ids: Sequence[str]) -> Mapping[str, bytes | None]:
        """Keys by id: None where destroyed, left out where missing."""
        ...


class _Named(Protocol):
    @property
    def id(self) -> str: ...


class PlainRows:
    """Rows as they are, for tools and tests without a vault; a sealed row does not open with these."""

    def new_keys(self, count: int) -> list[str | None]:
        """As `RowSeals.new_keys`: none."""
        return [None] * count

    def seal(self, key_id: str | None, values: Sequence[tuple[RowIdentity, bytes]]) -> list[bytes]:
        """As `RowSeals.seal`: the values themselves."""
        if key_id is not None:
            raise KeyUnavailable("the subject is sealed, and no vault is open", part="subject")
        return [value for _, value in values]

    def open(self, rows: Sequence[SealedRow]) -> list[bytes | Flaw]:
        """As `RowSeals.open`."""
        if any(row.key_id is not None for row in rows):
            raise KeyUnavailable("the templates are sealed, and no vault is open")
        return [row.data for row in rows]


class SealedRows:
    """Rows sealed with the keys of a vault; a row that is not sealed counts as tampered with."""

    def __init__(self, keys: SubjectKeys) -> None:
        self._keys = keys

    def new_keys(self, count: int) -> list[str | None]:
        """As `RowSeals.new_keys`: they are stored in the vault before any row names them."""
        return [key.id for key in self._keys.new_keys(SUBJECT_KEY, count)]

    def seal(self, key_id: str | None, values: Sequence[tuple[RowIdentity, bytes]]) -> list[bytes]:
        """As `RowSeals.seal`."""
        if key_id is None:
            raise KeyUnavailable(
                "the subject is not sealed; if an old backup was restored, run `facegallery master-key seal`",
                part="subject",
            )
        secrets = self._keys.open_keys([key_id])
        secret = secrets.get(key_id)
        if secret is None:
            raise KeyUnavailable(_FORGOTTEN if key_id in secrets else _MISSING, part="subject")
        cipher = AESGCM(secret)
        return [seal_value(cipher, identity, value) for identity, value in values]

    def open(self, rows: Sequence[SealedRow]) -> list[bytes | Flaw]:
        """As `RowSeals.open`."""
        secrets = self._keys.open_keys([row.key_id for row in rows if row.key_id is not None])
        ciphers = {key_id: None if secret is None else AESGCM(secret) for key_id, secret in secrets.items()}
        opened: list[bytes | Flaw] = []
        for row in rows:
            if row.key_id is None:
                opened.append(Flaw.TAMPERED)
            elif row.key_id not in ciphers:
                opened.append(Flaw.KEY_MISSING)
            elif (cipher := ciphers[row.key_id]) is None:
                opened.append(Flaw.FORGOTTEN)
            else:
                opened.append(open_value(cipher, row.identity, row.data))
        return opened


def seal_value(cipher: AESGCM, identity: RowIdentity, value: bytes) -> bytes:
    """Seal one value for its row: 29 bytes longer than the value."""
    nonce = os.urandom(_NONCE_BYTES)
    return _FORM + nonce + cipher.encrypt(nonce, value, identity.associated)


def open_value(cipher: AESGCM, identity: RowIdentity, sealed: bytes) -> bytes | Flaw:
    """The value of a row, or `Flaw.TAMPERED`."""
    if sealed[:1] != _FORM:
        return Flaw.TAMPERED
    try:
        return cipher.decrypt(sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :], identity.associated)
    except (InvalidTag, ValueError):
        return Flaw.TAMPERED
