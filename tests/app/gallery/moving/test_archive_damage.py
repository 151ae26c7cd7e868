"""An archive that is not what it should be is refused, and loses nothing."""

import base64
import json
import lzma
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session

from app.gallery.consent import PrivacyRules
from app.gallery.errors import ArchiveDamaged
from app.gallery.index import ExactIndex
from app.gallery.journal import Event, NoJournal
from app.gallery.moving.archive import ArchiveReader
from app.gallery.moving.archive_lines import template_from_line
from app.gallery.moving.archive_manifest import MANIFEST, SUBJECTS, TEMPLATES
from app.gallery.store import GalleryStore
from model.pipeline import Networks
from model.quality import Quality
from tests.app.gallery.archives import export, fill, read_back, rewritten, templates_with_crops
from tests.databases import store_in


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, networks: Networks) -> bytes:
    """An archive of three people."""
    folder = tmp_path_factory.mktemp("source")
    with store_in(folder / "source.db") as store:
        fill(store, templates_with_crops(), networks.extractor.card.identity)
        export(store, folder / "a.zip")
    return (folder / "a.zip").read_bytes()


@pytest.fixture
def good(tmp_path: Path, written: bytes) -> Path:
    """The archive as a file of this test's own."""
    file = tmp_path / "a.zip"
    file.write_bytes(written)
    return file


@pytest.fixture
def other(tmp_path: Path) -> Iterator[GalleryStore]:
    """The store of an empty database."""
    with store_in(tmp_path / "other.db") as store:
        yield store


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(other: GalleryStore, networks: Networks, good: Path, share: float) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArchiveDamaged, match="no archive, or is cut off"):
        read_back(good, other, networks)
    assert other.galleries() == ()


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(
    networks: Networks, other: GalleryStore, good: Path
) -> None:
    data = good.read_bytes()
    changed, refused = good.with_name("b.zip"), 0
    with ArchiveReader(good) as archive:
        manifest = archive.manifest
    for place in range(0, len(data), max(1, len(data) // 150)):
        changed.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            with ArchiveReader(changed) as archive:
                archive.verify()
                members = archive.manifest.members
        except ArchiveDamaged:
            refused += 1
        else:
            assert members == manifest.members  # a bit that says nothing, such as a file's date
    assert refused > 120
    assert other.galleries() == ()


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_damage_to_members_that_another_program_packed_is_found(good: Path, method: int) -> None:
    packed = good.with_name("packed.zip")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(packed, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        start, length = target.getinfo(TEMPLATES).header_offset, target.getinfo(TEMPLATES).compress_size
    with ArchiveReader(packed) as archive:
        archive.verify()
    data = packed.read_bytes()
    refused = 0
    # The head of what is packed, each byte; a large piece of its middle.
    for place, count in [*((start + 30 + n, 1) for n in range(40)), (start + length // 2, 100)]:
        piece = bytes(byte ^ 0xFF for byte in data[place : place + count])
        packed.write_bytes(data[:place] + piece + data[place + count :])
        try:
            with ArchiveReader(packed) as archive:
                archive.verify()
        except ArchiveDamaged:
            refused += 1  # all but bytes that say nothing, such as the packer's version
    assert refused > 30


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 2**62])
def test_a_directory_of_an_impossible_length_or_place_is_damage(good: Path, length: int) -> None:
    """As of a file of more than 4 GiB: the end names the directory's length and place with 64 bits."""
    data = good.read_bytes()
    at = data.rindex(b"PK\5\6")
    for size, place in ((length, 0), (0, length), (length, length), (10, length - 10)):
        end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, size, place)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
        good.write_bytes(data[:at] + end + locator + data[at : at + 8] + b"\xff" * 12 + b"\0\0")
        with pytest.raises(ArchiveDamaged):
            ArchiveReader(good)


@pytest.mark.parametrize("failure", [MemoryError(), OverflowError("too large"), struct.error("bad"), lzma.LZMAError()])
def test_whatever_unpacking_raises_is_damage(good: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    with ArchiveReader(good) as archive:

        def fail(*_: Any) -> bytes:
            raise failure

        monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
        with pytest.raises(ArchiveDamaged, match=r"subjects\.jsonl cannot be read \(\w"):
            archive.verify()


@pytest.mark.parametrize("member", [SUBJECTS, TEMPLATES])
def test_changed_content_is_refused_before_anything_is_stored(
    other: GalleryStore, networks: Networks, good: Path, member: str
) -> None:

    def swap(members: dict[str, bytes]) -> None:
        members[member] = members[member].replace(b"anna", b"anne")

    with pytest.raises(ArchiveDamaged, match=f"^{member} is not the one that the archive was written with"):
        read_back(rewritten(good, swap, honest=False), other, networks)
    assert other.galleries() == ()


def test_more_is_not_unpacked_than_was_promised(good: Path) -> None:

    def grow(members: dict[str, bytes]) -> None:
        members[TEMPLATES] += bytes(50_000_000)

    told: list[int] = []
    with ArchiveReader(rewritten(good, grow, honest=False)) as archive, pytest.raises(ArchiveDamaged):
        archive.verify(told.append)
    assert sum(told) < 5_000_000


@pytest.mark.parametrize("name", ["../../etc/passwd", "/tmp/x", "subjects.jsonl/../x", "more.jsonl", SUBJECTS])
def test_members_that_should_not_be_there_are_refused(good: Path, name: str) -> None:
    with zipfile.ZipFile(good, "a") as container:
        if name == SUBJECTS:
            with pytest.warns(UserWarning, match="Duplicate name"):
                container.writestr(name, b"")
        else:
            container.writestr(name, b"")
    with pytest.raises(ArchiveDamaged, match="other members"):
        ArchiveReader(good)
    assert [path.name for path in good.parent.iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "x"}, "another format"),
        ({"version": 2}, "has version 2, this program reads version 1"),
        ({"dimension": 2**40}, "an impossible dimension"),
        ({"extractor": None}, "expected text"),
        ({"members": {}}, "other members"),
        ({"counts": {"subjects": 9, "templates": 9, "crops": 0}}, "contradict"),
        ({"policy": {"fpir": 7}}, "fpir is a rate"),
        ({"created_at": "2026-01-01T00:00:00"}, "no zone"),
    ],
)
def test_an_impossible_manifest_is_refused(good: Path, change: dict[str, Any], sentence: str) -> None:

    def lie(members: dict[str, bytes]) -> None:
        members[MANIFEST] = json.dumps(json.loads(members[MANIFEST]) | change).encode()

    with pytest.raises(ArchiveDamaged, match=sentence):
        ArchiveReader(rewritten(good, lie, honest=False))


