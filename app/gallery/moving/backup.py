"""Backup and restore of an SQLite database while it is used; PostgreSQL brings tools of its own."""

import math
import re
import shutil
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import structlog
from sqlalchemy import make_url

from app.gallery.errors import BackupUnusable, Busy, InvalidInput, SchemaOutdated
from app.gallery.held_file import held
from app.gallery.moving.progress import Shown, not_shown
from app.gallery.moving.undone_erasures import have_erased, keys_beside
from app.gallery.moving.undone_galleries import have_dropped, storage_beside
from app.gallery.sql.database import make_private, open_engine, sqlite_address
from app.gallery.sql.epochs import begin_epoch
from app.gallery.sql.failures import in_words
from app.gallery.sql.migrations import migrate
from model.replaced_file import flush_folder

GALLERY_TABLES = frozenset({"alembic_version", "gallery", "template"})
VAULT_TABLES = frozenset({"data_key", "vault_state"})
_BESIDE = ("", "-wal", "-shm", "-journal")  # endings of a database's files
# In the name of a folder beside the file that is written, with eight characters of chance behind it.
_DRAFT, _COPY = ".restoring-", ".copying-"
_OURS = ("draft.db", "moved.db")  # what lies in it, and what SQLite keeps beside these
_PIECE = 256  # pages that are copied in one go, a MiB
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_log = structlog.get_logger()


def back_up(address: str, file: Path, *, tables: frozenset[str] = GALLERY_TABLES, shown: Shown = not_shown) -> int:
    """Copy a database as it is at one moment, while others read and write it; answers the bytes.

    The copy is one file, checked before it takes its place; only its owner may read it.

    Args:
        address: SQLAlchemy address of an SQLite database.
        file: the copy; one that is there is replaced, with its log.
        tables: that the database must have.
        shown: shows how much is copied, in MiB.

    Raises:
        BackupUnusable: it is no SQLite database, or is damaged.
        Busy: another backup to the same file is under way.
    """
    otherwise = "use pg_dump, or `facegallery export` for single galleries"
    if tables == VAULT_TABLES:
        otherwise = "use pg_dump for the vault's database, and keep that copy apart from the gallery's"
    database = _sqlite_file(address, otherwise)
    if not database.is_file():
        raise BackupUnusable(
            f"there is no database {database.absolute()}; set FACEGALLERY_DATA_DIR if it is elsewhere, or run "
            "`facegallery migrate` first"
        )
    try:
        # A folder takes in what SQLite keeps beside a file, and lets nobody else look into it.
        with _drafts(file, _COPY, f"another backup to {file} is under way; wait until it has ended") as folder:
            draft = folder / "draft.db"
            draft.touch(0o600)
            with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(draft)) as copy:
                _fill(copy, source, "copying, in MiB", shown)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
                _check(copy, tables)
            size = draft.stat().st_size
            for log in files_of(file)[1:]:  # before: SQLite would replay it over the new file
                log.unlink(missing_ok=True)
            draft.replace(file)
            flush_folder(file.parent)
            return size
    except sqlite3.Error as error:
        raise BackupUnusable(f"the database {database} cannot be copied to {file}: {in_words(error)}") from error


def restore(file: Path, address: str, *, timeout: float, shown: Shown = not_shown) -> int:
    """Put a copy in the database's place, in one transaction, and begin a new epoch; answers the galleries.

    The copy is brought up to this version's tables first; the file itself stays as it is. Services should be stopped:
    what they acknowledge while this runs is lost with the rest that is newer than the copy.

    Args:
        file: made by `back_up`, or by `.backup` of the sqlite3 program.
        address: SQLAlchemy address of the SQLite database; made where it is missing, set aside where it is damaged.
        timeout: seconds to wait for others' locks.
        shown: shows how much is copied, in MiB, first beside the database and then into it.

    Raises:
        BackupUnusable: no copy of a database, damaged, or of a newer version; the database stays as it was.
        Busy: another restore is under way, or others have the database locked; it stays as it was.
    """
    database = _sqlite_file(address, "use pg_restore and then `facegallery restore` without a file")
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    refusal = f"another restore of {database} is under way; wait until it has ended"
    with _drafts(database, _DRAFT, refusal, held_by=database.resolve()) as folder:
        return _restore(file, database, folder, timeout, shown)


