"""People as they travel between galleries, with all that is needed to have them again."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.gallery.consent import Consent
from model.quality import Quality


@dataclass(frozen=True, slots=True)
class PortableTemplate:
    """A template with its embedding (D,), float32, and its crop as a PNG file where it was kept."""

    embedding: NDArray[np.float32]
    quality: Quality
    crop_sha256: str
    created_at: datetime
    crop: bytes | None = None


@dataclass(frozen=True, slots=True)
class PortableSubject:
    """A subject with its templates, or with some of very many; a listing of subjects leaves them out."""

    key: str
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    templates: tuple[PortableTemplate, ...] = ()
    consent: Consent | None = None
    expires_at: datetime | None = None
    seen_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class OldEmbedding:
    """An embedding by another extractor than the gallery's that is held about a subject.

    `crop`, a PNG file, is that of a template that was set aside; any other goes with its template.
    """

    subject: str
    extractor: str
    crop_sha256: str
    embedding: NDArray[np.float32]
    crop: bytes | None = None


@dataclass(frozen=True, slots=True)
class RefusedSubject:
    """A subject that a gallery does not take, and why."""

    subject: str
    slug: str
    detail: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What was stored of what came: templates added, templates that were there already, subjects not taken."""

    added: int = 0
    known: int = 0
    refused: tuple[RefusedSubject, ...] = ()

    def __add__(self, other: "Stored") -> "Stored":
        return Stored(self.added + other.added, self.known + other.known, self.refused + other.refused)
