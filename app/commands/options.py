"""What the commands share: options, exit codes, the service and complaints."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from sqlalchemy import Engine

from app.access.opening import open_audit
from app.gallery.sealing.encryption import SealedRows
from app.gallery.sealing.resealing import count_plain_subjects
from app.gallery.service import GalleryService
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import check_schema
from app.gallery.store import GalleryStore
from app.settings import Settings
from app.telemetry import set_up_logging
from app.vault import vault_beside

errors = Console(stderr=True)
GalleryOption = Annotated[str, typer.Option("--gallery", "-g", help="Name of the gallery.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    REFUSED = 1  # something could not be done; the message says what
    USAGE = 2  # the command's words are off
    PARTLY = 3  # done but for something that was told
    STOPPED = 130  # by Ctrl-C
    TERMINATED = 143  # by SIGTERM


@contextmanager
def opened_service() -> Iterator[GalleryService]:
    """The service on the settings' database; an index is built when a command first searches its gallery."""
    from app.main import open_service  # brings the networks' runtime, which `migrate` and `--help` need not wait for

    settings = Settings()
    set_up_logging(form=settings.log_format, level="warning", repeats=False)
    service = open_service(settings)
    try:
        yield service
    finally:
        service.close()


@contextmanager
def opened_database() -> Iterator[Engine]:
    """The settings' database alone, for commands that need no network.

    Raises:
        SchemaOutdated: its tables are not those of this version.
    """
    settings = Settings()
    set_up_logging(form=settings.log_format, level="warning", repeats=False)
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    try:
        check_schema(engine)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def opened_store() -> Iterator[GalleryStore]:
    """The store on the settings' database, with its vault and its audit log, for commands that need no network.

    Raises:
        SchemaOutdated: its tables are not those of this version.
        MasterKeyMissing, KeyUnavailable: no master key or vault, or the wrong one.
    """
    with opened_database() as engine:
        settings = Settings()
        vault = vault_beside(settings, engine)
        store = GalleryStore(engine, journal=open_audit(settings, engine), seals=SealedRows(vault))
        try:
            yield store
        finally:
            store.close()
            vault.close()


def tell_plain_subjects(engine: Engine) -> None:
    """Tell of subjects that a backup from before encryption has brought back, which are named nowhere as they are."""
    if count := count_plain_subjects(engine):
        complain(
            f"{count} subjects are from before encryption and named nowhere until `facegallery master-key seal`",
            style="yellow",
        )


def complain(sentence: str, *, style: str) -> None:
    """One line on standard error: names and paths are no markup, are not wrapped, and control no terminal."""
    errors.print(Text(printable(sentence), style), soft_wrap=True)


def printable(text: str) -> str:
    """A text as it is but for control characters, which files and archives of others may have in their names."""
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character) == "Cc" else character for character in text
    )
