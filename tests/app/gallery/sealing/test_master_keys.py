import base64
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog.testing

from app.gallery.errors import MasterKeyMissing, StorageUnwritable
from app.gallery.sealing.master_keys import MasterKey, MasterKeys, load_master_keys, read_master_keys


def test_the_first_start_makes_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "master.key"
    keys = load_master_keys(None, file, make=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_master_keys(None, file, make=True).ids == keys.ids
    assert [path.name for path in file.parent.iterdir()] == ["master.key"]


def test_of_two_first_starts_the_one_whose_key_it_is_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(4)
    exists = Path.exists

    def exists_for_nobody_yet(path: Path) -> bool:
        found = exists(path)
        both.wait(10)
        return found

    monkeypatch.setattr(Path, "exists", exists_for_nobody_yet)
    with structlog.testing.capture_logs() as logs, ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda _: load_master_keys(None, tmp_path / "master.key", make=True), range(4)))
    assert len({one.ids for one in keys}) == 1
    assert [line["event"] for line in logs] == ["master_key.made"]


def test_a_missing_file_is_not_made_later(tmp_path: Path) -> None:
    with pytest.raises(MasterKeyMissing, match=r"^there is no master key: .*master\.key is not there; restore it"):
        load_master_keys(None, tmp_path / "master.key", make=False)


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    new, old = MasterKey.make(), MasterKey.make()
    keys = load_master_keys(f"{new.written} {old.written}", tmp_path / "master.key", make=True)
    assert keys.ids == (new.id, old.id)
    assert keys.get(old.id).secret == old.secret
    assert not (tmp_path / "master.key").exists()


@pytest.mark.parametrize(
    "text", ["c2VjcmV0", "no-base64!", base64.b64encode(bytes(31)).decode(), base64.b64encode(bytes(33)).decode()]
)
def test_a_malformed_key_is_refused_and_not_shown(text: str, tmp_path: Path) -> None:
    with pytest.raises(MasterKeyMissing, match="of FACEGALLERY_MASTER_KEY is not 32 bytes as base64") as caught:
        load_master_keys(f"{MasterKey.make().written} {text}", tmp_path / "none", make=False)
    assert text.split()[0] not in str(caught.value)


def test_both_alphabets_of_base64_and_comments_are_read(tmp_path: Path) -> None:
    secret = bytes(range(224, 256))
    file = tmp_path / "keys"
    file.write_text(f"# old\n{base64.b64encode(secret).decode()}\n\n{base64.urlsafe_b64encode(secret).decode()}\n")
    assert [key.secret for key in read_master_keys(file)] == [secret, secret]


def test_an_empty_file_holds_no_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# nothing\n")
    with pytest.raises(MasterKeyMissing, match="holds no master key"):
        read_master_keys(tmp_path / "keys")


def test_a_key_that_came_into_the_file_since_is_found(tmp_path: Path) -> None:
    file = tmp_path / "master.key"
    serving, rotating = load_master_keys(None, file, make=True), load_master_keys(None, file, make=False)
    new = MasterKey.make()
    rotating.replace([new, *rotating.keys])
    assert serving.get(new.id).secret == new.secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(MasterKeyMissing, match="but the keys at hand are"):
        serving.get("0" * 16)


def test_a_key_wraps_what_it_alone_opens_in_its_place_alone() -> None:
    key, secret = MasterKey.make(), os.urandom(32)
    wrapped = key.wrap(secret, b"here")
    assert key.unwrap(wrapped, b"here") == secret
    assert key.unwrap(wrapped, b"there") is None
    assert MasterKey.make().unwrap(wrapped, b"here") is None
    assert key.unwrap(wrapped[:-1], b"here") is None
    assert key.unwrap(b"", b"here") is None
    assert secret not in wrapped


def test_secrets_are_not_shown() -> None:
    key = MasterKey.make()
    shown = repr(key) + repr(MasterKeys([key]))
    assert key.written not in shown
    assert repr(key.secret) not in shown


def test_keys_of_the_environment_cannot_be_written(tmp_path: Path) -> None:
    keys = MasterKeys([MasterKey.make()])
    with pytest.raises(MasterKeyMissing, match="are changed where that variable is set"):
        keys.replace([MasterKey.make()])


def test_a_folder_that_is_away_is_told(tmp_path: Path) -> None:
    keys = MasterKeys([MasterKey.make()], file=tmp_path / "gone" / "master.key")
    with pytest.raises(StorageUnwritable, match="cannot be written"):
        keys.replace([MasterKey.make()])
