import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from app.gallery.erasure.receipts import ReceiptSigner, Standing, check_receipt, standing
from app.gallery.errors import ReceiptInvalid
from app.gallery.records import Gallery, Subject

MOMENT = datetime(2026, 5, 1, tzinfo=UTC)
SIGNER = ReceiptSigner(bytes(range(32)))


def gallery(*, number: int = 3, revision: int = 7) -> Gallery:
    return Gallery(number, "people", "net@1", 8, revision, None, MOMENT)


ENROLLED = MOMENT - timedelta(days=1)


def subject(created_at: datetime) -> Subject:
    return Subject(5, "anna", {}, 1, created_at, created_at)


def receipt() -> dict[str, Any]:
    return SIGNER.sign(
        gallery=gallery(),
        subject="Änna\n",
        enrolled_at=ENROLLED,
        erased_at=MOMENT,
        erased={"subjects": 1, "templates": 2},
        pending=[],
    )


def test_a_receipt_survives_json_and_names_nobody_but_by_the_key() -> None:
    made = receipt()
    assert check_receipt(json.loads(json.dumps(made, indent=3)), SIGNER.public_key) == made
    assert set(made) == {
        "form",
        "id",
        "gallery",
        "gallery_id",
        "revision",
        "subject",
        "enrolled_at",
        "erased_at",
        "erased",
        "pending",
        "public_key",
        "signature",
    }
    assert receipt()["id"] != made["id"]


def test_anybody_can_check_it_by_rfc_8032() -> None:
    made = receipt()
    signature = base64.b64decode(made.pop("signature"))
    signed = json.dumps(made, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    Ed25519PublicKey.from_public_bytes(base64.b64decode(made["public_key"])).verify(signature, signed)


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "bob"},
        {"revision": 8},
        {"erased_at": "2026-05-02T00:00:00+00:00"},
        {"erased": {"subjects": 1}},
        {"note": "added"},
        {"signature": ""},
        {"signature": None},
        {"signature": "!"},
        {"form": "other"},
        {"pending": ["key"]},
    ],
)
def test_a_changed_receipt_is_found(change: dict[str, Any]) -> None:
    with pytest.raises(ReceiptInvalid):
        check_receipt(receipt() | change, SIGNER.public_key)


def test_what_is_no_base64_is_passed_over_nowhere() -> None:
    made = receipt()
    with pytest.raises(ReceiptInvalid):
        check_receipt(made | {"signature": "!" + made["signature"]}, SIGNER.public_key)
    with pytest.raises(ReceiptInvalid):
        check_receipt(made, "!" + SIGNER.public_key)


def test_the_moment_is_told_in_utc() -> None:
    there = MOMENT.astimezone(timezone(timedelta(hours=2)))
    made = SIGNER.sign(gallery=gallery(), subject="anna", enrolled_at=there, erased_at=there, erased={}, pending=[])
    assert {made["enrolled_at"], made["erased_at"]} == {"2026-05-01T00:00:00+00:00"}


@pytest.mark.parametrize("value", [None, [], "x", {}, 3])
def test_what_is_no_receipt_is_refused(value: object) -> None:
    with pytest.raises(ReceiptInvalid, match="no receipt"):
        check_receipt(value, SIGNER.public_key)


def test_a_receipt_that_brings_its_own_key_proves_nothing() -> None:
    forged = ReceiptSigner(bytes(32)).sign(
        gallery=gallery(), subject="anna", enrolled_at=ENROLLED, erased_at=MOMENT, erased={}, pending=[]
    )
    with pytest.raises(ReceiptInvalid, match="changed, or signed by another key"):
        check_receipt(forged, SIGNER.public_key)


@pytest.mark.parametrize("key", ["", "x", base64.b64encode(bytes(31)).decode()])
def test_a_malformed_key_is_refused(key: str) -> None:
    with pytest.raises(ReceiptInvalid):
        check_receipt(receipt(), key)


def test_a_replayed_receipt_is_held_against_the_gallery() -> None:
    erased, later, older = subject(ENROLLED), subject(MOMENT + timedelta(seconds=1)), subject(ENROLLED - timedelta(1))
    assert standing(receipt(), gallery(), None) is Standing.ERASED
    assert standing(receipt(), gallery(revision=9), later) is Standing.ENROLLED_AGAIN
    assert standing(receipt(), gallery(revision=9), erased) is Standing.CAME_BACK
    assert standing(receipt(), gallery(revision=9), older) is Standing.ENROLLED_AGAIN  # and renamed
    assert standing(receipt(), gallery(revision=6), None) is Standing.CAME_BACK
    assert standing(receipt(), gallery(number=4), later) is Standing.OTHER_GALLERY
    assert standing(receipt(), None, None) is Standing.OTHER_GALLERY


def test_a_receipt_without_the_moment_of_the_enrolment_is_held_against_the_gallery_by_that_of_the_erasure() -> None:
    given = {name: value for name, value in receipt().items() if name != "enrolled_at"}  # by an earlier version
    assert standing(given, gallery(), None) is Standing.ERASED
    assert standing(given, gallery(revision=9), subject(MOMENT + timedelta(seconds=1))) is Standing.ENROLLED_AGAIN
    assert standing(given, gallery(revision=9), subject(MOMENT)) is Standing.CAME_BACK