@contextmanager
def _drafts(file: Path, mark: str, refusal: str, *, held_by: Path | None = None) -> Iterator[Path]:
    """A folder beside a file for what is to become it, by one process at a time; those of the killed are removed."""
    with held(held_by or file, refusal=refusal):
        _remove_drafts(file, mark)
        if mark == _COPY:  # copies often have the day in their name, so that there is no next to the same file
            _remove_other_copies(file)
        with tempfile.TemporaryDirectory(prefix=f"{file.name}{mark}", dir=file.parent) as folder:
            yield Path(folder)


def _restore(file: Path, database: Path, folder: Path, timeout: float, shown: Shown) -> int:
    draft = folder / "draft.db"
    try:
        _take_copy(file, draft, shown)
        engine = open_engine(sqlite_address(draft), timeout=timeout)
        try:
            migrate(engine)
            galleries = begin_epoch(engine)
            have_dropped(engine, storage_beside(database))
            have_erased(engine, keys_beside(database))
        finally:
            engine.dispose()
        with closing(sqlite3.connect(draft)) as copy:
            _check(copy, GALLERY_TABLES)
            if copy.execute("SELECT count(*) FROM gallery").fetchone() != (galleries,):
                raise BackupUnusable(f"the copy beside {database} was changed meanwhile; run this again")
            if _is_damaged(database, timeout):
                _set_aside(database)
            _copy_into(database, copy, timeout, shown)
    except SchemaOutdated as error:
        raise BackupUnusable(f"{file} was made by a newer version of Facegallery ({error})") from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOCKED:
            raise _in_use(database) from error
        raise BackupUnusable(f"{file} cannot be restored to {database}: {in_words(error)}") from error
    return galleries


def _take_copy(file: Path, draft: Path, shown: Shown) -> None:
    """Copy a file, which may lie where nothing can be written, and leave nothing beside it."""
    file = file.resolve()  # a log lies beside the file, not beside a link to it
    draft.touch(0o600)
    logged = [suffix for suffix in ("-wal", "-journal") if _with_suffix(file, suffix).exists()]
    if "-wal" in logged and not _with_suffix(file, "-shm").exists():
        # Nobody has the file open, and SQLite would leave a `-shm` there.
        _copy_moved(file, draft, logged, shown)
        return
    # A file in WAL mode that has no log is opened without one, else SQLite would have to write one beside it.
    mode = "mode=ro" if logged else "mode=ro&immutable=1"
    try:
        _copy(f"{file.as_uri()}?{mode}", draft, shown)
    except sqlite3.OperationalError as error:
        if not logged or error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}:
            raise
        # The log cannot be read in that place, so nobody has the file open there either.
        _copy_moved(file, draft, logged, shown)


def _copy_moved(file: Path, draft: Path, logged: Sequence[str], shown: Shown) -> None:
    """Copy a file that nobody has open, with its log, from beside the draft."""
    moved = draft.with_name("moved.db")
    for suffix in ("", *logged):
        shutil.copyfile(_with_suffix(file, suffix), _with_suffix(moved, suffix))
    _copy(str(moved), draft, shown)
    for path in files_of(moved):  # for its room
        path.unlink(missing_ok=True)


def _copy(source_address: str, draft: Path, shown: Shown) -> None:
    is_uri = source_address.startswith("file:")
    with closing(sqlite3.connect(source_address, uri=is_uri)) as source, closing(sqlite3.connect(draft)) as copy:
        _fill(copy, source, "copying, in MiB", shown)
        _check(copy, GALLERY_TABLES)


def _copy_into(database: Path, copy: sqlite3.Connection, timeout: float, shown: Shown) -> None:
    """Put a copy in a database's place, in one transaction.

    Raises:
        Busy: others have had the database locked for that many seconds.
    """
    make_private(database)
    with closing(sqlite3.connect(database, timeout=timeout, isolation_level=None)) as target:
        target.execute("BEGIN IMMEDIATE")  # waits for the lock no longer than that, which a backup would for ever
        target.execute("ROLLBACK")
        deadline = time.monotonic() + timeout

        def watch(status: int) -> None:
            if status & 0xFF in _LOCKED and time.monotonic() > deadline:
                raise _in_use(database)

        _fill(target, copy, "restoring, in MiB", shown, watch)
        target.execute("PRAGMA journal_mode=WAL")


