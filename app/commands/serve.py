"""`facegallery serve`."""

import os
import tempfile
from typing import Annotated

import typer

from app.commands.migrate import migrate_command
from app.gallery.database import open_engine
from app.gallery.migrations import check_schema
from app.settings import Settings


def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on [FACEGALLERY_HOST].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [FACEGALLERY_PORT].")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that answer [FACEGALLERY_PROCESSES].")
    ] = None,
    migrate_first: Annotated[bool, typer.Option("--migrate", help="Bring the tables up to date first.")] = False,
) -> None:
    """Serve the REST API."""
    import uvicorn

    from app.main import create_app

    settings = Settings()
    count = processes or settings.processes
    if migrate_first:
        migrate_command()
    if count > 1:
        # Each process counts for itself; whoever is asked for metrics adds them up from this folder.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="facegallery-metrics-"))
        check_schema(open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout))
    uvicorn.run(
        # One process is given the application, so that what stops its start is told in one line.
        "app.main:create_app" if count > 1 else create_app(settings),
        factory=count > 1,
        workers=count,
        host=host or settings.host,
        port=settings.port if port is None else port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
