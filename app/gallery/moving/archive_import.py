"""From an archive into a gallery."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from app.gallery.consent import NO_RULES
from app.gallery.crops import decode_crop
from app.gallery.erasure.retention import Retention
from app.gallery.errors import ArchiveDamaged, ClockDoubtful, ExtractorMismatch, GalleryExists, GalleryNotFound
from app.gallery.extractor_check import check_extractor
from app.gallery.moving.archive import ArchiveReader
from app.gallery.moving.archive_manifest import Manifest
from app.gallery.moving.portable import PortableSubject, RefusedSubject, Stored
from app.gallery.moving.restoring import people_there, restore_people
from app.gallery.records import Gallery
from app.gallery.store import GalleryStore
from model.errors import UnsupportedImage
from model.extractor import Extractor

_TEMPLATES = 500  # from which on a transaction is full; it takes its last subject whole, or the piece that was read


def import_archive(
    archive: ArchiveReader,
    gallery: str,
    store: GalleryStore,
    extractor: Extractor,
    *,
    keep_crops: bool,
    retention: Retention | None = None,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Stored:
    """Store what an archive holds; again adds nothing, and after a break it goes on.

    A subject of the gallery whose time is over is erased first. Who cannot be stored (see `restore_people`) is told in
    the answer, once, and the others are stored.

    The archive is read through and checked before anything is stored. Every transaction stores whole subjects, but of
    one with more than a thousand templates a thousand at a time. The gallery is made where it is missing, with the
    archive's threshold policy and rules of consent and retention. Where the embeddings are another extractor's, they
    are made anew from the crops, if every template has one. Where crops are stored or embedded, a subject of whom one
    is not its template's is refused.

    Args:
        archive: that was opened.
        gallery: normalised name of the gallery to store in.
        store: of the database.
        extractor: that runs.
        keep_crops: store the crops that come with the templates.
        retention: tells whose time is over, and erases them; None: nobody is erased.
        progress: told the templates, and how many of them were there already or are refused; at first none, once the
            archive is checked, so that a rate begins with the storing.

    Raises:
        ArchiveDamaged: it is not as it was written; nothing was stored, except what came before a wrong line.
        ExtractorMismatch: the gallery or the archive belongs to another extractor; nothing was stored.
        GalleryNotFound: the gallery was erased meanwhile; it is not made again, nor is another one of its name filled.
    """
    manifest, identity = archive.manifest, extractor.card.identity
    owner: Gallery | None = None
    with suppress(GalleryNotFound):
        owner = store.gallery(gallery)
        check_extractor(owner, identity)
    anew = manifest.extractor != identity
    if anew and manifest.crops < manifest.templates:
        name = manifest.extractor.partition("@")[0]
        raise ExtractorMismatch(
            f"the archive's embeddings come from extractor {manifest.extractor}, but {identity} is running, and "
            f"{manifest.templates - manifest.crops} of {manifest.templates} templates come without a crop to make new "
            f"ones from; run with FACEGALLERY_EXTRACTOR={name} as it was then, or import the photos"
        )
    if not anew and manifest.dimension != extractor.dimension:
        raise ArchiveDamaged(
            f"the archive says that embeddings of {identity} have {manifest.dimension} numbers; they have "
            f"{extractor.dimension}"
        )
    archive.verify()
    progress(0, 0)
    owner = owner or _made(store, gallery, manifest, extractor)
    stored, refused = Stored(), dict[str, RefusedSubject]()
    begun = ""  # the subject that the last transaction ended with: more of it may come
    for subjects in _groups(archive.subjects()):
        before, wanted = stored.added, [subject for subject in subjects if subject.key not in refused]
        if anew or keep_crops:
            refused |= {one.subject: _told(one, begun) for one in _with_unusable_crops(wanted, needed=anew)}
            wanted = [subject for subject in wanted if subject.key not in refused]
        if retention is not None and wanted:
            refused |= {one.subject: one for one in _erased_for_good(store, retention, owner, wanted)}
            wanted = [subject for subject in wanted if subject.key not in refused]
        if wanted:
            if anew:
                wanted = _embedded_anew(wanted, extractor)
            if not keep_crops:
                wanted = _without_crops(wanted)
            part = restore_people(
                store.engine, owner, wanted, extractor=identity, journal=store.journal, seals=store.seals
            )
            stored += Stored(part.added, part.known)
            refused |= {one.subject: _told(one, begun) for one in part.refused}
        begun = subjects[-1].key
        count = sum(len(subject.templates) for subject in subjects)
        progress(count, count - (stored.added - before))
    return replace(stored, refused=tuple(refused.values()))


def _made(store: GalleryStore, name: str, manifest: Manifest, extractor: Extractor) -> Gallery:
    """The gallery, made as the archive says, or as it is where somebody else has made it by now."""
    with suppress(GalleryExists):
        return store.create_gallery(
            name,
            extractor=extractor.card.identity,
            dimension=extractor.dimension,
            policy=manifest.policy,
            privacy=None if manifest.privacy == NO_RULES else manifest.privacy,
        )
    return store.gallery(name)


def _erased_for_good(
    store: GalleryStore, retention: Retention, owner: Gallery, subjects: Sequence[PortableSubject]
) -> list[RefusedSubject]:
    """Erase those of some subjects that are there and whose time is over.

    Returns:
        Those of them whom an archive of an earlier day must not bring back: their terms were changed since. All of
        them where the clock is doubted: they stay as they are.
    """
    known_until = {one.key: one.updated_at for one in subjects}
    found, there = people_there(store.engine, owner, list(known_until))
    due = [subject for subject in there if retention.is_due(found, subject)]
    try:
        if due:
            retention.erase_those_due(found, [subject.id for subject in due])
    except ClockDoubtful as error:
        return [RefusedSubject(subject.key, error.slug, str(error)) for subject in due]
    detail = "the subject's time was over, and the archive is older than what was last said of the subject"
    later = [subject.key for subject in due if subject.updated_at > known_until[subject.key]]
    return [RefusedSubject(key, "expired", detail) for key in later]


def _groups(subjects: Iterator[PortableSubject]) -> Iterator[list[PortableSubject]]:
    group: list[PortableSubject] = []
    for subject in subjects:
        group.append(subject)
        if sum(max(1, len(one.templates)) for one in group) >= _TEMPLATES:
            yield group
            group = []
    if group:
        yield group


def _told(refused: RefusedSubject, begun: str) -> RefusedSubject:
    """The refusal, with what was stored of the subject if it is the one that was begun with."""
    late = "; what came before of this subject was stored" if refused.subject == begun else ""
    return replace(refused, detail=refused.detail + late)


def _with_unusable_crops(subjects: Sequence[PortableSubject], *, needed: bool) -> Iterator[RefusedSubject]:
    """Those of some subjects who have a crop that is not its template's, or, where each needs one, lack one."""
    for subject in subjects:
        try:
            for template in subject.templates:
                if needed or template.crop is not None:
                    decode_crop(template.crop or b"", sha256=template.crop_sha256)
        except UnsupportedImage as error:
            yield RefusedSubject(subject.key, "crop-unusable", f"the archive has a crop that cannot be used: {error}")


def _without_crops(subjects: Sequence[PortableSubject]) -> list[PortableSubject]:
    return [
        replace(subject, templates=tuple(replace(template, crop=None) for template in subject.templates))
        for subject in subjects
    ]


def _embedded_anew(subjects: Sequence[PortableSubject], extractor: Extractor) -> list[PortableSubject]:
    crops = [
        decode_crop(template.crop or b"", sha256=template.crop_sha256)
        for subject in subjects
        for template in subject.templates
    ]
    embeddings = iter(extractor.embed(np.stack(crops)) if crops else ())
    return [
        replace(subject, templates=tuple(replace(one, embedding=next(embeddings)) for one in subject.templates))
        for subject in subjects
    ]
