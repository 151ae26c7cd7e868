"""Alive, ready, metrics, and what the problem types mean."""

from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from app.access.errors import Forbidden
from app.access.keys import Scope
from app.api.authorisation import CallerHere, needs
from app.api.dependencies import Service
from app.api.problems import PROBLEM_TYPES, TYPE_PREFIX, error_responses, not_ready_response, problem
from app.api.schemas.health import Alive, Ready
from app.api.schemas.problems import ProblemTypeBody
from app.telemetry import exposition
from model.errors import FacegalleryError

router = APIRouter(tags=["operations"])
_not_queued = CapacityLimiter(4)  # a probe of an operator does not wait behind photos


@router.get("/healthz", summary="Alive")
async def healthz() -> Alive:
    """The process answers; says nothing about the database."""
    return Alive(status="alive")


@router.get("/readyz", summary="Ready", response_model=Ready, responses=not_ready_response())
async def readyz(service: Service) -> Ready | JSONResponse:
    """The networks are loaded, the indexes that there were at the start, too, and the database answers.

    `lag` counts the revisions that this process has yet to follow, in the gallery where it is most behind; it
    catches up before it answers a search there. `awaited` counts the large galleries that answer `busy` until their
    index is loaded anew, as after a restore or a fall back of the database.
    """
    try:
        lag, awaited = await to_thread.run_sync(lambda: (service.lag(), service.awaited()), limiter=_not_queued)
    except FacegalleryError as error:
        return problem("not-ready", str(error))
    return Ready(status="ready", extractor=service.extractor, lag=lag, awaited=awaited)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    dependencies=[needs(Scope.READ)],
    response_class=Response,
    responses={
        200: {"description": "metrics", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **error_responses(),
    },
)
async def metrics(caller: CallerHere) -> Response:
    """Counters and histograms in Prometheus' text format, of all galleries together: for keys without a limit."""
    if caller.galleries is not None:
        raise Forbidden("metrics are of all galleries; this key is for some", part="gallery")
    return Response(exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/problems/{slug}",
    summary="What a problem type means",
    dependencies=[needs()],
    responses=error_responses(http=(404,)),
)
async def problem_type(
    slug: Annotated[
        str,
        Path(description="last part of a problem's `type`", json_schema_extra={"enum": [*PROBLEM_TYPES]}),
    ],
) -> ProblemTypeBody:
    """Status, title and advice of a problem type."""
    kind = PROBLEM_TYPES.get(slug)
    if kind is None:
        raise HTTPException(404, "there is no such problem type")
    return ProblemTypeBody(type=TYPE_PREFIX + slug, status=kind.status, title=kind.title, advice=kind.advice)
