"""Two vaults with one file of master keys."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.gallery.held_file import held
from app.gallery.sealing.key_users import note_use
from app.gallery.sealing.master_keys import MasterKey, MasterKeys, read_comments, read_master_keys
from app.gallery.sealing.rotation import rotate_master_key
from app.gallery.sealing.vault import Vault, open_vault
from app.gallery.sql.database import open_engine, sqlite_address

Opened = Callable[[str], Vault]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens a vault by its name, as a start of its service does; all share a file of master keys."""
    engines = []

    def open_one(name: str) -> Vault:
        engines.append(open_engine(sqlite_address(tmp_path / name / "vault.db"), timeout=30))
        vault = open_vault(engines[-1], master_key=None, master_key_file=tmp_path / "master.key", expected=False)
        note_use(vault)
        return vault

    yield open_one
    for engine in engines:
        engine.dispose()


def keys_in(tmp_path: Path) -> list[str]:
    return [key.id for key in read_master_keys(tmp_path / "master.key")]


def test_a_rotation_leaves_the_key_that_another_vault_needs(opened: Opened, tmp_path: Path) -> None:
    first, second = opened("first"), opened("second")
    old, key = second.master, second.new_key("subject")

    done = rotate_master_key(first)

    assert [*done.needed] == [old]
    assert done.needed[old].endswith('second/vault.db"')
    assert opened("second").open_keys([key.id]) == {key.id: key.secret}
    assert rotate_master_key(first).needed == {old: done.needed[old]}  # its own former key alone has gone
    assert keys_in(tmp_path) == [first.master, old]

    assert rotate_master_key(second).needed == {}
    assert keys_in(tmp_path) == [first.master] == [second.master]
    assert opened("second").open_keys([key.id]) == {key.id: key.secret}


def test_what_an_interrupted_rotation_wrapped_with_is_needed(opened: Opened, tmp_path: Path) -> None:
    first, second = opened("first"), opened("second")
    keys = second.new_keys("subject", 10)

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate_master_key(second, batch=4, advance=fail)
    for _ in range(3):
        rotate_master_key(first)
    assert {*second.wrapped_by()} < {*keys_in(tmp_path)}
    assert opened("second").open_keys([key.id for key in keys]) == {key.id: key.secret for key in keys}


def test_a_vault_that_is_gone_is_taken_out_by_hand(opened: Opened, tmp_path: Path) -> None:
    first, _ = opened("first"), opened("second")
    rotate_master_key(first)
    file = tmp_path / "master.key"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "second" not in line))
    assert rotate_master_key(first).needed == {}
    assert keys_in(tmp_path) == [first.master]


def test_a_vault_that_moved_is_the_same(opened: Opened, tmp_path: Path) -> None:
    vault = opened("here")
    key = vault.new_key("subject")
    vault.close()
    (tmp_path / "here").rename(tmp_path / "the\nre ü")  # a comment is one line
    moved = opened("the\nre ü")
    assert rotate_master_key(moved).needed == {}
    assert keys_in(tmp_path) == [moved.master]
    assert moved.open_keys([key.id]) == {key.id: key.secret}


def test_comments_of_others_stay(opened: Opened, tmp_path: Path) -> None:
    vault = opened("vault")
    with (tmp_path / "master.key").open("a") as file:
        file.write("  # in the safe of the second floor\n")
    rotate_master_key(vault)
    comments = read_comments(tmp_path / "master.key")
    assert "# in the safe of the second floor" in comments
    assert len([line for line in comments if line.startswith("# vault ")]) == 1


def test_a_start_does_not_wait_for_a_rotation(opened: Opened, tmp_path: Path) -> None:
    opened("first")
    with held(tmp_path / "master.key", refusal="rotating"):
        opened("second")
    assert "second" not in (tmp_path / "master.key").read_text()
    opened("second")
    assert "second" in (tmp_path / "master.key").read_text()


def test_a_file_that_root_rotates_stays_its_owners(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    file, key = tmp_path / "master.key", MasterKey.make()
    file.write_text(key.written)
    file.chmod(0o644)
    os.chown(file, 65534, 65533)
    MasterKeys([key], file=file).replace([MasterKey.make(), key])
    found = file.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65533, 0o640)
