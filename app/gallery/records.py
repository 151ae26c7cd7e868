"""What the store answers with: plain values, free of SQL."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.gallery.consent import NO_RULES, Consent, PrivacyRules, RuleChanges
from app.gallery.points import Point
from app.gallery.policy import ThresholdPolicy
from model.quality import Quality

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Gallery:
    """A gallery as stored; `policy` is None where the settings' policy applies.

    `erasure` names the last erasure that snapshots may still have to follow, None where there is none.
    """

    id: int
    name: str
    extractor: str
    dimension: int
    revision: int
    policy: ThresholdPolicy | None
    created_at: datetime
    privacy: PrivacyRules = NO_RULES
    erasure: str | None = None
    mark: int = 0

    @property
    def point(self) -> Point:
        """Where in its history the gallery is."""
        return Point(self.revision, self.mark)


class GalleryChanges(RuleChanges, total=False):
    """What a call sets of a gallery; a name that is left out stays as it is."""

    policy: ThresholdPolicy | None


@dataclass(frozen=True, slots=True)
class GallerySize:
    """How much a gallery holds; `enrolled` counts the subjects with a template, which are those that are searched."""

    subjects: int
    templates: int
    enrolled: int


@dataclass(frozen=True, slots=True)
class DescribedGallery:
    """A gallery as it is shown.

    Args:
        gallery: as stored.
        size: how much it holds.
        policy: in force, its own or the service's.
        threshold: distance that follows now; None where it belongs to another extractor than the one that runs.
    """

    gallery: Gallery
    size: GallerySize
    policy: ThresholdPolicy
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Subject:
    """A subject as stored, with the number of its templates."""

    id: int
    key: str
    metadata: dict[str, Any]
    templates: int
    created_at: datetime
    updated_at: datetime
    consent: Consent | None = None
    expires_at: datetime | None = None
    seen_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewTemplate:
    """A template to be stored: embedding of shape (D,), float32, L2-normalised; `crop` as a PNG file where kept."""

    embedding: NDArray[np.float32]
    quality: Quality
    crop_sha256: str
    crop: bytes | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """A stored template without its embedding."""

    id: int
    subject: str
    quality: Quality
    crop_sha256: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a listing; `next_cursor` is None on the last."""

    items: tuple[Item, ...]
    next_cursor: int | None

    @staticmethod
    def of(found: list[Item], limit: int, id_of: Callable[[Item], int]) -> "Page[Item]":
        """The first `limit` of what was found, which has one more where there is a next page."""
        items = found[:limit]
        return Page(tuple(items), id_of(items[-1]) if len(found) > limit else None)


@dataclass(frozen=True, slots=True)
class TemplateBlock:
    """Templates for an index: ids and subject ids of shape (N,), int64; embeddings of shape (N, D), float32.

    Nothing in it is newer than `point`, where that is known.
    """

    ids: NDArray[np.int64]
    subject_ids: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    point: Point | None = None


@dataclass(frozen=True, slots=True)
class OwnerBlock:
    """Templates and their subjects: both of shape (N,), int64; nothing in it is newer than `point`."""

    ids: NDArray[np.int64]
    subject_ids: NDArray[np.int64]
    point: Point | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a gallery's history; an `add` whose template is gone by now has no embedding.

    `mark` is that of its revision, `previous` that of the revision before.
    """

    revision: int
    kind: Literal["add", "remove", "rebuild"]
    template_id: int
    subject_id: int
    embedding: NDArray[np.float32] | None
    mark: int
    previous: int


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an enrolment stored, and where: the subject afterwards, the templates made, and those that were there.

    `erased_in` is the gallery where a subject of that key was due, and erased first; None where none was.
    """

    gallery_id: int
    subject: Subject
    created: bool
    added: tuple[Template, ...]
    known: tuple[Template, ...]
    erased_in: Gallery | None = None
