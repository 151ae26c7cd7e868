import csv
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.photo_folder import DatasetError, Photo
from model.training.photo_set import first_people, is_prepared, only_people, photos_of
from model.training.preparation import EMBEDDINGS, MANIFEST, PREPARATION, PreparedPhoto

PHOTOS = tuple(Photo(Path(person) / f"{number}.jpg", person) for person in ("Ann", "Bob", "Cy") for number in (1, 2))


def write_prepared(folder: Path, *photos: PreparedPhoto) -> None:
    with (folder / MANIFEST).open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(PreparedPhoto)])
        writer.writeheader()
        writer.writerows(asdict(photo) for photo in photos)
    np.save(folder / EMBEDDINGS, np.zeros((len(photos), 4), np.float32))
    (folder / PREPARATION).write_text('{"extractor": "base@0"}')


def test_a_folder_of_people_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "Ann").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "Ann" / "1.png")

    assert not is_prepared(tmp_path)
    assert photos_of(tmp_path) == (Photo(tmp_path / "Ann" / "1.png", "Ann"),)


def test_of_a_prepared_folder_only_crops_without_a_flag_are_taken(tmp_path: Path) -> None:
    write_prepared(
        tmp_path,
        PreparedPhoto("Ann", "Ann/1.jpg", "a", crop="crops/Ann/1.jpg.png"),
        PreparedPhoto("Ann", "Ann/2.jpg", "b", crop="crops/Ann/2.jpg.png", flag="far from Ann's others"),
        PreparedPhoto("Ann", "Ann/3.jpg", "c", refused="no face was found"),
    )

    assert is_prepared(tmp_path)
    assert photos_of(tmp_path) == (Photo(tmp_path / "crops/Ann/1.jpg.png", "Ann"),)


def test_a_prepared_folder_without_a_good_crop_is_an_error(tmp_path: Path) -> None:
    write_prepared(tmp_path, PreparedPhoto("Ann", "Ann/3.jpg", "c", refused="no face was found"))

    with pytest.raises(DatasetError, match="has no crops without a flag"):
        photos_of(tmp_path)


def test_people_are_chosen_by_a_list(tmp_path: Path) -> None:
    names = tmp_path / "people.txt"
    names.write_text("Cy\n\n  Ann \n", encoding="utf-8")

    assert only_people(PHOTOS, names) == (*PHOTOS[:2], *PHOTOS[4:])


@pytest.mark.parametrize(("text", "complaint"), [("Ann\nDora\nEve\n", "no photos of Dora, Eve"), ("\n", "of anybody")])
def test_people_without_photos_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    names = tmp_path / "people.txt"
    names.write_text(text)

    with pytest.raises(DatasetError, match=complaint):
        only_people(PHOTOS, names)


def test_a_missing_list_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot read"):
        only_people(PHOTOS, tmp_path / "none.txt")


def test_the_first_people_keep_all_their_photos() -> None:
    assert first_people(PHOTOS, 2) == PHOTOS[:4]
    assert first_people(PHOTOS, 9) == PHOTOS
