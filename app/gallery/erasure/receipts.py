"""Receipts of erasures, signed with Ed25519 (RFC 8032), and what one is worth later.

A receipt holds a random id and the gallery's revision at the erasure. Showing it again ("replay") is harmless where it
is true still; held against the gallery it tells whether the subject was enrolled again, or came back with a backup.
"""

import base64
import binascii
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.gallery.errors import ReceiptInvalid
from app.gallery.records import Gallery, Subject

FORM = "facegallery-receipt-1"
SIGNING_KEY = "receipts"
_UNSIGNED = "signature"


class Standing(StrEnum):
    """What a genuine receipt says of the gallery today."""

    ERASED = "erased"  # the subject is not there
    ENROLLED_AGAIN = "enrolled-again"  # it was enrolled after the erasure, or another one has its key
    CAME_BACK = "came-back"  # what was erased is there again: a backup was restored, or an archive imported
    OTHER_GALLERY = "other-gallery"  # the gallery is gone, or another one has its name


class ReceiptSigner:
    """Signs with the service's key; the key's 32 bytes come from the vault."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret)

    @property
    def public_key(self) -> str:
        """The public key, 32 bytes as base64."""
        return base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(
        self,
        *,
        gallery: Gallery,
        subject: str,
        enrolled_at: datetime,
        erased_at: datetime,
        erased: Mapping[str, int],
        pending: list[str],
    ) -> dict[str, Any]:
        """A receipt: what was erased (counts by kind) and when, what is still on its way, and the signature.

        Of the person it holds the subject's key and the moment of its enrolment alone.
        """
        receipt: dict[str, Any] = {
            "form": FORM,
            "id": uuid.uuid4().hex,
            "gallery": gallery.name,
            "gallery_id": gallery.id,
            "revision": gallery.revision,
            "subject": subject,
            "enrolled_at": enrolled_at.astimezone(UTC).isoformat(),
            "erased_at": erased_at.astimezone(UTC).isoformat(),
            "erased": dict(erased),
            "pending": pending,
            "public_key": self.public_key,
        }
        return receipt | {_UNSIGNED: base64.b64encode(self._key.sign(_signed(receipt))).decode()}


def check_receipt(receipt: Any, public_key: str) -> dict[str, Any]:
    """The receipt, if its signature is that of the key and covers it as it stands.

    Args:
        receipt: a parsed JSON value.
        public_key: 32 bytes as base64, from a source that is trusted; the one within the receipt proves nothing.

    Raises:
        ReceiptInvalid: it is not.
    """
    try:
        if not isinstance(receipt, dict) or receipt.get("form") != FORM:
            raise ReceiptInvalid("that is no receipt of this service")
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
        signature = base64.b64decode(str(receipt.get(_UNSIGNED)), validate=True)
        key.verify(signature, _signed({name: value for name, value in receipt.items() if name != _UNSIGNED}))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise ReceiptInvalid("the receipt was changed, or signed by another key") from error
    return receipt


def standing(receipt: Mapping[str, Any], gallery: Gallery | None, subject: Subject | None) -> Standing:
    """What a genuine receipt says today of the gallery with its name and the subject with its key, if there are any."""
    if gallery is None or gallery.id != receipt["gallery_id"]:
        return Standing.OTHER_GALLERY
    if gallery.revision < receipt["revision"]:
        return Standing.CAME_BACK
    if subject is None:
        return Standing.ERASED
    # The moment of its enrolment goes with a subject through backups and archives, and no two have the same.
    if "enrolled_at" in receipt:
        same = subject.created_at == datetime.fromisoformat(receipt["enrolled_at"])
    else:  # a receipt of an earlier version
        same = subject.created_at <= datetime.fromisoformat(receipt["erased_at"])
    return Standing.CAME_BACK if same else Standing.ENROLLED_AGAIN


def _signed(receipt: Mapping[str, Any]) -> bytes:
    """What the signature covers: JSON with sorted names, no blanks, UTF-8."""
    return json.dumps(receipt, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
