"""`facegallery serve`."""

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Annotated, Any

import structlog
import typer

from app.commands.listening import check_address, check_tls
from app.commands.migrate import bring_tables_to
from app.commands.options import Exit
from app.gallery.errors import StorageUnwritable
from app.gallery.index import use_no_huge_pages
from app.gallery.snapshots.private_folder import PrivateFolder, private_base
from app.settings import Settings, split_list, unknown_settings
from app.telemetry import set_up_logging

_log = structlog.get_logger()
_OPEN_FILES = 65_536
_START_SECONDS = 30  # of a process among many that load their networks; uvicorn's own 5 end it, and the next, forever


@contextmanager
def _start_refused() -> Iterator[None]:
    """A start that failed is told with the exit code of all that is refused: uvicorn's own says something else here."""
    try:
        yield
    except SystemExit as end:
        raise typer.Exit(Exit.REFUSED) from end


@_start_refused()
def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on [FACEGALLERY_HOST].")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on [FACEGALLERY_PORT].")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that answer [FACEGALLERY_PROCESSES].")
    ] = None,
    migrate_first: Annotated[bool, typer.Option("--migrate", help="Bring the tables up to date first.")] = False,
) -> None:
    """Serve the REST API.

    On a loopback address no key is asked for; on any other the first start makes a key and prints it once.
    """
    import uvicorn

    from app.access.opening import asks_no_key
    from app.commands.connection import ProtocolOfSettings, guarded_protocol
    from app.main import check_start, create_app

    options = {"host": host, "port": port, "processes": processes}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**given)
    asks_no_key(settings)  # refused before the tables are touched
    check_tls(settings.tls_certificate, settings.tls_key)
    check_address(settings.host, settings.port)
    if migrate_first:
        bring_tables_to()
    set_up_logging(form=settings.log_format, level=settings.log_level)
    for sentence in unknown_settings():
        _log.warning("setting.unknown", meaning=sentence)
    _raise_open_files()
    use_no_huge_pages()
    count = settings.processes
    if count > 1:
        # Each process reads the settings for itself.
        os.environ |= {f"FACEGALLERY_{name.upper()}": str(value) for name, value in given.items()}
        check_start(settings)  # else each is refused, and uvicorn starts the next one, without end
    guarded = guarded_protocol(settings)
    proxies = split_list(settings.trusted_proxies)
    with _counted_together(settings) if count > 1 else nullcontext():
        uvicorn.run(
            # One process is given the application, so that what stops its start is told in one line.
            "app.main:create_app" if count > 1 else create_app(settings),
            factory=count > 1,
            workers=count,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            http=ProtocolOfSettings if count > 1 else guarded,
            ws="none",
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            limit_concurrency=settings.max_connections + 1,  # uvicorn counts the connection that calls, too
            timeout_graceful_shutdown=settings.shutdown_timeout,
            timeout_worker_healthcheck=_START_SECONDS,
        )


@contextmanager
def _counted_together(settings: Settings) -> Iterator[None]:
    """A folder in which each process counts for itself; whoever is asked for metrics adds them up.

    In memory where there is such a place, as a process whose counts meet a full disk is ended by the system.
    """
    with ExitStack() as until_the_end:
        try:
            base = private_base(settings.runtime_dir, apart_from=(settings.data_dir, settings.snapshots_dir))
            held = PrivateFolder(base, f"metrics of process {os.getpid()}")
            folder = str(held.path)
            until_the_end.callback(held.close)
        except StorageUnwritable:
            folder = until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="facegallery-metrics-"))
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        yield


def _raise_open_files() -> None:
    """Have more files open than a shell allows where the system lets us: one for each gallery, one for each caller."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