def test_no_manifest_is_no_archive(good: Path) -> None:
    with zipfile.ZipFile(good, "w") as container:
        container.writestr("photo.jpg", b"")
    with pytest.raises(ArchiveDamaged, match=r"has no manifest\.json"):
        ArchiveReader(good)


def change_template(**values: Any) -> Callable[[dict[str, bytes]], None]:
    """The last template with other values."""

    def change(members: dict[str, bytes]) -> None:
        *first, last = members[TEMPLATES].splitlines(keepends=True)
        members[TEMPLATES] = b"".join(first) + json.dumps(json.loads(last) | values).encode() + b"\n"

    return change


def embedding(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    "values",
    [
        {"embedding": embedding(1.0)},
        {"embedding": embedding(*[0.0] * 128)},
        {"embedding": embedding(*[float("nan")] * 128)},
        {"embedding": "***"},
        {"quality": {}},
        {"quality": {"detection_score": True, "face_size": 1, "sharpness": 1, "yaw": 0, "pitch": 0, "roll": 0}},
        {"crop_sha256": "x"},
        {"created_at": "yesterday"},
        {"created_at": "0001-01-01T00:00:00+14:00"},
        {"created_at": "9999-12-31T23:59:59-14:00"},
        {"quality": {"detection_score": 10**400, "face_size": 1, "sharpness": 1, "yaw": 0, "pitch": 0, "roll": 0}},
        {"subject": "anna"},
        {"subject": 7},
        {"crop": base64.b64encode(bytes(70_000)).decode()},
    ],
)
def test_a_consistent_lie_about_one_person_stops_there_and_the_others_are_whole(
    other: GalleryStore, networks: Networks, good: Path, values: dict[str, Any]
) -> None:
    archive = rewritten(good, change_template(**values), honest=True)
    with pytest.raises(ArchiveDamaged, match=r"templates\.jsonl(, line 5: | has a template whose subject)"):
        read_back(archive, other, networks)
    keys = [one.key for one in other.subjects("people", after=0, limit=10).items]
    assert set(keys) <= {"anna", "nobody", "bob/é"}
    assert all(
        other.subject("people", key).templates == {"anna": 2, "nobody": 0}[key] for key in keys if key != "bob/é"
    )
    read_back(good, other, networks)  # the true archive mends it
    size = other.size(other.gallery("people"))
    assert (size.subjects, size.templates) == (3, 5)


