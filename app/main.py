"""create_app(): wiring and lifespan, nothing else."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from anyio import to_thread
from fastapi import FastAPI

from app.api import enroll, faces, forget, galleries, health, identify, problems, subjects, templates, verify
from app.api.middleware import BodyLimit, RequestContext
from app.api.schemas import Problem
from app.gallery.database import open_engine
from app.gallery.encryption import SealedRows
from app.gallery.forgetting import Forgetting
from app.gallery.history import GalleryHistory
from app.gallery.index import INDEX_KINDS
from app.gallery.migrations import check_schema
from app.gallery.photos import PhotoReader
from app.gallery.receipts import SIGNING_KEY, ReceiptSigner
from app.gallery.resealing import check_vault, has_sealed_subjects, seal_at_first_start
from app.gallery.retention import Retention
from app.gallery.service import GalleryService
from app.gallery.store import GalleryStore
from app.settings import Settings
from app.telemetry import set_up_logging
from app.vault import vault_of
from model.image import ImageLimits
from model.pipeline import WEIGHTS, load_networks

_log = structlog.get_logger()


def open_service(settings: Settings) -> GalleryService:
    """The service on the settings' database and networks.

    Raises:
        SchemaOutdated: the database's tables are not those of this version.
        MasterKeyMissing, KeyUnavailable: no master key or vault, or the wrong one.
        DatabaseUnavailable, ModelFileError: as named.
    """
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    check_schema(engine)
    vault = vault_of(settings, expected=has_sealed_subjects(engine))
    check_vault(engine, vault)
    seal_at_first_start(engine, vault)
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
    forgetting = Forgetting(engine, vault, ReceiptSigner(vault.named_key(SIGNING_KEY).secret))
    return GalleryService(
        GalleryStore(engine, SealedRows(vault)),
        GalleryHistory(engine, SealedRows(vault)),
        reader,
        INDEX_KINDS[settings.index],
        forgetting=forgetting,
        retention=Retention(engine, forgetting),
        policy=settings.threshold_policy,
        rule=settings.matching_rule,
    )


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; the networks are loaded here, once, so that a damaged file stops the start."""
    settings = settings or Settings()
    set_up_logging(form=settings.log_format, level=settings.log_level)
    service = open_service(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await to_thread.run_sync(service.load_indexes)
        service.retention.start(settings.sweep_interval)
        _log.info("ready", extractor=service.extractor)
        yield
        service.close()

    app = FastAPI(
        title="Facegallery",
        version=version("facegallery"),
        summary="Enroll people from photos, identify them in others, call strangers unknown.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service, app.state.settings = service, settings
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)
    app.add_middleware(RequestContext, extractor=service.extractor)
    problems.install(app)
    for module in (enroll, identify, verify, faces, galleries, forget, subjects, templates, health):
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
