"""create_app(): wiring and lifespan, nothing else."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from anyio import to_thread
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app.access.opening import open_audit, open_gate
from app.access.settings_watch import note_settings
from app.api import enroll, faces, galleries, health, identify, problems, subjects, templates, verify
from app.api.authentication import Authentication
from app.api.body_guard import BodyGuard
from app.api.middleware import RequestContext
from app.api.schemas import Problem
from app.api.security_headers import SecurityHeaders
from app.gallery.database import open_engine
from app.gallery.engines import ENGINE_KINDS, EngineAddress, IndexEngine, open_index_engine
from app.gallery.history import GalleryHistory
from app.gallery.index_source import IndexSource
from app.gallery.migrations import check_schema
from app.gallery.photos import PhotoReader
from app.gallery.service import GalleryService
from app.gallery.store import GalleryStore
from app.settings import Settings, split_list
from app.telemetry import set_up_logging
from model.image import ImageLimits
from model.pipeline import WEIGHTS, load_networks

_log = structlog.get_logger()


def open_service(settings: Settings) -> GalleryService:
    """The service on the settings' database and networks.

    Raises:
        SchemaOutdated: the database's tables are not those of this version.
        DatabaseUnavailable, ModelFileError: as named.
    """
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    check_schema(engine)
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
    return GalleryService(
        GalleryStore(engine, open_audit(settings, engine)),
        GalleryHistory(engine),
        reader,
        IndexSource(
            kind=settings.index,
            half=settings.index_half,
            folder=settings.snapshots_dir if settings.snapshot_interval else None,
            snapshot_interval=settings.snapshot_interval,
            erase_interval=settings.erase_interval,
            engine=_open_engine_of(settings),
        ),
        policy=settings.threshold_policy,
        rule=settings.matching_rule,
        keep_crops=settings.keep_crops,
    )


def _open_engine_of(settings: Settings) -> IndexEngine | None:
    """The engine outside the process that keeps the vectors, where the settings name one."""
    if settings.index not in ENGINE_KINDS:
        return None
    token = settings.milvus_token
    address = EngineAddress(
        settings.sqlalchemy_url,
        milvus=settings.milvus_uri,
        milvus_token=token.get_secret_value() if token else "",
        timeout=settings.database_timeout,
    )
    return open_index_engine(settings.index, address)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; the networks are loaded here, once, so that a damaged file stops the start."""
    settings = settings or Settings()
    set_up_logging(form=settings.log_format, level=settings.log_level)
    service = open_service(settings)
    gate = open_gate(settings, service.store.engine, service.store.journal)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await to_thread.run_sync(note_settings, settings, service.store.engine, service.store.journal)
        if gate.keys is None:
            _log.warning("open", meaning="no key is asked for, on this machine alone; see FACEGALLERY_AUTHENTICATION")
        elif key := await to_thread.run_sync(gate.keys.first_key):
            # To people, not into the log: it is shown this once.
            print(f"the first key, for everything; it is not shown again:\n{key}", file=sys.stderr, flush=True)
        await to_thread.run_sync(service.start)
        _log.info("ready", extractor=service.extractor)
        yield
        await to_thread.run_sync(service.close)
        gate.close()

    app = FastAPI(
        title="Facegallery",
        version=version("facegallery"),
        summary="Enroll people from photos, identify them in others, call strangers unknown.",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.docs else None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.service, app.state.settings, app.state.gate = service, settings, gate
    # The last one added is the first that a request meets.
    app.add_middleware(
        BodyGuard,
        max_bytes=settings.max_request_bytes,
        max_held_bytes=settings.max_upload_bytes,
        late=settings.body_timeout,
        min_rate=settings.min_body_rate,
        work=settings.request_timeout,
    )
    origins = split_list(settings.cors_origins)
    app.add_middleware(Authentication, gate=gate, origins=origins, behind_proxy=settings.authentication == "open")
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
    for module in (enroll, identify, verify, faces, galleries, subjects, templates, health):
        app.include_router(module.router)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Put the problem document into the OpenAPI components that the routes' errors refer to."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        document = generate()
        components = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in components:
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            components.update(schema.pop("$defs", {}))
            components["Problem"] = schema
        for path in document["paths"].values():
            for operation in path.values():
                invalid = operation.get("responses", {}).get("422")
                if invalid and "HTTPValidationError" in str(invalid):
                    del operation["responses"]["422"]
        components.pop("HTTPValidationError", None)
        components.pop("ValidationError", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
