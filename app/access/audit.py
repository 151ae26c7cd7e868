"""The audit log's form: numbered entries, each hashed with the one before it, and a sealed head.

    hash(n) = SHA-256(hash(n − 1) ‖ entry(n)),  hash(0) = 32 zero bytes
    seal    = HMAC-SHA256(secret, count ‖ hash(count))

Entries are canonical JSON and carry their own number, so that a changed, removed, added or exchanged entry breaks the
chain at its place. The seal says how many there are, so that the last ones cannot be cut off either: the secret comes
from the pepper, which is not in the database. What a database alone cannot show is its own return to an earlier state,
seal and all; the head that somebody wrote down elsewhere shows that (`facegallery audit verify --expect`).

Old entries may go: then the log begins behind a start, which is the last head of what went, with a seal of its own
kind, so that no head that was ever sealed can be passed off as one. An entry says that it was done.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.access.caller import Caller
from app.gallery.journal import Event

NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class Head:
    """How long the log is and how it ends."""

    count: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.count}:{self.hash.hex()}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a check of the log found: it is whole where `flaws` is empty."""

    head: Head
    flaws: tuple[str, ...]


def draft(event: Event, caller: Caller, *, at: datetime | None = None) -> dict[str, Any]:
    """An entry without its number."""
    moment = (at or datetime.now(UTC)).astimezone(UTC)
    return {
        "at": moment.isoformat(timespec="microseconds"),
        "action": event.action,
        "by": caller.by,
        "address": caller.address,
        "request": caller.request_id,
        "gallery": event.gallery,
        "subjects": list(event.subjects),
        "details": dict(event.details),
    }


def numbered(entry: Mapping[str, Any], number: int) -> str:
    """The entry with its number as canonical JSON: keys sorted, no blanks, Unicode as it is."""
    return json.dumps(
        {"number": number, **entry}, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def chained(before: bytes, entry: str) -> bytes:
    """The hash of an entry behind the one before it."""
    return hashlib.sha256(before + entry.encode()).digest()


def seal(secret: bytes, head: Head) -> bytes:
    """What only a holder of the pepper can put beside a head."""
    return hmac.digest(secret, head.count.to_bytes(8, "big") + head.hash, hashlib.sha256)


def is_sealed(secret: bytes, head: Head, given: bytes) -> bool:
    """Whether the seal is that head's."""
    return hmac.compare_digest(seal(secret, head), given)


def names_subject(line: str, subject: str, *, gallery: str | None = None) -> bool | None:
    """Whether an entry is about a subject, of any gallery or of one; None for what is no entry any more.

    Args:
        line: the entry with its hash, as `AuditLog.entries` gives it.
        subject: its key.
        gallery: name of the gallery; None: any.
    """
    try:
        entry = json.loads(line)["entry"]
        return subject in list(entry["subjects"]) and (gallery is None or entry["gallery"] == gallery)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


class ChainCheck:
    """Follows a log entry by entry and remembers where it breaks."""

    def __init__(self, start: Head) -> None:
        self.flaws: list[str] = []
        self.head = start
        self.hash_at: dict[int, bytes] = {start.count: start.hash}

    def follow(self, number: int, action: str, entry: str, digest: bytes, *, remember: bool = False) -> None:
        """Check the next entry by its number; goes on behind a flaw, with the hash that stands there."""
        wanted = self.head.count + 1
        if number != wanted:
            self.flaws.append(
                f"entry {wanted} is missing"
                if number == wanted + 1
                else f"entries {wanted} to {number - 1} are missing"
            )
        elif chained(self.head.hash, entry) != digest:
            self.flaws.append(f"entry {number} was changed")
        inside = _inside(entry)
        if inside.get("number") != number:
            self.flaws.append(f"entry {number} is another one, put in its place")
        elif inside.get("action") != action:
            self.flaws.append(f"the action of entry {number} was changed")
        self.head = Head(number, digest)
        if remember:
            self.hash_at[number] = digest


def _inside(entry: str) -> dict[str, Any]:
    try:
        inside = json.loads(entry)
    except ValueError:
        return {}
    return inside if isinstance(inside, dict) else {}
