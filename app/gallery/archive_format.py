"""The form of an archive: a zip file of JSON documents, whose members and lines are described in docs/moving.md."""

import base64
import json
import math
import re
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np

from app.gallery.consent import MAX_DAYS, NO_RULES, Consent, PrivacyRules
from app.gallery.crops import MAX_CROP_BYTES
from app.gallery.errors import ArchiveDamaged
from app.gallery.metadata import check_metadata
from app.gallery.names import normalise_name
from app.gallery.policy import ThresholdPolicy, policy_from_json, policy_to_json
from app.gallery.portable import OldEmbedding, PortableSubject, PortableTemplate
from app.gallery.rows import EMBEDDING
from model.errors import FacegalleryError
from model.quality import Quality

FORMAT, VERSION = "facegallery-archive", 1
MANIFEST, SUBJECTS, TEMPLATES, OLD_EMBEDDINGS, AUDIT = (
    "manifest.json",
    "subjects.jsonl",
    "templates.jsonl",
    "old_embeddings.jsonl",
    "audit.jsonl",
)
MAX_MANIFEST_BYTES = 64 * 1024
MAX_LINE_BYTES = 1024 * 1024
MAX_DIMENSION = 65_536
"""Bounds of what a reader takes into memory, whatever an archive says of itself."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_QUALITY = tuple(field.name for field in fields(Quality))


@dataclass(frozen=True, slots=True)
class Member:
    """What the manifest says of a member: its bytes before compression, their digest, and its lines."""

    bytes: int
    sha256: str
    lines: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive is: of which gallery, made by which extractor, when, and what is in it.

    Args:
        gallery: name of the gallery.
        extractor: identity of the extractor that made the embeddings.
        dimension: length of an embedding.
        policy: the gallery's own threshold policy, or None.
        privacy: the gallery's rules of consent and retention.
        revision: of the gallery when it was written.
        created_at: when the archive was written.
        subject: key of the only subject, or None where it holds the whole gallery.
        crops: how many templates come with their crop.
        members: by name.
    """

    gallery: str
    extractor: str
    dimension: int
    policy: ThresholdPolicy | None
    revision: int
    created_at: datetime
    subject: str | None
    crops: int
    members: dict[str, Member]
    privacy: PrivacyRules = NO_RULES

    @property
    def subjects(self) -> int:
        """Number of subjects."""
        return self.members[SUBJECTS].lines

    @property
    def templates(self) -> int:
        """Number of templates."""
        return self.members[TEMPLATES].lines


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """The manifest as a JSON document."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "created_at": manifest.created_at.isoformat(),
        "gallery": manifest.gallery,
        "revision": manifest.revision,
        "subject": manifest.subject,
        "extractor": manifest.extractor,
        "dimension": manifest.dimension,
        "policy": None if manifest.policy is None else policy_to_json(manifest.policy),
        "privacy": manifest.privacy.to_json(),
        "counts": {"subjects": manifest.subjects, "templates": manifest.templates, "crops": manifest.crops},
        "members": {name: asdict(member) for name, member in manifest.members.items()},
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def manifest_from_bytes(data: bytes) -> Manifest:
    """The manifest of a JSON document.

    Raises:
        ArchiveDamaged: it is none, or of a version that this program does not know.
    """
    try:
        document = _loads(data)
        if document["format"] != FORMAT:
            raise ValueError("another format")
        if document["version"] != VERSION:
            raise ArchiveDamaged(
                f"the archive has version {document['version']!r}, this program reads version {VERSION}; "
                "use the program that wrote it, or a newer one"
            )
        policy = document["policy"]
        manifest = Manifest(
            gallery=_text(document["gallery"]),
            extractor=_text(document["extractor"]),
            dimension=_count(document["dimension"]),
            policy=None if policy is None else policy_from_json(policy),
            revision=_count(document["revision"]),
            created_at=_moment(document["created_at"]),
            subject=None if document["subject"] is None else _text(document["subject"]),
            crops=_count(document["counts"]["crops"]),
            members={
                name: Member(_count(one["bytes"]), _digest(one["sha256"]), _count(one["lines"]))
                for name, one in document["members"].items()
            },
            privacy=_rules(document.get("privacy")),
        )
        if not {SUBJECTS, TEMPLATES} <= set(manifest.members) <= {SUBJECTS, TEMPLATES, OLD_EMBEDDINGS, AUDIT}:
            raise ValueError("other members")
        if not 0 < manifest.dimension <= MAX_DIMENSION:
            raise ValueError("an impossible dimension")
        if document["counts"] != {
            "subjects": manifest.subjects,
            "templates": manifest.templates,
            "crops": manifest.crops,
        }:
            raise ValueError("counts that contradict each other")
    except ArchiveDamaged:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FacegalleryError) as error:
        raise ArchiveDamaged(f"the archive's {MANIFEST} is not what this program writes ({error})") from error
    return manifest


def subject_to_line(subject: PortableSubject) -> bytes:
    """A subject, without its templates, as a line."""
    return _line(
        {
            "subject": subject.key,
            "metadata": subject.metadata,
            "created_at": subject.created_at.isoformat(),
            "updated_at": subject.updated_at.isoformat(),
            "consent": subject.consent.to_json() if subject.consent else None,
            "expires_at": subject.expires_at.isoformat() if subject.expires_at else None,
            "seen_at": subject.seen_at.isoformat() if subject.seen_at else None,
        }
    )


def subject_from_line(line: bytes) -> PortableSubject:
    """The subject of a line, without its templates.

    Raises:
        ValueError, KeyError, TypeError, RecursionError, FacegalleryError: it is none.
    """
    values = _loads(line)
    key = _text(values["subject"])
    if normalise_name(key, part="subject") != key:
        raise ValueError("the key is not in Unicode's composed form")
    return PortableSubject(
        key,
        check_metadata(values["metadata"]),
        _moment(values["created_at"]),
        _moment(values["updated_at"]),
        consent=_consent(values.get("consent")),
        expires_at=_moment_or_none(values.get("expires_at")),
        seen_at=_moment_or_none(values.get("seen_at")),
    )


def template_to_line(subject: str, template: PortableTemplate) -> bytes:
    """A template as a line."""
    values: dict[str, Any] = {
        "subject": subject,
        "quality": asdict(template.quality),
        "crop_sha256": template.crop_sha256,
        "created_at": template.created_at.isoformat(),
        "embedding": base64.b64encode(template.embedding.astype(EMBEDDING).tobytes()).decode(),
    }
    if template.crop is not None:
        values["crop"] = base64.b64encode(template.crop).decode()
    return _line(values)


def template_from_line(line: bytes, dimension: int) -> tuple[str, PortableTemplate]:
    """The key of the subject and the template of a line.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it is none.
    """
    values = _loads(line)
    embedding = np.frombuffer(base64.b64decode(values["embedding"], validate=True), EMBEDDING)
    if embedding.shape != (dimension,) or not abs(float(np.linalg.norm(embedding)) - 1) < 1e-3:  # true for NaN as well
        raise ValueError(f"an embedding is not {dimension} numbers of length 1")
    if set(values["quality"]) != set(_QUALITY):
        raise ValueError("other measures of quality")
    crop = None if values.get("crop") is None else base64.b64decode(values["crop"], validate=True)
    if crop is not None and len(crop) > MAX_CROP_BYTES:
        raise ValueError("a crop is too large")
    return _text(values["subject"]), PortableTemplate(
        embedding,
        Quality(**{name: _number(values["quality"][name]) for name in _QUALITY}),
        _digest(values["crop_sha256"]),
        _moment(values["created_at"]),
        crop,
    )


def old_embedding_to_line(old: OldEmbedding) -> bytes:
    """An embedding of another extractor as a line."""
    return _line(
        {
            "subject": old.subject,
            "extractor": old.extractor,
            "crop_sha256": old.crop_sha256,
            "embedding": base64.b64encode(old.embedding.astype(EMBEDDING).tobytes()).decode(),
        }
    )


def audit_to_line(entry: str) -> bytes:
    """An entry of the audit log, JSON already, as a line."""
    return _line(json.loads(entry))


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _loads(data: bytes) -> Any:
    return json.loads(data, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError("expected a count")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("expected a number")
    return float(value)


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("expected a SHA-256 digest")
    return value


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("a moment has no zone")
    return moment.astimezone(UTC)


def _moment_or_none(value: Any) -> datetime | None:
    return None if value is None else _moment(value)


def _consent(value: Any) -> Consent | None:
    if value is None:
        return None
    reference = value["reference"]
    return Consent(
        purpose=normalise_name(_text(value["purpose"]), part="consent"),
        granted_at=_moment(value["granted_at"]),
        reference=None if reference is None else normalise_name(_text(reference), part="consent"),
        expires_at=_moment_or_none(value["expires_at"]),
    )


def _rules(value: Any) -> PrivacyRules:
    if value is None:
        return NO_RULES
    required, days = value["require_consent"], (value["keep_days"], value["unseen_days"])
    if not isinstance(required, bool) or any(one is not None and not 1 <= _count(one) <= MAX_DAYS for one in days):
        raise ValueError("impossible rules of consent and retention")
    return PrivacyRules(required, *days)
