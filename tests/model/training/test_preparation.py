import csv
import dataclasses
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from model.alignment import align_face
from model.extractor import Extractor
from model.photo_folder import DatasetError
from model.pipeline import Networks
from model.training.preparation import name_words, prepare, read_crop, read_prepared


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos of the astronaut, one of nobody, one that is no photo, and a person to leave out."""
    folder = tmp_path / "photos"
    for person in ("pins_Eileen Collins", "pins_Nobody", "pins_Tom_Cruise"):
        (folder / person).mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(folder / "pins_Eileen Collins" / "1.png")
    Image.fromarray(data.astronaut()[:, ::-1]).save(folder / "pins_Eileen Collins" / "2.png")
    Image.new("RGB", (200, 200), "grey").save(folder / "pins_Nobody" / "1.png")
    (folder / "pins_Nobody" / "2.png").write_text("no photo")
    Image.fromarray(data.astronaut()).save(folder / "pins_Tom_Cruise" / "1.png")
    return folder


def test_the_manifest_tells_of_every_photo(photos: Path, tmp_path: Path, networks: Networks) -> None:
    prepare(photos, tmp_path / "out", networks, left_out=["tom cruise"], prefix="pins_")

    with (tmp_path / "out" / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["person"], row["file"]) for row in rows] == [
        ("Eileen Collins", "pins_Eileen Collins/1.png"),
        ("Eileen Collins", "pins_Eileen Collins/2.png"),
        ("Nobody", "pins_Nobody/1.png"),
        ("Nobody", "pins_Nobody/2.png"),
    ]
    assert [row["refused"] for row in rows][:3] == ["", "", "no face was found"]
    assert rows[3]["refused"].startswith("the file is not a photo that can be read")
    assert [bool(row["crop"]) for row in rows] == [True, True, False, False]


def test_crops_and_embeddings_are_those_of_the_networks(photos: Path, tmp_path: Path, networks: Networks) -> None:
    prepared = prepare(photos, tmp_path / "out", networks, left_out=["Tom Cruise"], prefix="pins_")

    (face,) = networks.detector.detect(data.astronaut())
    crop = align_face(data.astronaut(), face.landmarks)
    np.testing.assert_array_equal(read_crop(tmp_path / "out" / prepared.photos[0].crop), crop)
    np.testing.assert_allclose(prepared.embeddings[0], networks.extractor.embed(crop[None])[0], atol=1e-5)
    assert np.isnan(prepared.embeddings[2:]).all()
    assert prepared.usable.tolist() == [0, 1]


def test_what_was_written_is_read_back(photos: Path, tmp_path: Path, networks: Networks) -> None:
    prepared = prepare(photos, tmp_path / "out", networks)

    again = read_prepared(tmp_path / "out")

    assert (again.photos, again.extractor) == (prepared.photos, networks.extractor.card.identity)
    np.testing.assert_array_equal(again.embeddings, prepared.embeddings)


def test_no_crop_of_two_folders_of_one_person_is_written_over(tmp_path: Path, networks: Networks) -> None:
    folders = ("Tom Cruise", "Tom_Cruise", "tom cruise")
    for number, folder in enumerate(folders):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        pixels = data.astronaut()[: 512 - 40 * number, :: -1 if number == 1 else 1]
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "photos" / folder / "1.png")

    prepared = prepare(tmp_path / "photos", tmp_path / "out", networks)

    assert [(photo.person, photo.file) for photo in prepared.photos] == [
        ("Tom Cruise", f"{folder}/1.png") for folder in folders
    ]
    assert len({photo.crop for photo in prepared.photos}) == 3
    crops = np.stack([read_crop(tmp_path / "out" / photo.crop) for photo in prepared.photos])
    np.testing.assert_allclose(networks.extractor.embed(crops), prepared.embeddings, atol=1e-5)


def test_a_second_run_goes_on_where_the_first_one_stopped(photos: Path, tmp_path: Path, networks: Networks) -> None:
    whole = prepare(photos, tmp_path / "out", networks)
    (tmp_path / "out" / "people" / "pins Eileen Collins.npz").unlink()
    kept = tmp_path / "out" / "crops" / "pins Tom Cruise" / "1.png.png"
    Image.new("RGB", (112, 112), "grey").save(kept)  # would be written over if the person were prepared again
    untouched = kept.read_bytes()

    again = prepare(photos, tmp_path / "out", networks)

    assert [dataclasses.replace(photo, flag="") for photo in again.photos] == [
        dataclasses.replace(photo, flag="") for photo in whole.photos
    ]
    assert kept.read_bytes() == untouched


def test_a_new_photo_is_seen(photos: Path, tmp_path: Path, networks: Networks) -> None:
    prepare(photos, tmp_path / "out", networks)
    Image.fromarray(data.astronaut()[:400]).save(photos / "pins_Nobody" / "3.png")

    again = prepare(photos, tmp_path / "out", networks)

    assert [bool(photo.crop) for photo in again.photos if photo.person == "pins Nobody"] == [False, False, True]


def test_another_extractor_needs_another_folder(photos: Path, tmp_path: Path, networks: Networks) -> None:
    prepare(photos, tmp_path / "out", networks)
    card = dataclasses.replace(networks.extractor.card, sha256="0" * 64)
    other = Networks(networks.detector, Extractor(networks.extractor._network, card))

    with pytest.raises(DatasetError, match="was prepared by"):
        prepare(photos, tmp_path / "out", other)


def test_a_folder_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="run `facemodel prepare`"):
        read_prepared(tmp_path)


def test_names_are_compared_word_by_word() -> None:
    assert name_words("Robert_Downey  Jr") == name_words("robert downey jr") == ("robert", "downey", "jr")
    assert name_words("Conan O'Brien-Smith") == ("conan", "o", "brien", "smith")


@pytest.mark.parametrize("name", ["Renée Zellweger", "İbrahim Çelik", "Nguyễn Văn A", "Straße", "ᾳδης"])
def test_a_name_is_one_person_in_every_form_of_unicode(name: str) -> None:
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}

    assert len({name_words(form) for form in forms}) == 1
    assert len({name_words(form.casefold()) for form in forms}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("मीरा", "मोरा"), ("कमल", "कमाल"), ("สมชาย", "สมชัย"), ("!!!", "???"), ("José", "Jose"), ("A+", "A")],
)
def test_two_names_are_two_people(one: str, other: str) -> None:
    assert name_words(one) != name_words(other)
    assert name_words(one) != () != name_words(other)
