"""Many photos into a gallery: once, again, and after a break."""

import errno
import os
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Engine, select, update

from app.gallery.consent import Consent, PrivacyRules
from app.gallery.enrolling import Enroller
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention
from app.gallery.errors import ExtractorMismatch, GalleryNotFound, SourceUnreadable
from app.gallery.moving import importing
from app.gallery.moving.exporting import open_snapshot
from app.gallery.moving.import_sources import PeopleSource, people_of_folder, people_of_table
from app.gallery.moving.importing import ImportReport, PeopleImport
from app.gallery.photos import Photo, PhotoReader
from app.gallery.records import Enrolment, Subject
from app.gallery.store import GalleryStore
from app.gallery.tables import CropRow
from model.image import ImageLimits
from model.pipeline import Networks
from model.quality import QualityLimits


@pytest.fixture
def reader(networks: Networks) -> PhotoReader:
    return PhotoReader(
        networks, image_limits=ImageLimits(), quality_limits=QualityLimits(), workers=2, queue_timeout=30
    )


@pytest.fixture
def run(store: GalleryStore, reader: PhotoReader) -> Callable[..., ImportReport]:
    def run(
        source: PeopleSource, progress: Callable[[int, int], None] = lambda _, __: None, *, keep_crops: bool = False
    ) -> ImportReport:
        job = PeopleImport(store, reader, "people", workers=2, max_bytes=10**7, keep_crops=keep_crops)
        return job.run(source, progress)

    return run


@pytest.fixture
def folder(tmp_path: Path, astronaut: NDArray[np.uint8]) -> Path:
    """Two people, of three and two photos, and a file that is none."""
    views = [astronaut, astronaut[:, ::-1], astronaut[::, 20:], astronaut[10:], astronaut[:500]]
    for number, view in enumerate(views):
        person = tmp_path / "people" / ("anna" if number < 3 else "bob")
        person.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(view)).save(person / f"{number}.png")
    (tmp_path / "people" / "bob" / "x.jpg").write_text("no photo")
    return tmp_path / "people"


