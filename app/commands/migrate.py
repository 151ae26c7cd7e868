"""`facegallery migrate`."""

from typing import Annotated

import typer

from app.gallery.database import open_engine
from app.gallery.migrations import migrate
from app.settings import Settings


def migrate_command(
    target: Annotated[str, typer.Argument(help="Version to go to: `head`, `base`, or a version's id.")] = "head",
) -> None:
    """Bring the database's tables up to date."""
    settings = Settings()
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    try:
        migrate(engine, target)
    finally:
        engine.dispose()
