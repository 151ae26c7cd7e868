from pathlib import Path

import pytest

from model.photo_folder import DatasetError, list_photos


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_photos_come_in_the_order_of_the_names_with_their_people(tmp_path: Path) -> None:
    touch(tmp_path, "Zoe/1.png", "Ann/b.JPG", "Ann/a.jpeg")

    photos = list_photos(tmp_path)

    assert [(photo.subject, photo.name) for photo in photos] == [("Ann", "a"), ("Ann", "b"), ("Zoe", "1")]


def test_hidden_files_and_what_is_no_photo_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "Ann/a.jpg", "Ann/._a.jpg", "Ann/notes.txt", ".cache/x.jpg", "loose.jpg", ".DS_Store")

    (tmp_path / "Ann" / "dead.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "Ann" / "folder.jpg").mkdir()
    (tmp_path / "Ann" / "link.jpg").symlink_to(tmp_path / "Ann" / "a.jpg")

    assert [photo.name for photo in list_photos(tmp_path)] == ["a", "link"]


def test_a_folder_that_is_not_there_or_has_no_photos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        list_photos(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="holds no photos; expected a folder for each person"):
        list_photos(tmp_path)
