import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, make_url, text

from app.gallery.errors import Busy, KeyUnavailable, MasterKeyMissing
from app.gallery.sealing.master_keys import MasterKey, MasterKeys, read_master_keys
from app.gallery.sealing.rotation import rotate_master_key
from app.gallery.sealing.vault import Vault, open_vault
from app.gallery.sql.database import open_engine
from tests.databases import others_wait, steps_of

OpenAgain = Callable[[], Vault]


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("vault.db*")))


def stored(engine: Engine, key_id: str) -> bytes:
    with engine.connect() as connection:
        wrapped = connection.execute(text("SELECT wrapped FROM data_key WHERE id = :id"), {"id": key_id}).scalar_one()
    return bytes(wrapped)


@pytest.fixture(params=["sqlite", "postgresql"])
def any_vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vault]:
    engine = open_engine(request.getfixturevalue(f"{request.param}_url"), timeout=30)
    yield open_vault(engine, master_key=None, master_key_file=tmp_path / "master.key", expected=False)
    engine.dispose()


def test_keys_are_random_and_open_again(any_vault: Vault) -> None:
    first, second = any_vault.new_keys("subject", 2)
    assert len({first.secret, second.secret}) == 2
    assert any_vault.open_keys([first.id, second.id, "f" * 32]) == {first.id: first.secret, second.id: second.secret}
    assert any_vault.known([first.id, "f" * 32]) == {first.id}


def test_keys_are_listed_by_their_purposes(any_vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.gallery.sealing.vault._MANY", 2)
    made = {f"snapshot {one}": any_vault.new_key(f"snapshot {one}").id for one in range(4)}
    any_vault.destroy([made["snapshot 0"]])
    any_vault.discard("snapshot 1")
    assert any_vault.ids(list(made)) == {made["snapshot 2"], made["snapshot 3"]}
    assert any_vault.ids(["snapshot 3", "none"]) == {made["snapshot 3"]}


def test_a_destroyed_key_leaves_its_id_alone(any_vault: Vault) -> None:
    gone, kept = any_vault.new_keys("subject", 2)
    assert any_vault.destroy([gone.id, "f" * 32]) == 1
    assert any_vault.destroy([gone.id]) == 0
    assert any_vault.open_keys([gone.id, kept.id]) == {gone.id: None, kept.id: kept.secret}
    assert list(any_vault.destroyed_keys()) == [[gone.id]]


def test_a_named_key_is_made_once(any_vault: Vault) -> None:
    start = threading.Barrier(4)

    def ask(_: int) -> bytes:
        start.wait()
        return any_vault.named_key("receipts").secret

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1


def test_the_bytes_of_a_destroyed_key_are_in_no_file(vault: Vault, tmp_path: Path) -> None:
    keys = vault.new_keys("subject", 50)
    wrapped = stored(vault.engine, keys[7].id)
    assert wrapped in files(tmp_path)
    vault.destroy([keys[7].id])
    assert wrapped not in files(tmp_path)
    assert wrapped[-16:] not in files(tmp_path)
    assert stored(vault.engine, keys[8].id) in files(tmp_path)


def test_no_key_stands_in_the_file_in_the_clear(vault: Vault, tmp_path: Path) -> None:
    key = vault.new_key("subject")
    assert key.secret not in files(tmp_path)
    assert vault.masters.first.secret not in files(tmp_path)


def test_swapped_and_damaged_keys_do_not_open(vault: Vault) -> None:
    first, second, third = vault.new_keys("subject", 3)
    with vault.engine.begin() as connection:
        connection.execute(
            text("UPDATE data_key SET wrapped = :w WHERE id = :id"),
            {"w": stored(vault.engine, second.id), "id": first.id},
        )
        connection.execute(text("UPDATE data_key SET wrapped = x'00' WHERE id = :id"), {"id": third.id})
    assert vault.open_keys([first.id, second.id, third.id]) == {second.id: second.secret}


# -- the master key


def test_the_wrong_master_key_stops_the_start(vault: Vault, open_again: OpenAgain, tmp_path: Path) -> None:
    vault.new_key("subject")
    (tmp_path / "master.key").write_text(MasterKey.make().written)
    with pytest.raises(
        MasterKeyMissing,
        match=r"^the vault's keys are wrapped by master key \w{16}, but the keys at hand are \w{16}; set",
    ):
        open_again()


def test_a_missing_master_key_stops_the_start(vault: Vault, open_again: OpenAgain, tmp_path: Path) -> None:
    (tmp_path / "master.key").unlink()
    with pytest.raises(MasterKeyMissing, match="there is no master key"):
        open_again()
    assert not (tmp_path / "master.key").exists()


def test_an_empty_vault_is_not_set_up_where_keys_are_expected(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{(tmp_path / 'vault.db').as_posix()}", timeout=30)
    with pytest.raises(
        KeyUnavailable, match=r"^the database has sealed templates, but the vault is empty; .*#without-a"
    ):
        open_vault(engine, master_key=None, master_key_file=tmp_path / "master.key", expected=True)
    engine.dispose()
    assert not (tmp_path / "master.key").exists()


def test_two_first_starts_agree_on_one_master_key(open_again: OpenAgain) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_again(), range(4)))
    assert len({one.master for one in opened}) == 1
    key = opened[0].new_key("subject")
    assert all(one.open_keys([key.id]) == {key.id: key.secret} for one in opened)


