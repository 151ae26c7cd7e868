from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from app.access.audit_log import AuditLog
from app.access.errors import KeyNotFound, PepperUnusable
from app.access.key_store import KeyStore
from app.access.keys import ALL_SCOPES, KeyHasher, Scope, key_id_of, new_key, parse_scopes
from app.access.pepper import Pepper, read_pepper
from app.access.tables import ApiKeyRow
from app.gallery.errors import InvalidInput, StorageUnwritable
from app.gallery.tables import now

PEPPER = Pepper("x" * 32)


@pytest.fixture
def keys(engine: Engine) -> KeyStore:
    return KeyStore(engine, KeyHasher(PEPPER), AuditLog(engine, PEPPER))


def test_a_key_is_found_by_its_id_and_its_secret_is_nowhere(keys: KeyStore, engine: Engine) -> None:
    made, key = keys.create("door", [Scope.IDENTIFY], galleries=["staff"])
    stored = keys.find(made.id)
    assert stored is not None
    assert stored.key == made
    assert key_id_of(key) == made.id
    assert len(bytes.fromhex(key.rsplit("_", 1)[1])) == 32
    with keys._sessions.reading() as session:
        kept = session.execute(select(ApiKeyRow.__table__)).one()
    assert key.rsplit("_", 1)[1] not in repr(kept)


def test_only_the_key_matches_and_only_with_its_pepper(keys: KeyStore) -> None:
    made, key = keys.create("door", ALL_SCOPES)
    stored = keys.find(made.id)
    hasher = KeyHasher(PEPPER)
    assert hasher.matches(key, stored, at=now())
    assert not hasher.matches(new_key(made.id), stored, at=now())
    assert not hasher.matches(key, None, at=now())
    assert not KeyHasher(Pepper("y" * 32)).matches(key, stored, at=now())


def test_a_near_miss_is_no_nearer_than_any_other_key_where_they_are_compared(keys: KeyStore) -> None:
    """Digests are compared, in constant time, and of an unknown key as well: the time says nothing of the secret."""
    made, key = keys.create("door", ALL_SCOPES)
    hasher = KeyHasher(PEPPER)
    near = key[:-1] + ("0" if key[-1] != "0" else "1")
    digest = hasher.digest(key)
    for other in (near, new_key(made.id)):
        assert sum(a == b for a, b in zip(digest, hasher.digest(other), strict=True)) < 8


def test_the_first_key_is_made_once(keys: KeyStore) -> None:
    assert keys.first_key() is not None
    assert keys.first_key() is None
    (first,) = keys.keys()
    keys.revoke(first.id)
    assert keys.first_key() is None


def test_the_first_key_of_another_pepper_is_refused(keys: KeyStore, engine: Engine) -> None:
    keys.first_key()
    other = Pepper("y" * 32)
    with pytest.raises(PepperUnusable, match="another pepper"):
        KeyStore(engine, KeyHasher(other), AuditLog(engine, other)).first_key()


def test_what_makes_no_key(keys: KeyStore) -> None:
    with pytest.raises(InvalidInput, match="scope"):
        keys.create("door", [])
    with pytest.raises(InvalidInput, match="future"):
        keys.create("door", ALL_SCOPES, expires_at=now() - timedelta(seconds=1))
    with pytest.raises(InvalidInput, match="gallery"):
        keys.create("door", ALL_SCOPES, galleries=[])
    with pytest.raises(InvalidInput, match="empty"):
        keys.create(" ", ALL_SCOPES)
    with pytest.raises(InvalidInput, match="enroll, identify, read, delete, admin, scores"):
        parse_scopes(["read,write"])
    assert keys.keys() == ()


def test_keys_that_are_not_there_or_revoked_are_not_rotated(keys: KeyStore) -> None:
    with pytest.raises(KeyNotFound, match="keys list"):
        keys.rotate("0" * 12)
    made, _ = keys.create("door", ALL_SCOPES)
    keys.revoke(made.id)
    with pytest.raises(InvalidInput, match="revoked"):
        keys.rotate(made.id)


def test_a_pepper_is_made_once_and_shows_nothing(tmp_path: Path) -> None:
    with pytest.raises(PepperUnusable, match="key-pepper back from its copy, or set FACEGALLERY_KEY_PEPPER"):
        read_pepper(None, tmp_path / "data", make=False)
    assert not (tmp_path / "data").exists()
    first = read_pepper(None, tmp_path / "data", make=True)
    assert read_pepper("", tmp_path / "data", make=False).derive("x") == first.derive("x") != first.derive("y")
    assert (tmp_path / "data" / "key-pepper").read_text().strip() not in repr(first) + str(first)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["key-pepper"]


def test_a_pepper_that_is_short_or_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(PepperUnusable, match="32 characters"):
        read_pepper("short", tmp_path, make=True)
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnwritable, match="FACEGALLERY_KEY_PEPPER"):
        read_pepper(None, tmp_path / "file", make=True)
