"""create_app(): wiring and lifespan, nothing else."""

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version

import structlog
from anyio import to_thread
from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.middleware.cors import CORSMiddleware

from app.access.audit_log import AuditLog
from app.access.caller import Caller, current_caller
from app.access.opening import note_start, open_audit, open_gate
from app.api import (
    docs_page,
    enroll,
    faces,
    forget,
    galleries,
    health,
    identify,
    openapi,
    problems,
    subjects,
    templates,
    verify,
)
from app.api.authentication import Authentication
from app.api.body_guard import BodyGuard
from app.api.middleware import RequestContext
from app.api.request_line import RequestLine
from app.api.security_headers import SecurityHeaders
from app.ending import told_to_end
from app.gallery.deadline import WaitLimit, waiting_at_most
from app.gallery.engines import IndexEngine
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.receipts import SIGNING_KEY, ReceiptSigner
from app.gallery.erasure.retention import Retention
from app.gallery.errors import StorageUnwritable
from app.gallery.photos import PhotoReader
from app.gallery.sealing.encryption import SealedRows
from app.gallery.sealing.vault import Vault
from app.gallery.service import GalleryService
from app.gallery.snapshots.private_folder import PrivateFolder, private_base
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import check_schema
from app.gallery.store import GalleryStore
from app.gallery.views.index_source import IndexSource, SnapshotSeal
from app.index_engine import engine_of
from app.settings import Settings, split_list
from app.telemetry import set_up_logging
from app.vault import vault_beside
from model.image import ImageLimits
from model.pipeline import WEIGHTS, check_networks, load_networks

