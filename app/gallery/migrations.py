"""The tables' versions: bring a database up to date, and refuse to serve on one that is not."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import Connection, Engine

import migrations
from app.gallery.database import database_errors
from app.gallery.errors import SchemaOutdated
from app.gallery.vault import Vault

_SCRIPTS = Path(migrations.__file__).parent


def migrate(engine: Engine, target: str = "head", *, vault: Vault | None = None) -> None:
    """Bring the database's tables to a version; data is kept.

    Going down opens what is sealed, with this vault or else the settings' own.
    """
    config = _config()
    config.attributes["vault"] = vault
    with database_errors(), engine.connect() as connection:
        config.attributes["connection"] = connection
        move = command.downgrade if _leads_down(config, connection, target) else command.upgrade
        move(config, target)
        connection.commit()


def leads_down(engine: Engine, target: str) -> bool:
    """Whether a version is an earlier one than the database's, so that going there drops tables and what they hold."""
    with database_errors(), engine.connect() as connection:
        return _leads_down(_config(), connection, target)


def check_schema(engine: Engine) -> None:
    """Make sure that the tables are those of this version.

    Raises:
        SchemaOutdated: they are not.
    """
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    with database_errors(), engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found is None:
        raise SchemaOutdated("the database has no tables yet; run `facegallery migrate`")
    if found != wanted:
        raise SchemaOutdated(f"the database has tables of version {found}, not {wanted}; run `facegallery migrate`")


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
