"""`facegallery master-key`: what wraps the keys of subjects."""

import json
from typing import Annotated

import typer

from app.access.opening import open_audit
from app.commands.options import Exit, JsonOption, complain
from app.commands.progress import shown_progress
from app.gallery.journal import Event
from app.gallery.sealing.encryption import SealedRows
from app.gallery.sealing.master_keys import MasterKey
from app.gallery.sealing.resealing import has_sealed_subjects, seal_plain_rows
from app.gallery.sealing.rotation import rotate_master_key
from app.gallery.sealing.vault import Vault
from app.gallery.sql.database import open_engine, rewrite_file
from app.gallery.sql.migrations import check_schema
from app.gallery.store import GalleryStore
from app.settings import Settings
from app.telemetry import set_up_logging
from app.vault import vault_of

master_key = typer.Typer(name="master-key", help="Make, change and show the master key.", no_args_is_help=True)


@master_key.command("new")
def new_command() -> None:
    """Print a new random master key; nothing is stored."""
    print(MasterKey.make().written)


@master_key.command("status")
def status_command(as_json: JsonOption = False) -> None:
    """Show which master keys are at hand, and how many keys each has wrapped."""
    vault = _vault()
    wraps, at_hand, wrapped = vault.master, list(vault.masters.ids), vault.wrapped_by()
    vault.close()
    if as_json:
        print(json.dumps({"wraps": wraps, "at_hand": at_hand, "wrapped": wrapped}))
        return
    print(f"wraps: {wraps}\nat hand: {', '.join(at_hand)}")
    for master, count in wrapped.items():
        print(f"{master}: {count} keys")


@master_key.command("rotate")
def rotate_command(
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Leave the old key in the file, to open older backups of the vault.")
    ] = False,
) -> None:
    """Wrap every key anew with another master key, while services run; no template is touched.

    The first key at hand is the new one. Where that wraps already and the keys come from a file, a new one is made in
    front of it. What was interrupted goes on when it is run again. A second one at the same time is refused.
    """
    vault = _vault()
    with shown_progress("wrapping", sum(vault.wrapped_by().values())) as advance:
        done = rotate_master_key(vault, keep_old=keep_old, advance=advance)
    vault.close()
    _record(Event("rotate-master-key", details={"master": done.master, "keys": done.wrapped}))
    print(f"master key {done.master} wraps every key")
    for key, place in done.needed.items():
        complain(
            f"{key} stays in the file: the vault at {place} needs it, too. Rotate that one as well; where it is gone, "
            "take its comment out of the file and run this again",
            style="yellow",
        )
    if done.before:
        complain(f"backups of the vault from before open with {', '.join(done.before)} only", style="yellow")


@master_key.command("seal")
def seal_command() -> None:
    """Seal rows that are not, after a backup from before encryption was restored, and write SQLite's file anew.

    Exit codes: 0 done, 1 failed, 3 sealed, but the file may hold embeddings in the clear where nothing is stored now.
    """
    vault = _vault()
    settings = Settings()
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    sealed = seal_plain_rows(engine, SealedRows(vault))
    vault.note_sealed()
    vault.close()
    rewritten = rewrite_file(engine)
    engine.dispose()
    if sealed:
        _record(Event("seal-rows", details={"subjects": sealed}))
    print(f"{sealed} subjects sealed")
    if not rewritten:
        complain(
            "the database's file could not be written anew, and where it is free it may hold embeddings in the clear: "
            "make room on its disk for a second one, stop what uses it, and run this again",
            style="yellow",
        )
        raise typer.Exit(Exit.PARTLY)


def _vault() -> Vault:
    settings = Settings()
    set_up_logging(form=settings.log_format, level="warning")
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    check_schema(engine)
    vault = vault_of(settings, expected=has_sealed_subjects(engine))
    engine.dispose()
    return vault


def _record(event: Event) -> None:
    """Keep an event in the audit log."""
    settings = Settings()
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    store = GalleryStore(engine, journal=open_audit(settings, engine))
    store.record(event)
    store.close()
