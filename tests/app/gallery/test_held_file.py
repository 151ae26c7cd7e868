from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.gallery.errors import Busy
from app.gallery.held_file import held


def test_a_held_file_refuses_the_second_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    with held(tmp_path / "a.db", refusal="taken"):
        with pytest.raises(Busy, match=r"^taken$"), held(tmp_path / "a.db", refusal="taken"):
            pass
        with held(tmp_path / "b.db", refusal="taken"):
            pass
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "a.db", refusal="taken"):
        pass


def test_of_many_that_come_and_go_one_holds_it(tmp_path: Path) -> None:
    inside = [0]

    def work(_: int) -> int:
        done = 0
        for _ in range(200):
            try:
                with held(tmp_path / "a.db", refusal="taken"):
                    inside[0] += 1
                    assert inside[0] == 1
                    inside[0] -= 1
                    done += 1
            except Busy:
                pass
        return done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) > 0


def test_a_folder_by_another_name_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (
        held(tmp_path / "real" / "a.db", refusal="taken"),
        pytest.raises(Busy),
        held(tmp_path / "link" / "a.db", refusal="taken"),
    ):
        pass