def test_a_rotation_wraps_every_key_anew_while_others_serve(any_vault: Vault) -> None:
    """Another process makes, opens and destroys keys meanwhile; none is lost, and no destroyed one comes back."""
    old = any_vault.master
    kept, doomed = any_vault.new_keys("subject", 300), any_vault.new_keys("subject", 40)
    file = any_vault.masters.file
    assert file is not None
    serving = Vault(any_vault.engine, MasterKeys(any_vault.masters.keys, file=file))
    rotated, made = threading.Event(), list(kept)

    def serve() -> None:
        for key in doomed:
            serving.destroy([key.id])
            made.append(serving.new_key("subject"))
            assert serving.open_keys([made[-1].id]) == {made[-1].id: made[-1].secret}
        assert rotated.wait(60)
        made.append(serving.new_key("subject"))

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        rotate_master_key(any_vault, batch=30)
        rotated.set()
        served.result(60)
    assert set(any_vault.wrapped_by()) == {any_vault.master}
    assert any_vault.master != old
    assert any_vault.open_keys([key.id for key in made]) == {key.id: key.secret for key in made}
    assert set(any_vault.open_keys([key.id for key in doomed]).values()) == {None}


def test_a_rotation_takes_as_long_as_it_does_whatever_limits_the_server_sets(
    postgresql_url: str, tmp_path: Path
) -> None:
    url = make_url(postgresql_url)
    options = f"{url.query['options']} -c idle_in_transaction_session_timeout=200"
    limited = url.update_query_dict({"options": options}).render_as_string(hide_password=False)
    engine = open_engine(limited, timeout=30)
    vault = open_vault(engine, master_key=None, master_key_file=tmp_path / "master.key", expected=False)
    vault.new_keys("subject", 2)
    done = rotate_master_key(vault, advance=lambda _wrapped: time.sleep(1))
    assert set(vault.wrapped_by()) == {done.master}
    engine.dispose()


def test_an_interrupted_rotation_goes_on(vault: Vault, open_again: OpenAgain) -> None:
    keys = vault.new_keys("subject", 10)
    vault.masters.replace([MasterKey.make(), *vault.masters.keys])
    vault.use_master(vault.masters.first)
    vault.rewrap(4)
    again = open_again()
    assert sorted(again.wrapped_by().values()) == [4, 6]
    assert again.open_keys([key.id for key in keys]) == {key.id: key.secret for key in keys}
    assert again.rewrap(100) == 6
    assert again.rewrap(100) == 0


def test_the_last_keys_of_a_rotation_cost_no_more_than_the_first(vault: Vault) -> None:
    vault.new_keys("subject", 2000)
    vault.masters.replace([MasterKey.make(), *vault.masters.keys])
    vault.use_master(vault.masters.first)
    costs = []
    for _ in range(20):
        with steps_of(vault.engine) as steps:
            assert vault.rewrap(100) == 100
        costs.append(len(steps))
    assert costs[-1] < 1.5 * costs[0]
    assert set(vault.wrapped_by()) == {vault.master}


def test_others_get_their_turn_while_the_master_key_is_rotated(vault: Vault) -> None:
    vault.new_keys("subject", 6000)
    with others_wait(vault.engine, "UPDATE data_key") as turns:
        rotate_master_key(vault, batch=1000)
    assert turns[-1] == 8


def test_the_keys_of_a_cache_are_found_without_those_of_subjects(vault: Vault, open_again: OpenAgain) -> None:
    with vault.engine.begin() as connection:  # as a vault of before is
        connection.execute(text("DROP INDEX IF EXISTS ix_data_key_purpose"))
    again, costs = open_again(), []
    for _ in range(2):
        again.new_keys("subject", 5000)
        again.new_key("snapshots-1")
        with steps_of(again.engine) as steps:
            assert again.discard("snapshots-1") == 1
        costs.append(len(steps))
    assert costs[1] < costs[0] + 20  # all of five thousand keys would be some hundred more


def test_what_a_start_and_a_sweep_ask_costs_the_same_however_many_keys_there_are(open_again: OpenAgain) -> None:
    vault, costs = open_again(), list[list[int]]()
    vault.new_key("snapshot 1")
    looks: list[Callable[[], bool]] = [
        lambda: vault.purposes("snap") == {"snapshot 1"},
        lambda: vault.masters_in_use() == {vault.master},
    ]
    for _ in range(2):
        vault.new_keys("subject", 5000)
        costs.append([])
        for look in looks:
            with steps_of(vault.engine) as steps:
                assert look()
            costs[-1].append(len(steps))
    assert [large - small < 5 for small, large in zip(*costs, strict=True)] == [True, True]


