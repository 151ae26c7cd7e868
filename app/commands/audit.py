"""`facegallery audit`: verify, export, prune, begin anew."""

import json
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from app.access.audit import Head, names_subject
from app.access.audit_log import AuditLog
from app.access.new_beginning import begin_anew
from app.access.opening import open_audit, settings_pepper
from app.commands.options import Exit, JsonOption, complain, opened_database
from app.gallery.errors import StorageUnwritable
from app.gallery.names import normalise_name
from app.settings import Settings
from model.replaced_file import flush_folder

audit_cli = typer.Typer(no_args_is_help=True, help="Check and print the audit log.")


def _parse_moment(text: str) -> datetime:
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"):
        with suppress(ValueError):
            return datetime.strptime(text, form).replace(tzinfo=UTC)
    raise typer.BadParameter(f"{text!r} is neither a day, as 2026-01-31, nor a moment, as 2026-01-31T12:00:00")


@audit_cli.command("verify")
def verify_audit(
    expect: Annotated[
        str | None, typer.Option(help="A head that was printed earlier and kept elsewhere, as COUNT:HASH.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Follow the whole log and its seal; print its head, to be kept where the database's owner cannot change it.

    Exit codes: 0 the log is whole, 1 it is not.
    """
    expected = None if expect is None else _parse_head(expect)
    with _opened_audit() as audit:
        report = audit.verify(expected)
    if as_json:
        print(json.dumps({"head": str(report.head), "entries": report.head.count, "flaws": report.flaws}))
    else:
        for flaw in report.flaws:
            complain(flaw, style="red")
        print(f"{report.head.count} entries, {len(report.flaws)} flaws, head {report.head}")
    raise typer.Exit(Exit.REFUSED if report.flaws else Exit.DONE)


@audit_cli.command("export")
def export_audit(
    after: Annotated[int, typer.Option(min=0, help="Only entries behind this number.")] = 0,
    subject: Annotated[str | None, typer.Option(help="Only entries about this subject.")] = None,
) -> None:
    """Print the entries as lines of JSON, each with its hash, oldest first.

    Exit codes: 0 done, 1 failed, 3 done but for what is no entry any more, which no subject can be found in.
    """
    key, damaged = None if subject is None else normalise_name(subject, part="subject"), 0
    with _opened_audit() as audit:
        for line in audit.entries(after=after):
            named = True if key is None else names_subject(line, key)
            damaged += named is None
            if named:
                print(line)
    if damaged:
        complain(f"{damaged} entries are none any more; see `facegallery audit verify`", style="yellow")
        raise typer.Exit(Exit.PARTLY)


@audit_cli.command("prune")
def prune_audit(
    before: Annotated[
        datetime, typer.Option(parser=_parse_moment, metavar="DATE", help="Day, or moment in UTC as DATETHH:MM:SS.")
    ],
    archive: Annotated[
        Path | None, typer.Option(dir_okay=False, help="New file that gets the entries first, as `export` prints them.")
    ] = None,
) -> None:
    """Remove the entries from before a moment; the log can still be checked, and says that this was done."""
    moment = min(before, datetime.now(UTC))  # what comes meanwhile stays
    with _opened_audit() as audit:
        if archive is not None:
            _write_lines(archive, audit.entries(before=moment))
        removed = audit.prune(moment, up_to=None if archive is None else _last_number(archive))
        if archive is not None and _first(archive) in {None, next(audit.entries(), None)}:
            archive.unlink()  # nothing left the log, and the next run may have the name
        print(f"{removed} entries removed")


@audit_cli.command("begin-anew")
def begin_audit_anew(
    archive: Annotated[Path, typer.Option(dir_okay=False, help="New file that gets the entries and the keys' names.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove the entries, and the keys for good.")] = False,
) -> None:
    """Where the pepper is lost without a copy: begin an audit log with another one, and remove the keys.

    That is the one in the settings, or a new file `key-pepper`. Everybody stays enrolled; keys have to be made anew.
    Refused where the log goes on with the pepper at hand. Stop the services first.
    """
    if not yes:
        raise typer.BadParameter(
            "no key will be taken any more, and nobody can tell whether the old entries were changed; look for a copy "
            "of the pepper first, make a backup, and add --yes",
            param_hint="--yes",
        )
    if archive.exists() or not os.access(archive.parent, os.W_OK):  # before a pepper is made
        raise StorageUnwritable(
            f"{archive} is there already, or cannot be written; name another file; nothing was removed"
        )
    with opened_database() as engine:
        keys = begin_anew(engine, settings_pepper(Settings(), make=True), partial(_write_lines, archive))
    print(f"the audit log begins anew; what it held is in {archive}, and {keys} keys are gone")


def _write_lines(file: Path, lines: Iterator[str]) -> None:
    """Write lines into a new file, for its owner alone."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as writer:
                writer.writelines(f"{line}\n" for line in lines)
                writer.flush()
                os.fsync(writer.fileno())
            flush_folder(file.parent)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageUnwritable(f"{file} cannot be written: {error.strerror}; nothing was removed") from error


def _last_number(file: Path) -> int:
    """Number of the last entry of a file; 0 where there is none."""
    with file.open(encoding="utf-8") as lines:
        last = deque(lines, maxlen=1)
    return int(json.loads(last[0])["entry"]["number"]) if last else 0


def _first(file: Path) -> str | None:
    with file.open(encoding="utf-8") as lines:
        return next((line.removesuffix("\n") for line in lines), None)


@contextmanager
def _opened_audit() -> Iterator[AuditLog]:
    with opened_database() as engine:
        yield open_audit(Settings(), engine)


def _parse_head(text: str) -> Head:
    found = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text)
    if found is None:
        raise typer.BadParameter("a head is COUNT:HASH, as `facegallery audit verify` prints it", param_hint="--expect")
    return Head(int(found[1]), bytes.fromhex(found[2]))
