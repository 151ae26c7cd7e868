"""API keys: what they look like, what they are for, and how they are hashed.

A key is `fg_`, a public id of 12 hexadecimal digits, `_`, and a secret of 64 (256 bits). The id finds the row; what the
row keeps of the secret is HMAC-SHA256 under the server's pepper. A slow hash would add nothing: the secret is not
guessable, and every call would pay for it.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.access.pepper import Pepper
from app.gallery.errors import InvalidInput

KEY_FORM = re.compile(r"fg_([0-9a-f]{12})_[0-9a-f]{64}")


class Scope(StrEnum):
    """What a key may be for; none contains another."""

    ENROLL = "enroll"  # enroll people, change their keys and metadata
    IDENTIFY = "identify"  # identify, verify, detect, embed
    READ = "read"  # list and show galleries, subjects and templates; metrics
    DELETE = "delete"  # erase subjects and templates
    ADMIN = "admin"  # make, change and erase galleries
    SCORES = "scores"  # exact distances, own thresholds, candidates beyond the threshold


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key; the secret is not.

    Args:
        id: public part of the key.
        name: what the operator calls it.
        galleries: the only galleries that it is for; None: all.
        expires_at, revoked_at: the moment from which on it is refused.
        last_used_at: its last call, to the minute.
        old_until: until when the secret before the last rotation is still taken.
    """

    id: str
    name: str
    scopes: frozenset[Scope]
    galleries: frozenset[str] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    old_until: datetime | None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key with the digests of its secret (32 bytes each); `old_digest` is the one before the last rotation."""

    key: ApiKey
    digest: bytes
    old_digest: bytes | None


def new_key_id() -> str:
    """A public id, 48 random bits as hexadecimal digits."""
    return secrets.token_hex(6)


def new_key(key_id: str) -> str:
    """A key with that id and 256 fresh random bits."""
    return f"fg_{key_id}_{secrets.token_hex(32)}"


def key_id_of(key: str) -> str | None:
    """The public id in a key; None where it has not a key's form."""
    found = KEY_FORM.fullmatch(key)
    return found[1] if found else None


def parse_scopes(names: Sequence[str]) -> frozenset[Scope]:
    """Scopes by their names; each may be several, parted by commas.

    Raises:
        InvalidInput: there is no such scope.
    """
    wanted = [name.strip() for part in names for name in part.split(",") if name.strip()]
    try:
        return frozenset(Scope(name) for name in wanted)
    except ValueError as error:
        raise InvalidInput(f"the scopes are {', '.join(Scope)}", part="scope") from error


class KeyHasher:
    """Digests of keys under the pepper, and their comparison in constant time."""

    def __init__(self, pepper: Pepper) -> None:
        self._secret = pepper.derive("api-keys")
        self.pepper_id = pepper.fingerprint

    def digest(self, key: str) -> bytes:
        """32 bytes that say nothing about the key to who has not the pepper."""
        return hmac.digest(self._secret, key.encode(), hashlib.sha256)

    def matches(self, key: str, stored: StoredKey | None, *, at: datetime) -> bool:
        """Whether the key is the stored one, or the one before it within its grace time.

        The work is the same whether the id is known or not, and wherever the secrets differ.
        """
        given = self.digest(key)
        nothing = bytes(len(given))
        same = hmac.compare_digest(given, stored.digest if stored else nothing)
        old = stored.old_digest if stored and stored.key.old_until and at < stored.key.old_until else None
        same_as_old = hmac.compare_digest(given, old or nothing)
        return same or same_as_old
