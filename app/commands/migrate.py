"""`facegallery migrate`."""

from typing import Annotated

import typer

from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import leads_down, migrate
from app.settings import Settings


def migrate_command(
    target: Annotated[str, typer.Argument(help="Version to go to: `head`, `base`, or a version's id.")] = "head",
    yes: Annotated[
        bool, typer.Option("--yes", help="Go down to an earlier version, which drops tables with all that they hold.")
    ] = False,
) -> None:
    """Bring the database's tables up to date."""
    version = bring_tables_to(target, down=yes)
    print("there are no tables any more" if version is None else f"the tables are of version {version}")


def bring_tables_to(target: str = "head", *, down: bool = False) -> str | None:
    """Bring the tables of the settings' database to a version, an earlier one only if that is meant; answers its id."""
    settings = Settings()
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    try:
        if not down and leads_down(engine, target):
            raise typer.BadParameter(
                f"{target} is an earlier version: going there drops tables with all that they hold, `base` everybody; "
                "stop the services, make a backup, and add --yes",
                param_hint="TARGET",
            )
        return migrate(engine, target)
    finally:
        engine.dispose()