_log = structlog.get_logger()
_SNAPSHOTS = "snapshots"  # name of the vault's key that names their folder in memory


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a service stands on beside its networks; to open it may be refused."""

    engine: Engine
    vault: Vault
    journal: AuditLog
    signer: ReceiptSigner
    index_engine: IndexEngine | None

    def close(self) -> None:
        """Give all connections back."""
        if self.index_engine is not None:
            self.index_engine.close()
        self.vault.close()
        self.engine.dispose()


def _open_ground(settings: Settings) -> _Ground:
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    check_schema(engine)
    vault = vault_beside(settings, engine)
    journal = open_audit(settings, engine)
    return _Ground(engine, vault, journal, ReceiptSigner(vault.named_key(SIGNING_KEY).secret), engine_of(settings))


def open_service(settings: Settings) -> GalleryService:
    """The service on the settings' database and networks.

    Raises:
        SchemaOutdated: the database's tables are not those of this version.
        MasterKeyMissing, KeyUnavailable: no master key or vault, or the wrong one.
        PepperUnusable: the pepper is missing, or none.
        DatabaseUnavailable, IndexEngineUnusable, ModelFileError: as named.
    """
    ground = _open_ground(settings)
    networks = load_networks(
        weights=settings.weights_dir or WEIGHTS,
        detector=settings.detector,
        extractor=settings.extractor,
        runtime=settings.runtime,
        threads=settings.threads,
    )
    reader = PhotoReader(
        networks,
        image_limits=ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels),
        quality_limits=settings.quality_limits,
        workers=settings.workers or os.cpu_count() or 1,
        queue_timeout=settings.queue_timeout,
    )
    engine, seals = ground.engine, SealedRows(ground.vault)
    forgetting = Forgetting(engine, ground.vault, ground.signer, journal=ground.journal)
    return GalleryService(
        GalleryStore(engine, journal=ground.journal, seals=seals),
        GalleryHistory(engine, seals),
        reader,
        _index_source(settings, ground.vault, ground.index_engine),
        forgetting=forgetting,
        retention=Retention(engine, forgetting, interval=settings.sweep_interval),
        policy=settings.threshold_policy,
        rule=settings.matching_rule,
        keep_crops=settings.keep_crops,
    )


def check_start(settings: Settings) -> None:
    """Look once at what may refuse a start, and write down what a start does, as `create_app` would.

    For processes of which each would be refused, and started again, without end. The networks alone are not loaded.
    """
    with waiting_at_most(WaitLimit()):
        ground = _open_ground(settings)
        check_networks(
            weights=settings.weights_dir or WEIGHTS,
            detector=settings.detector,
            extractor=settings.extractor,
            runtime=settings.runtime,
        )
        gate = open_gate(settings, ground.engine, ground.journal)
        note_start(settings, ground.engine, ground.journal, gate)
        gate.close()
        ground.close()


def _index_source(settings: Settings, vault: Vault, engine: IndexEngine | None) -> IndexSource:
    """Where indexes come from; their snapshots lie sealed on the disk, and open in memory alone."""
    if engine is not None:
        _log.warning("index.not_sealed", index=settings.index, meaning="the engine keeps embeddings as they are")
    seal, folder = None, settings.snapshots_dir
    kept = settings.snapshot_interval and engine is None and settings.index != "exact"
    if kept:
        try:
            # Whoever has another vault, as after a fresh start in the same place, has another folder.
            secret = vault.named_key(_SNAPSHOTS).secret
            name = blake2b(str(folder.resolve()).encode(), key=secret, digest_size=16).hexdigest()
            base = private_base(settings.runtime_dir, apart_from=(settings.data_dir, folder))
            memory = PrivateFolder(base, name)
            _ = memory.path  # taken hold of now: later each gallery would be refused where that fails
            seal = SnapshotSeal(vault, memory)
        except StorageUnwritable as error:
            _log.warning("snapshots.off", reason=str(error), meaning="a start builds every index from the database")
    return IndexSource(
        kind=settings.index,
        half=settings.index_half,
        folder=folder if seal is not None else None,
        snapshot_interval=settings.snapshot_interval if seal is not None else 0,
        engine=engine,
        seal=seal,
        unused=None if kept else (folder, vault),
    )


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; what may refuse the start does so here, a damaged network among it, which is loaded once."""
    settings = settings or Settings()
    set_up_logging(form=settings.log_format, level=settings.log_level)
    with waiting_at_most(WaitLimit()):
        service = open_service(settings)
        gate = open_gate(settings, service.store.engine, service.store.journal)
        note_start(settings, service.store.engine, service.store.journal, gate)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        current_caller.set(Caller("service"))  # for what the service does of itself, such as sweeps
        if gate.keys is None:
            _log.warning("open", meaning="no key is asked for, on this machine alone; see FACEGALLERY_AUTHENTICATION")
        with told_to_end() as ending:
            await to_thread.run_sync(service.start, ending)
        gc.collect()
        gc.freeze()  # what is there now stays: a collection that looked through it would stop every request
        _log.info("ready", version=version("facegallery"), extractor=service.extractor)
        yield
        gc.unfreeze()  # for who makes another app in the same process
        await to_thread.run_sync(service.close)
        gate.close()

    app = FastAPI(
        title="Facegallery",
        version=version("facegallery"),
        summary="Enroll people from photos, identify them in others, call strangers unknown.",
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=docs_page.OPENAPI if settings.docs else None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service, app.state.settings, app.state.gate = service, settings, gate
    # The last one added is the first that a request meets.
    app.add_middleware(RequestLine)
    app.add_middleware(
        BodyGuard,
        max_bytes=settings.max_request_bytes,
        max_held_bytes=settings.max_upload_bytes,
        late=settings.body_timeout,
        min_rate=settings.min_body_rate,
        work=settings.request_timeout,
    )
    origins = split_list(settings.cors_origins)
    app.add_middleware(
        Authentication,
        gate=gate,
        origins=origins,
        behind_proxy=settings.authentication == "open",
        timeout=settings.database_timeout,
    )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Facegallery-Extractor", "Retry-After"],
        )
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestContext, extractor=service.extractor)
    problems.install(app)
    for module in (enroll, identify, verify, faces, galleries, forget, subjects, templates, health):
        app.include_router(module.router)
    if settings.docs:
        app.include_router(docs_page.router)
    openapi.describe(app)
    return app
