"""`facegallery serve`."""

from typing import Annotated

import typer

from app.commands.migrate import migrate_command
from app.settings import Settings


def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on [FACEGALLERY_HOST].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [FACEGALLERY_PORT].")] = None,
    migrate_first: Annotated[bool, typer.Option("--migrate", help="Bring the tables up to date first.")] = False,
) -> None:
    """Serve the REST API."""
    import uvicorn

    from app.main import create_app

    settings = Settings()
    if migrate_first:
        migrate_command()
    uvicorn.run(
        create_app(settings),
        host=host or settings.host,
        port=settings.port if port is None else port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