def test_an_archive_and_an_index_take_the_same_embeddings_to_the_last_bit() -> None:
    """At the limit of what counts as normalised, too: one that only the index refused would take its gallery down."""
    random, taken = np.random.default_rng(0), 0
    values = {"subject": "anna", "crop_sha256": "a" * 64, "created_at": "2026-01-01T00:00:00+00:00"}
    quality = asdict(Quality(0.9, 80, 100, 0, 0, 0))
    for _ in range(3000):
        drawn = random.normal(size=128)
        vector = (drawn / np.linalg.norm(drawn) * 1.00099999).astype(np.float32)
        line = json.dumps({**values, "quality": quality, "embedding": embedding(*vector)}).encode()
        index = ExactIndex(128)
        try:
            template_from_line(line, 128)
        except ValueError:
            with pytest.raises(ValueError, match="L2-normalised"):
                index.add(np.array([1]), vector[None])
        else:
            index.add(np.array([1]), vector[None])
            taken += 1
    assert 0 < taken < 3000


@pytest.mark.parametrize(
    "line", [b'{"subject": "a\\u0000b"}\n', b"[]\n", b"[" * 100_000 + b"\n", b"x" * 2_000_000 + b"\n"]
)
def test_a_line_that_is_no_subject_is_refused(other: GalleryStore, networks: Networks, good: Path, line: bytes) -> None:

    def put_first(members: dict[str, bytes]) -> None:
        members[SUBJECTS] = line + members[SUBJECTS]

    with pytest.raises(ArchiveDamaged, match=r"^subjects\.jsonl"):
        read_back(rewritten(good, put_first, honest=True), other, networks)
    assert other.subjects("people", after=0, limit=10).items == ()


def test_embeddings_of_another_length_than_the_extractors_are_refused(
    other: GalleryStore, networks: Networks, good: Path
) -> None:

    def shorten(members: dict[str, bytes]) -> None:
        members[MANIFEST] = json.dumps(json.loads(members[MANIFEST]) | {"dimension": 64}).encode()
        templates = [json.loads(line) for line in members[TEMPLATES].splitlines()]
        short = [one | {"embedding": embedding(1.0, *[0.0] * 63)} for one in templates]
        members[TEMPLATES] = b"".join(json.dumps(one).encode() + b"\n" for one in short)

    with pytest.raises(ArchiveDamaged, match="have 64 numbers; they have 128"):
        read_back(rewritten(good, shorten, honest=True), other, networks)
    assert other.galleries() == ()


def test_an_import_that_dies_leaves_no_gallery_without_its_rules(
    other: GalleryStore, networks: Networks, tmp_path: Path
) -> None:
    rules = PrivacyRules(require_consent=True, keep_days=30)
    with store_in(tmp_path / "source.db") as store:
        extractor = networks.extractor.card.identity
        store.create_gallery("people", extractor=extractor, dimension=128, policy=None, privacy=rules)
        export(store, tmp_path / "b.zip")

    class Died(BaseException): ...

    class Journal(NoJournal):
        def write(self, _session: Session, event: Event) -> None:
            if event.action == "change-gallery":
                raise Died

    with pytest.raises(Died):
        read_back(tmp_path / "b.zip", GalleryStore(other.engine, journal=Journal()), networks)
    assert other.galleries() == ()
    read_back(tmp_path / "b.zip", other, networks)
    assert other.gallery("people").privacy == rules


def test_a_crop_that_is_not_the_templates_makes_no_embedding(
    other: GalleryStore, networks: Networks, tmp_path: Path
) -> None:
    first, second = templates_with_crops()(2)
    other.enroll("people", "a", [replace(first, crop=second.crop)], metadata=None, extractor="old@1", dimension=128)
    export(other, tmp_path / "b.zip")
    with pytest.raises(ArchiveDamaged, match="not the one that its template was made of"):
        read_back(tmp_path / "b.zip", other, networks, gallery="copy")
