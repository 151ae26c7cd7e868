"""The manifest of an archive: what the archive is, and which members it has (see docs/moving.md)."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from app.gallery.consent import MAX_DAYS, NO_RULES, PrivacyRules
from app.gallery.errors import ArchiveDamaged
from app.gallery.json_values import count, digest, moment, read_json, text
from app.gallery.policy import ThresholdPolicy, policy_from_json, policy_to_json
from model.errors import FacegalleryError

FORMAT, VERSION = "facegallery-archive", 1
MANIFEST, SUBJECTS, TEMPLATES, OLD_EMBEDDINGS, AUDIT = (
    "manifest.json",
    "subjects.jsonl",
    "templates.jsonl",
    "old_embeddings.jsonl",
    "audit.jsonl",
)
MAX_MANIFEST_BYTES = 64 * 1024
MAX_DIMENSION = 65_536
"""Bounds of what a reader takes into memory, whatever an archive says of itself."""


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
        document = read_json(data)
        if document["format"] != FORMAT:
            raise ValueError("another format")
        if document["version"] != VERSION:
            raise ArchiveDamaged(
                f"the archive has version {document['version']!r}, this program reads version {VERSION}; "
                "use the program that wrote it, or a newer one"
            )
        policy = document["policy"]
        manifest = Manifest(
            gallery=text(document["gallery"]),
            extractor=text(document["extractor"]),
            dimension=count(document["dimension"]),
            policy=None if policy is None else policy_from_json(policy),
            revision=count(document["revision"]),
            created_at=moment(document["created_at"]),
            subject=None if document["subject"] is None else text(document["subject"]),
            crops=count(document["counts"]["crops"]),
            members={
                name: Member(count(one["bytes"]), digest(one["sha256"]), count(one["lines"]))
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


def _rules(value: Any) -> PrivacyRules:
    if value is None:
        return NO_RULES
    required, days = value["require_consent"], (value["keep_days"], value["unseen_days"])
    if not isinstance(required, bool) or any(one is not None and not 1 <= count(one) <= MAX_DAYS for one in days):
        raise ValueError("impossible rules of consent and retention")
    return PrivacyRules(required, *days)
