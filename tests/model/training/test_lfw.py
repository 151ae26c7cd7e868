from pathlib import Path

import pytest

from model.photo_folder import DatasetError
from model.training.lfw import DUPLICATES, RELABELLED, Pair, corrected_subject, find_pairs_file, read_pairs

PAIRS = "2\t1\nAnn\t1\t4\nAnn\t2\tBob\t13\nCy\t1\t2\nBob\t1\tCy\t3\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pairs.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_pairs_are_read_fold_by_fold(tmp_path: Path) -> None:
    assert read_pairs(write(tmp_path, PAIRS)) == (
        Pair("Ann_0001", "Ann_0004", True, 0),
        Pair("Ann_0002", "Bob_0013", False, 0),
        Pair("Cy_0001", "Cy_0002", True, 1),
        Pair("Bob_0001", "Cy_0003", False, 1),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: expected the number of folds and of pairs"),
        ("10\n", "line 1: expected the number of folds and of pairs"),
        ("ten\t300\n", "line 1: expected whole numbers, found 'ten 300'"),
        ("2\t1\nAnn\t1\t4\n", "2 folds of 1 mated and 1 non-mated pairs are not 1 lines"),
        ("1\t1\nAnn\t1\tBob\t1\nAnn\t1\tBob\t1\n", "line 2: expected a mated pair"),
        ("1\t1\nAnn\t1\t2\nAnn\t1\t2\n", "line 3: expected a non-mated pair"),
        ("1\t1\nAnn\t1\tx\nAnn\t1\tBob\t2\n", "line 2: expected whole numbers, found '1 x'"),
    ],
)
def test_another_form_is_named_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(DatasetError, match=complaint):
        read_pairs(write(tmp_path, text))


def test_pairs_are_found_in_the_folder_or_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "lfw"
    folder.mkdir()
    with pytest.raises(DatasetError, match="give its place with --pairs"):
        find_pairs_file(folder)
    beside = write(tmp_path, PAIRS)
    assert find_pairs_file(folder) == beside
    inside = write(folder, PAIRS)
    assert find_pairs_file(folder) == inside


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot read"):
        read_pairs(tmp_path / "none.txt")


def test_errata_rename_drop_and_leave_alone() -> None:
    assert corrected_subject("Recep_Tayyip_Erdogan_0004", "Recep_Tayyip_Erdogan") == "Abdullah_Gul"
    assert corrected_subject("Carlos_Beltran_0001", "Carlos_Beltran") is None
    assert corrected_subject("Abdullah_Gul_0001", "Abdullah_Gul") == "Abdullah_Gul"


def test_errata_change_every_label_they_name() -> None:
    assert all(photo.rpartition("_")[0] != subject for photo, subject in RELABELLED.items())
    assert not DUPLICATES & RELABELLED.keys()