def _fill(
    target: sqlite3.Connection,
    source: sqlite3.Connection,
    what: str,
    shown: Shown,
    watch: Callable[[int], None] = lambda _: None,
) -> None:
    """Copy all of a database as it is at one moment, and show it piece by piece; `watch` is told SQLite's status."""
    source.execute("BEGIN")  # to hold the moment: where others write between two pieces, SQLite would begin anew
    try:
        (pages,), (page_bytes,) = (source.execute(f"PRAGMA {one}").fetchone() for one in ("page_count", "page_size"))
        told, mebibytes = 0, math.ceil(pages * page_bytes / 2**20)
        with shown(what, mebibytes) as progress:

            def tell(status: int, left: int, _all: int) -> None:
                nonlocal told
                watch(status)
                done = mebibytes - math.ceil(left * page_bytes / 2**20)
                progress(done - told)
                told = done

            source.backup(target, pages=_PIECE, progress=tell)
    finally:
        source.rollback()


def _in_use(database: Path) -> Busy:
    return Busy(f"{database} is in use; stop the services, then run this again")


def _remove_drafts(file: Path, mark: str) -> None:
    """Remove what processes that were killed have left; the file's lock is held."""
    ours = re.compile(re.escape(file.name + mark) + r"\w{8}")
    for path in file.parent.iterdir():
        if ours.fullmatch(path.name) and path.is_dir() and not path.is_symlink() and _holds_drafts_alone(path):
            shutil.rmtree(path, ignore_errors=True)


def _holds_drafts_alone(folder: Path) -> bool:
    try:
        return all(path.name.startswith(_OURS) for path in folder.iterdir())
    except OSError:  # of another user
        return False


def _remove_other_copies(file: Path) -> None:
    """Remove what killed backups to other files have left in a file's folder; those under way keep theirs."""
    names = {path.name.rpartition(_COPY)[0] for path in file.parent.glob(f"*{_COPY}*")}
    for other in sorted(names - {"", file.name}):
        with suppress(Busy, OSError), held(file.with_name(other), refusal=""):
            _remove_drafts(file.with_name(other), _COPY)


def _is_damaged(database: Path, timeout: float) -> bool:
    """Whether a database is damaged in any page: a copy is written over a damaged one without SQLite's noticing."""
    if not database.is_file():
        return False
    try:
        with closing(sqlite3.connect(database, timeout=timeout, isolation_level=None)) as present:
            present.execute("BEGIN IMMEDIATE")  # as for the copy: damage may also show when it is written to
            found: tuple[str] = present.execute("PRAGMA quick_check(1)").fetchone()
            return found != ("ok",)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in _DAMAGED:
            raise
        return True


def _set_aside(database: Path) -> None:
    """Give the file of a damaged database another name, with what SQLite keeps beside it."""
    aside = f"{database.name}.damaged-{uuid.uuid4().hex[:8]}"
    for suffix in _BESIDE:
        with suppress(FileNotFoundError):
            _with_suffix(database, suffix).rename(database.with_name(aside + suffix))
    _log.warning("database.set_aside", file=str(database.with_name(aside)))


def _check(copy: sqlite3.Connection, wanted: frozenset[str]) -> None:
    (found,) = copy.execute("PRAGMA quick_check").fetchone()
    tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if found != "ok":
        raise BackupUnusable(f"the copy is damaged: {found}")
    if not wanted <= tables and tables >= VAULT_TABLES:
        raise BackupUnusable("that is a copy of a vault, which is put back as a file; see docs/operations.md")
    if not wanted <= tables:
        raise BackupUnusable("that is a database, but none of Facegallery's")


def files_of(database: Path) -> list[Path]:
    """What an SQLite database consists of, there or not: first its file, then what SQLite keeps beside it."""
    return [_with_suffix(database, suffix) for suffix in _BESIDE]


def refuse_databases(file: Path, addresses: Sequence[str]) -> None:
    """See to it that a file which is about to be written is none of a database's own.

    Raises:
        InvalidInput: it is.
    """
    for address in addresses:
        url = make_url(address)
        if url.get_backend_name() == "sqlite" and url.database:
            own = Path(url.database).resolve()
            if file.resolve() in files_of(own):
                raise InvalidInput(f"{file} belongs to the running database; choose another name", part="file")


def _sqlite_file(address: str, otherwise: str) -> Path:
    url = make_url(address)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise BackupUnusable(f"the database is {url.get_backend_name()}, not an SQLite file; {otherwise}")
    return Path(url.database)


def _with_suffix(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)
