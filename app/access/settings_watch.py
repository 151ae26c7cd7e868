"""The service's settings in the audit log: once at the start, where they are not those of the last start."""

import json
from typing import Any
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Engine, make_url

from app.access.audit_log import AuditLog
from app.gallery.errors import StorageUnwritable
from app.gallery.journal import Event, Journal
from app.gallery.sql.database import without_password
from app.gallery.sql.rows import Sessions
from app.settings import Settings

_log = structlog.get_logger()
_SECRET = {"key_pepper", "master_key", "milvus_token"}  # of these, whether they are set
_ADDRESSES = {"database_url", "vault_url", "milvus_uri"}  # without their passwords


def note_settings(settings: Settings, engine: Engine, journal: Journal) -> None:
    """Write the settings down if they changed since they were last written, and which did.

    The log's head is looked at in any case: with another pepper nothing could be done later.

    Raises:
        AuditBroken: the audit log was tampered with, or sealed with another pepper.
    """
    if not isinstance(journal, AuditLog):
        return
    journal.head()
    shown = described(settings)
    entry = journal.last("settings")
    before = json.loads(entry)["details"]["settings"] if entry else {}
    changed = sorted(name for name in shown.keys() | before.keys() if shown.get(name) != before.get(name))
    if not changed:
        return
    try:
        with Sessions(engine).writing() as session:
            journal.write(session, Event("settings", details={"settings": shown, "changed": changed}))
    except StorageUnwritable as error:  # who can only read may do so
        _log.warning("audit.not_written", entries=1, reason=str(error))


def described(settings: Settings) -> dict[str, Any]:
    """The settings as JSON, without secrets: of those whether they are set, of addresses no password."""
    shown: dict[str, Any] = settings.model_dump(mode="json", exclude=_SECRET | _ADDRESSES | {"threshold_policy"})
    return (
        shown
        | {name: getattr(settings, name) is not None for name in _SECRET}
        | {
            "threshold_policy": None if settings.threshold_policy is None else repr(settings.threshold_policy),
            "database": without_password(make_url(settings.sqlalchemy_url)),
            "vault": without_password(make_url(settings.sqlalchemy_vault_url)),
            "milvus": urlsplit(settings.milvus_uri)._replace(query="").geturl().rpartition("@")[2],
        }
    )