def test_purposes_that_begin_alike_are_told_from_those_around_them(any_vault: Vault) -> None:
    for purpose in ("Snapshot 1", "service", "snap 1f", "snapshot 12", "snap%", "sna", "subject"):
        any_vault.new_key(purpose)
    asked = list[object]()
    event.listen(any_vault.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    assert any_vault.purposes("snap") == {"snap 1f", "snapshot 12", "snap%"}
    assert len([one for one in asked if one != "BEGIN"]) == 1  # there is one for each gallery
    assert any_vault.purposes("snap%") == {"snap%"}
    assert any_vault.purposes("z") == set()


def test_destroyed_keys_are_found_without_the_others(vault: Vault, open_again: OpenAgain) -> None:
    with vault.engine.begin() as connection:  # as a vault of before is
        connection.execute(text("DROP INDEX IF EXISTS ix_data_key_destroyed"))
    again, costs = open_again(), []
    gone = [one.id for one in again.new_keys("subject", 3)]
    again.destroy(gone)
    for _ in range(2):
        again.new_keys("subject", 5000)
        with steps_of(again.engine) as steps:
            assert list(again.destroyed_keys()) == [sorted(gone)]
        costs.append(len(steps))
    assert costs[1] - costs[0] < 5


def beside(vault: Vault, file: Path) -> Vault:
    """The same vault as another machine opens it, with a copy of the master key's file."""
    file.write_text("\n".join(key.written for key in vault.masters.keys))
    file.chmod(0o600)
    return Vault(vault.engine, MasterKeys(read_master_keys(file), file=file))


def file_of(vault: Vault) -> Path:
    assert vault.masters.file is not None
    return vault.masters.file


def test_a_second_rotation_at_the_same_time_is_refused_and_no_key_is_lost(any_vault: Vault, tmp_path: Path) -> None:
    made = any_vault.new_keys("subject", 20)
    same = Vault(any_vault.engine, MasterKeys(any_vault.masters.keys, file=file_of(any_vault)))
    elsewhere = beside(any_vault, tmp_path / "copy.key")
    refused: list[str] = []

    def others(_: int) -> None:
        for other in (same, elsewhere):
            before = file_of(other).read_text()
            with pytest.raises(Busy, match="another rotation of the master key is under way"):
                rotate_master_key(other)
            refused.append(before)
            assert file_of(other).read_text() == before

    rotate_master_key(any_vault, batch=7, advance=others)
    assert len(refused) == 6
    assert [key.id for key in read_master_keys(file_of(any_vault))] == [any_vault.master]
    assert set(any_vault.wrapped_by()) == {any_vault.master}
    assert any_vault.open_keys([key.id for key in made]) == {key.id: key.secret for key in made}
    assert [path.name for path in tmp_path.glob(".*.lock")] == []


def test_a_rotation_with_a_file_that_another_vault_rotates_is_refused(vault: Vault, tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{(tmp_path / 'second.db').as_posix()}", timeout=30)
    second = open_vault(engine, master_key=None, master_key_file=file_of(vault), expected=False)
    vault.new_key("subject")

    def other(_: int) -> None:
        with pytest.raises(Busy):
            rotate_master_key(second)

    rotate_master_key(vault, keep_old=True, advance=other)
    assert vault.master in [key.id for key in read_master_keys(file_of(vault))]
    engine.dispose()


def test_a_rotation_begins_with_the_file_as_it_is_now(any_vault: Vault) -> None:
    key = any_vault.new_key("subject")
    late = Vault(any_vault.engine, MasterKeys(any_vault.masters.keys, file=file_of(any_vault)))
    first = rotate_master_key(any_vault)
    second = rotate_master_key(late)  # opened before the first began
    assert second.before == (first.master,)
    assert [one.id for one in read_master_keys(file_of(late))] == [late.master] == [second.master]
    assert late.open_keys([key.id]) == {key.id: key.secret}


def test_no_key_that_the_vault_names_leaves_the_file_nor_one_that_was_added_by_hand(vault: Vault) -> None:
    made, (old,), added = vault.new_keys("subject", 20), vault.masters.keys, MasterKey.make()

    def meddle(_: int) -> None:
        vault.use_master(old)  # as a process of another machine might, whose lock was lost
        with file_of(vault).open("a") as file:
            file.write(f"{added.written}\n")

    rotate_master_key(vault, batch=7, advance=meddle)
    kept = {key.id for key in read_master_keys(file_of(vault))}
    assert {old.id, added.id, vault.master, *vault.wrapped_by()} <= kept
    assert vault.open_keys([key.id for key in made]) == {key.id: key.secret for key in made}


def test_a_link_to_the_key_file_stays_and_leads_to_the_new_key(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "safe").mkdir()
    real = file_of(vault).rename(tmp_path / "safe" / "real.key")
    file_of(vault).symlink_to(real)
    old, key = vault.master, vault.new_key("subject")
    rotate_master_key(vault)
    assert file_of(vault).is_symlink()
    assert [one.id for one in read_master_keys(real)] == [vault.master] != [old]
    assert vault.open_keys([key.id]) == {key.id: key.secret}
    assert [path.name for path in (tmp_path / "safe").iterdir()] == ["real.key"]
