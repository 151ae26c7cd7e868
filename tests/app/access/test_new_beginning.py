"""Who has lost the pepper begins anew, keeps what there was in a file, and hides nothing by it."""

import json
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, delete, make_url

from app.access.audit_log import AuditLog
from app.access.key_store import KeyStore
from app.access.keys import ALL_SCOPES, KeyHasher
from app.access.new_beginning import begin_anew
from app.access.pepper import Pepper
from app.access.tables import AuditHeadRow
from app.gallery.errors import InvalidInput, StorageUnwritable
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import migrate
from app.gallery.sql.rows import Sessions
from app.gallery.tables import now

LOST, PRESENT = Pepper("x" * 32), Pepper("y" * 32)


def keys_with(engine: Engine, pepper: Pepper) -> KeyStore:
    return KeyStore(engine, KeyHasher(pepper), AuditLog(engine, pepper))


def nothing(_lines: Iterator[str]) -> None:
    raise AssertionError


def test_the_log_and_the_keys_of_the_lost_pepper_are_kept_and_go(engine: Engine) -> None:
    before, kept = AuditLog(engine, LOST), list[str]()
    made = [keys_with(engine, LOST).create(name, ALL_SCOPES)[0].id for name in ("café", "door")]
    keys_with(engine, LOST).revoke(made[1])
    before.prune(now(), up_to=1)
    entries, head = list(before.entries()), before.head()

    assert begin_anew(engine, PRESENT, kept.extend) == 2

    assert kept[: len(entries)] == entries
    others = [json.loads(line) for line in kept[len(entries) :]]
    assert [(end["end"], end["count"]) for end in others[:2]] == [(1, head.count), (2, 1)]
    assert {key["key"]: (key["name"], key["revoked_at"] is None) for key in others[2:]} == {
        made[0]: ("café", True),
        made[1]: ("door", False),
    }
    after = AuditLog(engine, PRESENT)
    assert (after.verify().flaws, keys_with(engine, PRESENT).keys()) == ((), ())
    (first,) = (json.loads(line)["entry"] for line in after.entries())
    assert (first["action"], first["details"]) == ("begin-audit-anew", {"had": str(head), "keys": sorted(made)})
    assert after.verify(head).flaws  # whoever wrote the old head down sees it
    assert keys_with(engine, PRESENT).first_key() is not None


def test_a_log_that_can_go_on_stays(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="goes on with the pepper at hand"):
        begin_anew(engine, PRESENT, nothing)
    keys_with(engine, PRESENT).create("door", ALL_SCOPES)
    with pytest.raises(InvalidInput, match="goes on with the pepper at hand"):
        begin_anew(engine, PRESENT, nothing)
    assert AuditLog(engine, PRESENT).verify().flaws == ()


def test_a_log_without_its_head_begins_anew_and_keys_of_the_present_pepper_stay(engine: Engine) -> None:
    keys = keys_with(engine, PRESENT)
    made, _ = keys.create("door", ALL_SCOPES)
    with Sessions(engine).writing() as session:
        session.execute(delete(AuditHeadRow))
    assert begin_anew(engine, PRESENT, list[str]().extend) == 0
    assert keys.keys() == (made,)
    assert AuditLog(engine, PRESENT).verify().flaws == ()


def test_what_cannot_be_kept_does_not_go(engine: Engine) -> None:
    keys_with(engine, LOST).create("door", ALL_SCOPES)

    def full(lines: Iterator[str]) -> None:
        next(lines)
        raise StorageUnwritable("the disk is full")

    with pytest.raises(StorageUnwritable):
        begin_anew(engine, PRESENT, full)
    before = AuditLog(engine, LOST)
    assert (before.verify().flaws, len(keys_with(engine, LOST).keys())) == ((), 1)


def test_a_beginning_takes_as_long_as_it_does_whatever_limits_the_server_sets(postgresql_url: str) -> None:
    """As where an archive of many entries is written to a slow disk."""
    url = make_url(postgresql_url)
    limits = f"{url.query.get('options', '')} -cidle_in_transaction_session_timeout=200"
    engine = open_engine(url.update_query_dict({"options": limits}).render_as_string(hide_password=False), timeout=30)
    migrate(engine)
    keys_with(engine, LOST).create("door", ALL_SCOPES)

    def slow(lines: Iterator[str]) -> None:
        time.sleep(0.5)
        assert len(list(lines)) == 3

    assert begin_anew(engine, PRESENT, slow) == 1
    engine.dispose()
