"""Archives: a gallery, or all that is held about one person, written as a stream and read back in bounded memory."""

import hashlib
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from app.gallery.errors import ArchiveDamaged
from app.gallery.moving.archive_lines import (
    MAX_LINE_BYTES,
    audit_to_line,
    old_embedding_to_line,
    subject_from_line,
    subject_to_line,
    template_from_line,
    template_to_line,
)
from app.gallery.moving.archive_manifest import (
    AUDIT,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    OLD_EMBEDDINGS,
    SUBJECTS,
    TEMPLATES,
    Manifest,
    Member,
    manifest_from_bytes,
    manifest_to_bytes,
)
from app.gallery.moving.exporting import GallerySnapshot
from app.gallery.moving.portable import PortableSubject, PortableTemplate
from app.gallery.moving.progress import Progress, Shown, not_shown
from app.gallery.tables import now
from model.errors import FacegalleryError
from model.replaced_file import replaced_privately

_PIECE = 2**20
_MOST_TEMPLATES = 1000  # of one subject at a time
_TOLD = 100  # lines between two reports of how far a writing is
# Of zipfile and of what unpacks for it. Damaged lengths and places are too large to hold, or to count to.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
    OverflowError,
    MemoryError,
)


def write_archive(
    file: Path,
    snapshot: GallerySnapshot,
    *,
    subject: str | None,
    crops: bool,
    audit: Iterable[str] = (),
    shown: Shown = not_shown,
) -> Manifest:
    """Write what a snapshot shows; the file is there whole or not at all, and only its owner may read it.

    Args:
        file: where to write; a file that is there is replaced.
        snapshot: of a gallery or of one subject.
        subject: key of the only subject: then old embeddings and audit entries go with it, too.
        crops: with the crops that are kept.
        audit: entries of the audit log that name the subject, as JSON.
        shown: shows how many subjects, and then how many templates are written.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    with (
        replaced_privately(file) as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as container,
    ):
        return _write_members(container, snapshot, subject=subject, crops=crops, audit=audit, shown=shown)


def _write_members(
    container: zipfile.ZipFile,
    snapshot: GallerySnapshot,
    *,
    subject: str | None,
    crops: bool,
    audit: Iterable[str],
    shown: Shown,
) -> Manifest:
    counted, gallery = _CropCount(), snapshot.gallery
    subjects, templates = snapshot.size()
    members: dict[str, Member] = {}
    with shown("writing subjects", subjects) as progress:
        members[SUBJECTS] = _write(container, SUBJECTS, map(subject_to_line, snapshot.subjects()), progress)
    lines = (template_to_line(key, counted(template)) for key, template in snapshot.templates(crops=crops))
    with shown("writing templates", templates) as progress:
        members[TEMPLATES] = _write(container, TEMPLATES, lines, progress)
    if subject is not None:
        old = map(old_embedding_to_line, snapshot.old_embeddings(crops=crops))
        members[OLD_EMBEDDINGS] = _write(container, OLD_EMBEDDINGS, old)
        members[AUDIT] = _write(container, AUDIT, map(audit_to_line, audit))
    manifest = Manifest(
        gallery=gallery.name,
        extractor=gallery.extractor,
        dimension=gallery.dimension,
        policy=gallery.policy,
        revision=gallery.revision,
        created_at=now(),
        subject=subject,
        crops=counted.crops,
        members=members,
        privacy=gallery.privacy,
    )
    with container.open(_info(MANIFEST), "w") as target:
        target.write(manifest_to_bytes(manifest))
    return manifest


class ArchiveReader:
    """An archive that is read back; `verify` comes before `subjects`. Nothing of it is ever written to a disk.

    Raises:
        ArchiveDamaged: it is no archive, has no readable manifest, or has members that it should not have.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._container = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise ArchiveDamaged(f"{file} is no archive, or is cut off ({_words(error)}); copy it again") from error
        try:
            names = self._container.namelist()
            if MANIFEST not in names:
                raise ArchiveDamaged(f"{file} has no {MANIFEST}; it is not an archive that `facegallery export` wrote")
            self.manifest = manifest_from_bytes(self._head())
            if sorted(names) != sorted([MANIFEST, *self.manifest.members]):
                raise ArchiveDamaged(f"{file} has other members than its {MANIFEST} says")
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def verify(self, progress: Progress = lambda _: None) -> None:
        """Read every member and compare its length, its digest and its lines with the manifest.

        Args:
            progress: told the bytes.

        Raises:
            ArchiveDamaged: something differs; nothing should be taken from the archive.
        """
        for name, member in self.manifest.members.items():
            digest, length, lines = hashlib.sha256(), 0, 0
            with _reading(name), self._container.open(name) as stream:
                # No more is unpacked than was promised, however much there may be.
                while piece := stream.read(min(_PIECE, member.bytes + 1 - length)):
                    digest.update(piece)
                    length += len(piece)
                    lines += piece.count(b"\n")
                    progress(len(piece))
                    if length > member.bytes:
                        break
            if (length, digest.hexdigest(), lines) != (member.bytes, member.sha256, member.lines):
                raise ArchiveDamaged(f"{name} is not the one that the archive was written with; copy the archive again")

    def subjects(self) -> Iterator[PortableSubject]:
        """The subjects with their templates, in the order they were written.

        One with more than a thousand templates comes several times, each time with the next thousand.

        Raises:
            ArchiveDamaged: a line is not what it should be; what came before it was in order.
        """
        templates = _Ahead(self._templates())
        for number, line in enumerate(self._lines(SUBJECTS), 1):
            with _parsing(SUBJECTS, number):
                subject = subject_from_line(line)
            own: list[PortableTemplate] = []
            came = False
            while templates.next is not None and templates.next[0] == subject.key:
                own.append(templates.next[1])
                templates.advance()
                if len(own) == _MOST_TEMPLATES:
                    yield replace(subject, templates=tuple(own))
                    own, came = [], True
            if own or not came:
                yield replace(subject, templates=tuple(own))
        if templates.next is not None:
            raise ArchiveDamaged(f"{TEMPLATES} has a template whose subject is not the next in {SUBJECTS}")

    def _templates(self) -> Iterator[tuple[str, PortableTemplate]]:
        for number, line in enumerate(self._lines(TEMPLATES), 1):
            with _parsing(TEMPLATES, number):
                found = template_from_line(line, self.manifest.dimension)
            yield found

    def _lines(self, name: str) -> Iterator[bytes]:
        with _reading(name), self._container.open(name) as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n"):
                    raise ArchiveDamaged(f"{name} has a line that is too long or has no end")
                yield line

    def _head(self) -> bytes:
        with _reading(MANIFEST), self._container.open(MANIFEST) as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise ArchiveDamaged(f"the archive's {MANIFEST} is too long")
        return data


