"""The lines of an archive's members: subjects, templates, old embeddings and audit entries (see docs/moving.md)."""

import base64
import json
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from app.gallery.consent import Consent
from app.gallery.crops import MAX_CROP_BYTES
from app.gallery.json_values import digest, moment, moment_or_none, number, read_json, text
from app.gallery.metadata import check_metadata
from app.gallery.moving.portable import OldEmbedding, PortableSubject, PortableTemplate
from app.gallery.names import normalise_name
from app.gallery.sql.rows import EMBEDDING
from app.gallery.unit_length import of_unit_length
from model.quality import Quality

MAX_LINE_BYTES = 1024 * 1024
"""Bound of what a reader takes into memory, whatever an archive says of itself."""

_QUALITY = tuple(field.name for field in fields(Quality))


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
    values = read_json(line)
    key = text(values["subject"])
    if normalise_name(key, part="subject") != key:
        raise ValueError("the key is not in Unicode's composed form")
    return PortableSubject(
        key,
        check_metadata(values["metadata"]),
        moment(values["created_at"]),
        moment(values["updated_at"]),
        consent=_consent(values.get("consent")),
        expires_at=moment_or_none(values.get("expires_at")),
        seen_at=moment_or_none(values.get("seen_at")),
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
    values = read_json(line)
    embedding = np.frombuffer(base64.b64decode(values["embedding"], validate=True), EMBEDDING)
    if embedding.shape != (dimension,) or not of_unit_length(embedding[None]).all():
        raise ValueError(f"an embedding is not {dimension} numbers of length 1")
    if set(values["quality"]) != set(_QUALITY):
        raise ValueError("other measures of quality")
    crop = None if values.get("crop") is None else base64.b64decode(values["crop"], validate=True)
    if crop is not None and len(crop) > MAX_CROP_BYTES:
        raise ValueError("a crop is too large")
    return text(values["subject"]), PortableTemplate(
        embedding,
        Quality(**{name: number(values["quality"][name]) for name in _QUALITY}),
        digest(values["crop_sha256"]),
        moment(values["created_at"]),
        crop,
    )


def old_embedding_to_line(old: OldEmbedding) -> bytes:
    """An embedding of another extractor as a line."""
    values = {
        "subject": old.subject,
        "extractor": old.extractor,
        "crop_sha256": old.crop_sha256,
        "embedding": base64.b64encode(old.embedding.astype(EMBEDDING).tobytes()).decode(),
    }
    if old.crop is not None:
        values["crop"] = base64.b64encode(old.crop).decode()
    return _line(values)


def audit_to_line(entry: str) -> bytes:
    """An entry of the audit log, JSON already, as a line."""
    return _line(json.loads(entry))


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _consent(value: Any) -> Consent | None:
    if value is None:
        return None
    reference = value["reference"]
    return Consent(
        purpose=normalise_name(text(value["purpose"]), part="consent"),
        granted_at=moment(value["granted_at"]),
        reference=None if reference is None else normalise_name(text(reference), part="consent"),
        expires_at=moment_or_none(value["expires_at"]),
    )
