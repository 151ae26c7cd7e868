"""The settings' pepper, audit log and gate, and what a start writes down."""

import ipaddress
import sys

from sqlalchemy import Engine, select

from app.access.audit_log import AuditLog
from app.access.caller import Caller, current_caller
from app.access.errors import OpenToTheWorld
from app.access.gate import Gate
from app.access.key_store import KeyStore
from app.access.keys import KeyHasher
from app.access.pepper import Pepper, read_pepper
from app.access.rate_limits import RateLimits, open_rates
from app.access.settings_watch import note_settings
from app.access.tables import ApiKeyRow, AuditHeadRow
from app.gallery.journal import Journal
from app.gallery.sql.rows import Sessions
from app.settings import Settings

DEFAULT_RATE = 50.0


def settings_pepper(settings: Settings, *, make: bool) -> Pepper:
    """The pepper of the setting, or of the file in `data_dir`, which may be made where it is missing.

    Raises:
        PepperUnusable, StorageUnwritable: as `read_pepper` does.
    """
    secret = settings.key_pepper
    return read_pepper(secret.get_secret_value() if secret else None, settings.data_dir, make=make)


def _pepper_of(settings: Settings, engine: Engine) -> Pepper:
    """The pepper of the database, made where nothing there needs one yet.

    The database is asked first: of two that start at once, who finds the other's keys finds the other's file, too.
    """
    with Sessions(engine).reading() as session:
        needed = any(session.scalar(select(id_).limit(1)) is not None for id_ in (AuditHeadRow.id, ApiKeyRow.id))
    return settings_pepper(settings, make=not needed)


def open_audit(settings: Settings, engine: Engine) -> AuditLog:
    """The audit log of the database.

    Raises:
        PepperUnusable: the pepper is missing, or none.
        StorageUnwritable: it cannot be made.
    """
    return AuditLog(engine, _pepper_of(settings, engine), keep_days=settings.audit_days)


def open_keys(settings: Settings, engine: Engine, journal: Journal) -> KeyStore:
    """The keys of the database."""
    return KeyStore(engine, KeyHasher(_pepper_of(settings, engine)), journal)


def open_gate(settings: Settings, engine: Engine, journal: Journal) -> Gate:
    """What decides who may call.

    Raises:
        OpenToTheWorld: no key is to be asked for on an address that others can reach.
    """
    is_open = asks_no_key(settings)
    hasher = KeyHasher(_pepper_of(settings, engine))
    keys = None if is_open else KeyStore(engine, hasher, journal)
    rate = settings.rate_limit if settings.rate_limit is not None else (0.0 if is_open else DEFAULT_RATE)
    limits = None
    if rate > 0:
        rates = open_rates(engine, timeout=settings.database_timeout)
        limits = RateLimits(rates, rate=rate, burst=settings.rate_burst)
    return Gate(keys, hasher, limits)


def note_start(settings: Settings, engine: Engine, journal: Journal, gate: Gate) -> None:
    """Write down the settings where they changed, and make and print the first key where there never was one.

    Raises:
        AuditBroken, PepperUnusable: another pepper sealed the audit log, or hashed the keys.
        DatabaseUnavailable, StorageUnwritable: as named.
    """
    token = current_caller.set(Caller("service"))
    try:
        note_settings(settings, engine, journal)
        key = None if gate.keys is None else gate.keys.first_key()
    finally:
        current_caller.reset(token)
    if key:
        # To people, not into the log: it is shown this once.
        print(f"the first key, for everything; it is not shown again:\n{key}", file=sys.stderr, flush=True)


def asks_no_key(settings: Settings) -> bool:
    """Whether everybody may call: on a loopback address alone, and by itself only where no proxy is named.

    Raises:
        OpenToTheWorld: the setting says so on another address.
    """
    loopback = is_loopback(settings.host)
    if settings.authentication == "open" and not loopback:
        raise OpenToTheWorld(
            f"FACEGALLERY_AUTHENTICATION=open would let everybody who reaches {settings.host} read and erase faces; "
            "ask for keys, or listen on 127.0.0.1"
        )
    if settings.authentication == "auto":
        return loopback and not settings.trusted_proxies
    return settings.authentication == "open"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