def rows(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def test_a_folder_is_imported_once(
    folder: Path, run: Callable[..., ImportReport], store: GalleryStore, reader: PhotoReader, engine: Engine
) -> None:
    told: list[tuple[int, int]] = []
    report = run(people_of_folder(folder), lambda *counts: told.append(counts))
    assert (report.added, report.known, report.passed_over) == (5, 0, 0)
    assert [(one.photo, one.slug) for one in report.refused] == [("bob/x.jpg", "unsupported-image")]
    assert told == [(6, 0)]
    assert [(one.key, one.templates) for one in store.subjects("people", after=0, limit=9).items] == [
        ("anna", 3),
        ("bob", 2),
    ]
    face = reader.one_face(Photo("0", (folder / "anna" / "0.png").read_bytes()), "single", part="0")
    stored = store.subject_embeddings(store.subject("people", "anna").id).embeddings
    np.testing.assert_allclose(stored[0], reader.embed([face])[0], atol=1e-5)
    before = store.gallery("people")
    again = run(people_of_folder(folder), lambda *counts: told.append(counts))
    assert told[1:] == [(6, 5)]
    assert (again.added, again.known, again.passed_over, len(again.refused)) == (0, 0, 5, 1)
    assert store.gallery("people") == before
    assert (rows(engine, "imported_photo"), rows(engine, "crop")) == (5, 0)


def test_after_a_break_it_goes_on(lfw_sample: Path, store: GalleryStore, reader: PhotoReader) -> None:
    source = people_of_folder(lfw_sample)
    source = PeopleSource(tuple(source.photos)[:140])

    class Break(Exception): ...

    def stop(_count: int, _passed_over: int) -> None:
        raise Break

    def job() -> PeopleImport:
        return PeopleImport(store, reader, "people", workers=2, max_bytes=10**7, face="largest")

    with pytest.raises(Break):
        job().run(source, stop)
    done = store.size(store.gallery("people")).templates
    assert 50 < done <= 64
    with pytest.raises(Break):
        job().run(source, stop)  # nothing new was in the first batch
    report = job().run(source)
    assert report.passed_over == done
    assert report.added == 140 - done - len(report.refused)
    assert store.size(store.gallery("people")).templates == 140 - len(report.refused)


def test_the_same_photo_in_another_file_adds_nothing(
    folder: Path, run: Callable[..., ImportReport], astronaut: NDArray[np.uint8]
) -> None:
    run(people_of_folder(folder))
    file = BytesIO()
    Image.fromarray(astronaut).save(file, "PNG", compress_level=1)
    (folder / "anna" / "copy.png").write_bytes(file.getvalue())
    report = run(people_of_folder(folder))
    assert (report.added, report.known, report.passed_over) == (0, 1, 5)
    assert run(people_of_folder(folder)).passed_over == 6


def test_who_was_erased_can_be_imported_again(
    folder: Path, run: Callable[..., ImportReport], store: GalleryStore, engine: Engine
) -> None:
    run(people_of_folder(folder))
    store.delete_subject("people", "anna")
    assert rows(engine, "imported_photo") == 2
    report = run(people_of_folder(folder))
    assert (report.added, report.passed_over) == (3, 2)


def test_a_gallery_that_is_erased_meanwhile_is_not_made_again(
    folder: Path, run: Callable[..., ImportReport], store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_BATCH", 2)
    source = people_of_folder(folder)
    told = list[int]()

    def erase(count: int, _passed_over: int) -> None:
        told.append(count)
        if len(told) == 2:
            store.delete_gallery("people")

    with pytest.raises(GalleryNotFound, match="was erased meanwhile"):
        run(source, erase)
    assert store.galleries() == ()
    assert run(source).added == 5


def test_a_gallery_that_is_erased_while_known_photos_are_passed_over_is_not_made_again(
    folder: Path, run: Callable[..., ImportReport], store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_BATCH", 2)
    source = people_of_folder(folder)
    run(source)
    store.delete_subject("people", "bob")
    told = list[int]()

    def erase(_count: int, passed_over: int) -> None:
        told.append(passed_over)
        if len(told) == 1:
            store.delete_gallery("people")

    with pytest.raises(GalleryNotFound, match="was erased meanwhile"):
        run(source, erase)
    assert told[0] == 2
    assert store.galleries() == ()


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_gallery_that_is_erased_as_a_subject_is_about_to_be_stored_is_not_made_again(
    folder: Path, engine: Engine, reader: PhotoReader, made_anew: bool
) -> None:
    class Erased(GalleryStore):
        """Erases the gallery, and makes another one of that name, before the transaction that stores the second."""

        def enroll(self, gallery: str, key: str, *args: Any, **options: Any) -> Enrolment:
            if key == "bob":
                former = self.delete_gallery(gallery)
                if made_anew:
                    self.create_gallery(gallery, extractor=former.extractor, dimension=former.dimension, policy=None)
            return super().enroll(gallery, key, *args, **options)

    store = Erased(engine)
    with pytest.raises(GalleryNotFound, match=r"^gallery 'people' was erased meanwhile$"):
        PeopleImport(store, reader, "people", workers=2, max_bytes=10**7).run(people_of_folder(folder))
    assert [store.size(one).subjects for one in store.galleries()] == [0] * made_anew


def test_crops_are_kept_later_where_they_are_wanted(
    folder: Path, run: Callable[..., ImportReport], engine: Engine
) -> None:
    run(people_of_folder(folder))
    report = run(people_of_folder(folder), keep_crops=True)
    assert (report.added, report.known, rows(engine, "crop")) == (0, 5, 5)
    assert run(people_of_folder(folder), keep_crops=True).passed_over == 5


def test_a_crop_that_does_not_open_any_more_is_made_whole_again(
    folder: Path, sealed_store: GalleryStore, reader: PhotoReader
) -> None:
    job = PeopleImport(sealed_store, reader, "people", workers=2, max_bytes=10**7, keep_crops=True)
    job.run(people_of_folder(folder))
    template = sealed_store.templates("people", subject="bob", after=0, limit=1).items[0]
    with sealed_store.engine.begin() as connection:
        connection.execute(update(CropRow).where(CropRow.template_id == template.id).values(image=b"damaged"))
    report = job.run(people_of_folder(folder))
    assert (report.known, report.passed_over) == (1, 4)
    with open_snapshot(sealed_store.engine, "people", subject="bob", seals=sealed_store.seals) as snapshot:
        assert all(one.crop for _, one in snapshot.templates(crops=True))


def test_a_crop_that_is_not_the_templates_is_made_whole_again(
    folder: Path, run: Callable[..., ImportReport], engine: Engine
) -> None:
    run(people_of_folder(folder), keep_crops=True)
    with engine.begin() as connection:
        images = connection.scalars(select(CropRow.image).order_by(CropRow.template_id)).all()
        connection.execute(update(CropRow).where(CropRow.image == images[0]).values(image=images[1]))
    report = run(people_of_folder(folder), keep_crops=True)
    assert (report.added, report.known, report.passed_over) == (0, 1, 4)
    with engine.connect() as connection:
        assert connection.scalars(select(CropRow.image).order_by(CropRow.template_id)).all() == images


def test_a_file_that_cannot_be_read_is_refused(folder: Path, run: Callable[..., ImportReport]) -> None:
    source = people_of_folder(folder)
    (folder / "anna" / "0.png").unlink()
    refused = run(source).refused
    assert [(one.photo, one.slug) for one in refused] == [
        ("anna/0.png", "file-unreadable"),
        ("bob/x.jpg", "unsupported-image"),
    ]
    assert refused[0].detail == "the file cannot be read: No such file or directory"


def test_what_is_no_regular_file_is_refused_and_not_waited_for(folder: Path, run: Callable[..., ImportReport]) -> None:
    os.mkfifo(folder / "anna" / "pipe.jpg")
    (folder / "bob" / "x.jpg").unlink()
    (folder / "bob" / "link.jpg").symlink_to("/dev/zero")
    report = run(people_of_folder(folder))
    assert (report.added, [(one.photo, one.slug, one.detail) for one in report.refused]) == (
        5,
        [
            (name, "file-unreadable", "the file cannot be read: it is no regular file")
            for name in ("anna/pipe.jpg", "bob/link.jpg")
        ],
    )


def test_a_gallery_of_another_extractor_takes_nothing_in(
    folder: Path, run: Callable[..., ImportReport], store: GalleryStore
) -> None:
    store.create_gallery("people", extractor="old@1", dimension=128, policy=None)
    with pytest.raises(ExtractorMismatch):
        run(people_of_folder(folder))


# -- tables


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    file = folder / "people.csv"
    file.write_bytes(text.encode(encoding))
    return file


def test_a_table_brings_metadata(folder: Path, run: Callable[..., ImportReport], store: GalleryStore) -> None:
    file = table(
        folder,
        "subject,file,room,badge\nAnna B.,anna/0.png,1,\nbob,bob/3.png,,\n"
        "Anna B.,anna/1.png,2,17\nzoe,missing.jpg,5,\n",
    )
    report = run(people_of_table(file))
    assert (report.added, [one.photo for one in report.refused]) == (3, ["missing.jpg"])
    assert store.subject("people", "Anna B.").metadata == {"room": "2", "badge": "17"}
    assert store.subject("people", "bob").metadata == {}
    assert [one.key for one in store.subjects("people", after=0, limit=9).items] == ["Anna B.", "bob"]
    before = store.subject("people", "Anna B.")
    assert run(people_of_table(file)).passed_over == 3
    assert store.subject("people", "Anna B.") == before
    table(folder, "subject,file,room\nAnna B.,anna/0.png,3\n")
    run(people_of_table(file))
    assert store.subject("people", "Anna B.").metadata == {"room": "3"}


def test_who_is_erased_while_metadata_is_changed_is_not_made_again(
    folder: Path, run: Callable[..., ImportReport], engine: Engine, reader: PhotoReader
) -> None:
    class Erased(GalleryStore):
        """Erases a subject as soon as it was looked at."""

        def subject(self, gallery: str, key: str) -> Subject:
            found = super().subject(gallery, key)
            self.delete_subject(gallery, key)
            return found

    run(people_of_table(table(folder, "subject,file,room\nanna,anna/0.png,1\nbob,bob/3.png,1\n")))
    source = people_of_table(table(folder, "subject,file,room\nanna,anna/0.png,2\n"))
    report = PeopleImport(Erased(engine), reader, "people", workers=1, max_bytes=10**7).run(source)
    assert (report.added, report.passed_over) == (0, 1)
    assert [one.key for one in GalleryStore(engine).subjects("people", after=0, limit=9).items] == ["bob"]


def test_metadata_of_a_gallery_that_is_erased_meanwhile_is_not_put_into_another_of_that_name(
    folder: Path, engine: Engine, reader: PhotoReader, run: Callable[..., ImportReport]
) -> None:
    class Erased(GalleryStore):
        """Erases the gallery, and makes another one with that subject, as soon as the subject was looked at."""

        def subject(self, gallery: str, key: str) -> Subject:
            found, former = super().subject(gallery, key), self.delete_gallery(gallery)
            self.create_gallery(gallery, extractor=former.extractor, dimension=former.dimension, policy=None)
            add(self, key)
            return found

    run(people_of_table(table(folder, "subject,file,room\nanna,anna/0.png,1\n")))
    source = people_of_table(table(folder, "subject,file,room\nanna,anna/0.png,2\n"))
    report = PeopleImport(Erased(engine), reader, "people", workers=1, max_bytes=10**7).run(source)
    assert (report.added, report.passed_over) == (0, 1)
    assert GalleryStore(engine).subject("people", "anna").metadata == {}


@pytest.mark.parametrize("text", ["\ufeffsubject;file\nbob;bob/3.png\n", "file\tsubject\r\nbob/3.png\tbob\r\n"])
def test_tables_of_other_programs_are_read(folder: Path, text: str) -> None:
    (photo,) = people_of_table(table(folder, text)).photos
    assert (photo.subject, photo.path, photo.name) == ("bob", folder / "bob" / "3.png", "bob/3.png")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "needs a head"),
        ("name,file\na,b\n", "needs a head"),
        ("subject,file,x,x\n", "each column once"),
        ("subject,file\n", "has no rows"),
        ("subject,file\n,\n", "has no rows"),
        ("subject,file\na\n", "line 2: 2 columns are needed"),
        ("subject,file\na,b,c\n", "line 2: 2 columns are needed"),
        ('subject,file\n"a,b\n', "no table that can be read"),
    ],
)
def test_what_is_no_table_is_refused(folder: Path, text: str, sentence: str) -> None:
    with pytest.raises(SourceUnreadable, match=sentence):
        people_of_table(table(folder, text))