class _Ahead:
    """An iterator whose next value can be seen before it is taken."""

    def __init__(self, templates: Iterator[tuple[str, PortableTemplate]]) -> None:
        self._templates = templates
        self.next: tuple[str, PortableTemplate] | None = next(templates, None)

    def advance(self) -> None:
        self.next = next(self._templates, None)


class _CropCount:
    """Counts the crops that pass."""

    def __init__(self) -> None:
        self.crops = 0

    def __call__(self, template: PortableTemplate) -> PortableTemplate:
        self.crops += template.crop is not None
        return template


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """What zipfile and what unpacks for it raise on damage, as `ArchiveDamaged`."""
    try:
        yield
    except _DAMAGE as error:
        raise ArchiveDamaged(f"{name} cannot be read ({_words(error)}); copy the archive again") from error


@contextmanager
def _parsing(name: str, number: int) -> Iterator[None]:
    """What a wrong line raises, as `ArchiveDamaged`."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FacegalleryError) as error:
        raise ArchiveDamaged(f"{name}, line {number}: {type(error).__name__}: {error}") from error


def _write(
    container: zipfile.ZipFile, name: str, lines: Iterable[bytes], progress: Progress = lambda _: None
) -> Member:
    digest, length, count = hashlib.sha256(), 0, 0
    with container.open(_info(name), "w", force_zip64=True) as target:
        for line in lines:
            target.write(line)
            digest.update(line)
            length += len(line)
            count += 1
            if count % _TOLD == 0:
                progress(_TOLD)
    progress(count % _TOLD)
    return Member(length, digest.hexdigest(), count)


def _info(name: str) -> zipfile.ZipInfo:
    """A member whose header says nothing of when and where it was written."""
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o600 << 16
    return info
