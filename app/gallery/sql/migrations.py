"""The tables' versions: bring a database up to date, and refuse to serve on one that is not."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import Connection, Engine, event, text

import migrations
from app.gallery.errors import SchemaOutdated
from app.gallery.held_file import held
from app.gallery.sealing.vault import Vault
from app.gallery.sql.database import database_errors, lift_limits, shown_database

_SCRIPTS = Path(migrations.__file__).parent
_PATIENCE = 60.0  # seconds for another migration


def _tells(record: logging.LogRecord) -> bool:
    """Whether a line of Alembic's says that something is done, not what kind of database it has looked at."""
    return not record.getMessage().startswith(("Context impl ", "Will assume "))


logging.getLogger("alembic.runtime.migration").addFilter(_tells)


def migrate(engine: Engine, target: str = "head", *, vault: Vault | None = None) -> str | None:
    """Bring the database's tables to a version; data is kept.

    Answers the version's id, None where there are no tables any more.

    Going down opens what is sealed, with this vault or else the settings' own. Of several at the same time, as where
    machines start together, one does it and the others wait for it.

    Raises:
        Busy: another has been at it for longer than a minute (SQLite).
        SchemaOutdated: the tables are those of a newer program.
    """
    config = _config()
    config.attributes["vault"] = vault
    found = _version(engine)  # makes SQLite's file, which is held
    if target == "head" and found == _head():  # nothing to do, also where nothing can be written
        return found
    _check_known(found)
    with database_errors(), _alone(engine), engine.connect() as connection:
        event.listen(connection, "begin", lift_limits)  # each script has a transaction of its own
        config.attributes["connection"] = connection
        move = command.downgrade if _leads_down(config, connection, target) else command.upgrade
        move(config, target)
        connection.commit()
    return _version(engine)


def leads_down(engine: Engine, target: str) -> bool:
    """Whether a version is an earlier one than the database's, so that going there drops tables and what they hold."""
    with database_errors(), engine.connect() as connection:
        return _leads_down(_config(), connection, target)


def check_schema(engine: Engine) -> None:
    """Make sure that the tables are those of this version.

    Raises:
        SchemaOutdated: they are not.
    """
    wanted, found = _head(), _version(engine)
    if found is None:
        raise SchemaOutdated(
            f"the database {shown_database(engine)} has no tables yet; set FACEGALLERY_DATA_DIR or "
            "FACEGALLERY_DATABASE_URL if yours is elsewhere, else run `facegallery migrate`"
        )
    if found != wanted:
        _check_known(found)
        raise SchemaOutdated(f"the database has tables of version {found}, not {wanted}; run `facegallery migrate`")


def _check_known(found: str | None) -> None:
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    if found is not None and found not in {script.revision for script in scripts}:
        raise SchemaOutdated(
            f"the database has tables of version {found}, which only a newer program knows; run that one, or restore a "
            "backup from before the upgrade"
        )


def _head() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _version(engine: Engine) -> str | None:
    with database_errors(), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Hold the database's tables against other migrations; the lock dies with the process."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:  # not of the session: behind a pooler another may have that next
            lift_limits(connection)  # the lock waits for another migration, and idles for its own
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('facegallery migrate'))"))
            yield
        return
    file = engine.url.database
    if not file or not Path(file).is_file():  # an address of SQLite's own
        yield
        return
    with held(Path(file).resolve(), refusal="another migration is under way; run this again", patience=_PATIENCE):
        yield


def _leads_down(config: Config, connection: Connection, target: str) -> bool:
    if target == "base" or target.startswith("-"):
        return True
    found = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()  # the scripts begin transactions of their own
    if found is None or target == found:
        return False
    try:
        earlier = {script.revision for script in ScriptDirectory.from_config(config).iterate_revisions(found, "base")}
    except RevisionError:  # of a newer program; going up says so
        return False
    return target in earlier


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config