def test_a_table_that_is_not_utf_8_is_refused(folder: Path) -> None:
    with pytest.raises(SourceUnreadable, match="no table that can be read"):
        people_of_table(table(folder, "subject,file\né,x\n", "latin-1"))


def test_names_and_metadata_that_cannot_be_kept_are_refused_row_by_row(folder: Path) -> None:
    long = "x" * 20_000
    source = people_of_table(
        table(folder, f"subject,file,note\n ,a.jpg,\nok,b.jpg,\nlong,c.jpg,{long}\n{'y' * 201},d.jpg,\n")
    )
    assert [photo.name for photo in source.photos] == ["b.jpg"]
    assert [(one.photo, one.slug) for one in source.refused] == [
        ("a.jpg", "invalid-input"),
        ("c.jpg", "invalid-input"),
        ("d.jpg", "invalid-input"),
    ]


def test_lines_of_separators_alone_are_passed_over(folder: Path) -> None:
    source = people_of_table(table(folder, "subject;file;room\n;;\nbob;bob/3.png;7\n;;\n;;\n"))
    assert [photo.name for photo in source.photos] == ["bob/3.png"]
    assert source.refused == ()


def test_a_row_without_a_file_is_refused_by_its_line(folder: Path, run: Callable[..., ImportReport]) -> None:
    report = run(people_of_table(table(folder, 'subject,file,note\nbob,bob/3.png,"two\nlines"\nanna,,1\n,,2\n')))
    assert (report.added, [(one.photo, one.slug, one.detail) for one in report.refused]) == (
        1,
        [(line, "invalid-input", "the row names no file") for line in ("line 4", "line 5")],
    )


