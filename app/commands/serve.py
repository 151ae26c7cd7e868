"""`facegallery serve`."""

from typing import Annotated

import typer

from app.commands.migrate import migrate_command
from app.settings import Settings, split_list


def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on [FACEGALLERY_HOST].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [FACEGALLERY_PORT].")] = None,
    migrate_first: Annotated[bool, typer.Option("--migrate", help="Bring the tables up to date first.")] = False,
) -> None:
    """Serve the REST API.

    On a loopback address no key is asked for; on any other the first start makes a key and prints it once.
    """
    import uvicorn

    from app.access.opening import asks_no_key
    from app.commands.connection import guarded_protocol
    from app.main import create_app

    given = {"host": host, "port": port}
    settings = Settings()
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    asks_no_key(settings)  # refused before the tables are touched
    if migrate_first:
        migrate_command()
    proxies = split_list(settings.trusted_proxies)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=guarded_protocol(header_timeout=settings.header_timeout, max_header_bytes=settings.max_header_bytes),
        ws="none",
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