def test_a_folder_without_people_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match=r"expected a folder for each person with the photos inside$"):
        people_of_folder(tmp_path)
    (tmp_path / "loose.jpg").touch()
    with pytest.raises(SourceUnreadable, match=r"inside; loose\.jpg: it lies in no person's folder$"):
        people_of_folder(tmp_path)
    with pytest.raises(SourceUnreadable, match="cannot be read: No such file or directory"):
        people_of_folder(tmp_path / "nowhere")


def test_a_name_that_no_file_can_have_refuses_its_row(folder: Path, run: Callable[..., ImportReport]) -> None:
    report = run(people_of_table(table(folder, "subject,file\nanna,anna/0\0.png\nbob,bob/3.png\n")))
    assert (report.added, [(one.slug, one.detail) for one in report.refused]) == (
        1,
        [("file-unreadable", "the file cannot be read: embedded null byte")],
    )


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_rows_of_one_subject_in_two_unicode_forms_are_one_subjects(folder: Path, forms: tuple[str, str]) -> None:
    first, last = (unicodedata.normalize(form, "José") for form in forms)  # type: ignore[arg-type]
    source = people_of_table(
        table(
            folder,
            "subject,file,badge,room,consent_purpose,consent_granted_at\n"
            f"{first},anna/0.png,1,7,door,2020-01-01T00:00:00Z\n{last},anna/1.png,2,,door,2025-01-01T00:00:00Z\n",
        )
    )
    assert [(one.subject, one.name) for one in source.photos] == [
        ("Jos\u00e9", "anna/0.png"),
        ("Jos\u00e9", "anna/1.png"),
    ]
    assert source.metadata == {"Jos\u00e9": {"badge": "2", "room": "7"}}
    assert source.consents["Jos\u00e9"].granted_at == datetime(2025, 1, 1, tzinfo=UTC)
    assert source.refused == ()


def test_of_two_consents_of_one_subject_the_last_row_has_all(folder: Path) -> None:
    head = "subject,file,consent_purpose,consent_granted_at,consent_reference,consent_expires_at\n"
    rows = (
        "anna,anna/0.png,the lab,2020-01-01T00:00:00Z,form 7,2021-01-01T00:00:00Z\n"
        "anna,anna/1.png,the lab,2026-01-01T00:00:00Z,,\n"
        "anna,anna/2.png,,,,\n"
        "bob,bob/3.png,the lab,2026-01-01T00:00:00Z,,\n"
        "bob,bob/4.png,,2026-01-01T01:00:00+01:00,form 8,\n"
    )
    source = people_of_table(table(folder, head + rows))
    assert source.consents == {"anna": consent(), "bob": consent(reference="form 8")}


# -- folders


def test_what_is_not_taken_from_a_folder_is_told(tmp_path: Path) -> None:
    names = (
        "Ada/1.JPG",
        "Ada/2.Jpeg",
        "Ada/3.heic",
        "Ada/4.TIF",
        "Ada/2019/5.jpg",
        "Ada/2019/May/6.jpg",
        "Ada/2019/.hidden/7.jpg",
        "Ada/.hidden.jpg",
        "Bob/notes.txt",
        "loose.jpg",
        ".hidden/8.jpg",
        "Dora/9.png",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Cleo").mkdir()
    (tmp_path / "Ada" / "2019" / "link").symlink_to(tmp_path / "Dora")
    (tmp_path / "Bob" / "all").symlink_to(tmp_path)
    source = people_of_folder(tmp_path)
    assert [photo.name for photo in source.photos] == ["Ada/1.JPG", "Ada/2.Jpeg", "Dora/9.png"]
    assert [(one.photo, one.slug) for one in source.refused] == [
        ("Ada/2019/5.jpg", "too-deep"),
        ("Ada/2019/link", "too-deep"),
        ("Ada/2019/May/6.jpg", "too-deep"),
        ("Ada/3.heic", "not-a-photo"),
        ("Ada/4.TIF", "not-a-photo"),
        ("Bob/all", "too-deep"),
        ("Bob/notes.txt", "not-a-photo"),
        ("Bob", "no-photos"),
        ("Cleo", "no-photos"),
        ("loose.jpg", "no-person"),
    ]
    assert source.refused[3].detail == "photos end in .bmp, .gif, .jpeg, .jpg, .png, .webp"


def test_a_person_whose_folder_cannot_be_read_is_refused_alone(
    folder: Path, run: Callable[..., ImportReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.iterdir

    def closed(path: Path) -> Iterator[Path]:  # by permissions, which root does not feel
        if path.name == "anna":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    report = run(people_of_folder(folder))
    assert (report.added, next((one.photo, one.slug, one.detail) for one in report.refused)) == (
        2,
        ("anna", "folder-unreadable", "the folder cannot be read: Permission denied"),
    )


def test_a_link_that_cannot_be_followed_is_refused_alone(folder: Path, run: Callable[..., ImportReport]) -> None:
    (folder / "bob" / "x.jpg").unlink()
    (folder / "bob" / "link.jpg").symlink_to("n" * 300)
    (folder / "bob" / "notes").symlink_to("n" * 300)
    (folder / "cleo").symlink_to("n" * 300)
    (folder / "dora").symlink_to("nowhere")
    report = run(people_of_folder(folder))
    assert (report.added, [(one.photo, one.slug, one.detail) for one in report.refused]) == (
        5,
        [
            ("bob/notes", "not-a-photo", "photos end in .bmp, .gif, .jpeg, .jpg, .png, .webp"),
            ("cleo", "folder-unreadable", "the folder cannot be read: File name too long"),
            ("dora", "folder-unreadable", "the folder cannot be read: No such file or directory"),
            ("bob/link.jpg", "file-unreadable", "the file cannot be read: File name too long"),
        ],
    )


def test_a_file_name_that_is_no_text_is_told_as_text(folder: Path, run: Callable[..., ImportReport]) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/bob/caf\xe9.jpg")).write_text("no photo")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9")).mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9/0.png")).write_bytes((folder / "anna" / "0.png").read_bytes())
    report = run(people_of_folder(folder))
    assert [(one.photo, one.slug) for one in report.refused] == [
        ("caf\ufffd/0.png", "invalid-input"),
        ("bob/caf\ufffd.jpg", "unsupported-image"),
        ("bob/x.jpg", "unsupported-image"),
    ]


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_a_list_of_very_many_photos_is_small(tmp_path: Path, kind: str) -> None:
    """A path for each of a million takes a gigabyte."""
    names = [f"Person {number // 50}/{number:08}.jpg" for number in range(2000)]
    if kind == "folder":
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    else:
        lines = [f"{Path(name).parent},{name}" for name in names]
        (tmp_path / "people.csv").write_text("\n".join(["subject,file", *lines]))
    tracemalloc.start()
    try:
        source = people_of_folder(tmp_path) if kind == "folder" else people_of_table(tmp_path / "people.csv")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 250 * len(names)
    assert len(source.photos) == 2000
    assert sorted(photo.name for photo in source.photos) == sorted(names)
    assert all(photo.path == tmp_path / photo.name for photo in source.photos)


# -- consent and retention


@pytest.fixture
def strict(store: GalleryStore, reader: PhotoReader, forgetting: Forgetting) -> Callable[..., ImportReport]:
    """Imports into a gallery that requires consent, as the command does."""
    store.create_gallery(
        "people",
        extractor=reader.extractor,
        dimension=reader.dimension,
        policy=None,
        privacy=PrivacyRules(require_consent=True),
    )

    def run(source: PeopleSource, *, later: timedelta = timedelta()) -> ImportReport:
        retention = Retention(
            store.engine, forgetting, clock=lambda: datetime.now(UTC) + later, database_clock=lambda _: None
        )
        enroller = Enroller(store, reader, retention=retention, keep_crops=False)
        return PeopleImport(store, reader, "people", workers=2, max_bytes=10**7, admit=enroller.admit).run(source)

    return run


def consent(**values: Any) -> Consent:
    return Consent("the lab", datetime(2026, 1, 1, tzinfo=UTC), **values)


def add(store: GalleryStore, key: str, *, expires_at: datetime | None = None) -> int:
    """A subject with a consent and without templates."""
    made = store.enroll(
        "people",
        key,
        [],
        metadata=None,
        extractor=store.gallery("people").extractor,
        dimension=128,
        terms={"consent": consent(), "expires_at": expires_at},
    )
    return made.subject.id


def test_who_has_no_consent_is_refused_and_the_others_go_on(
    folder: Path, strict: Callable[..., ImportReport], store: GalleryStore
) -> None:
    add(store, "bob")
    for added, passed_over in ((2, 0), (0, 2)):
        report = strict(people_of_folder(folder))
        assert (report.added, report.passed_over) == (added, passed_over)
        assert [(one.photo, one.slug) for one in report.refused] == [
            ("anna/0.png", "consent-required"),
            ("anna/1.png", "consent-required"),
            ("anna/2.png", "consent-required"),
            ("bob/x.jpg", "unsupported-image"),
        ]
    assert [one.key for one in store.subjects("people", after=0, limit=9).items] == ["bob"]


def test_rules_that_come_while_photos_are_read_are_kept(
    folder: Path, run: Callable[..., ImportReport], store: GalleryStore, reader: PhotoReader
) -> None:
    store.create_gallery("people", extractor=reader.extractor, dimension=reader.dimension, policy=None)
    store.change_gallery("people", {"require_consent": True})
    report = run(people_of_folder(folder))  # asks nobody before
    assert (report.added, len(report.refused), store.size(store.gallery("people")).subjects) == (0, 6, 0)


def test_whose_time_is_over_is_erased_first_and_imported_anew(
    folder: Path, strict: Callable[..., ImportReport], store: GalleryStore
) -> None:
    first = add(store, "bob", expires_at=datetime.now(UTC) + timedelta(days=1))
    assert strict(people_of_folder(folder)).added == 2
    report = strict(people_of_folder(folder), later=timedelta(days=2))
    assert (report.added, report.passed_over) == (0, 0)
    assert store.subjects("people", after=0, limit=9).items == ()  # with his time his consent is gone
    assert add(store, "bob") != first
    assert strict(people_of_folder(folder), later=timedelta(days=2)).added == 2


def test_a_table_brings_consent(folder: Path, strict: Callable[..., ImportReport], store: GalleryStore) -> None:
    head = "subject,file,consent_purpose,consent_granted_at,consent_reference,consent_expires_at\n"
    rows = (
        "anna,anna/0.png,the lab,2026-01-01T01:00:00+01:00,form 7,\n"
        "bob,bob/3.png,,,,\n"
        "carl,bob/4.png,the lab,yesterday,,\n"
        "dora,anna/1.png,the lab,2026-01-01T00:00:00Z,,2026-01-02T00:00:00Z\n"
        "eve,anna/2.png,,2026-01-01T00:00:00Z,,\n"
    )
    source = people_of_table(table(folder, head + rows))
    for added in (1, 0):
        report = strict(source)
        assert report.added == added
        assert sorted((one.photo, one.slug) for one in report.refused) == [
            ("anna/1.png", "invalid-input"),
            ("anna/2.png", "invalid-input"),
            ("bob/3.png", "consent-required"),
            ("bob/4.png", "invalid-input"),
        ]
    anna = store.subject("people", "anna")
    assert (anna.consent, anna.metadata) == (consent(reference="form 7"), {})
    newer = replace(consent(reference="form 8"), granted_at=datetime(2026, 2, 1, tzinfo=UTC))
    store.update_subject("people", "anna", terms={"consent": newer})
    strict(source)
    assert store.subject("people", "anna").consent == newer  # an old table takes nothing back
    table(folder, head + "anna,anna/0.png,the lab,2026-03-01T00:00:00Z,form 9,\n")
    assert strict(people_of_table(folder / "people.csv")).passed_over == 1
    renewed = store.subject("people", "anna").consent
    assert (renewed and renewed.reference) == "form 9"
