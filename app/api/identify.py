"""POST /identify: a photo as a form, or an embedding as JSON."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from app.access.caller import Caller
from app.access.keys import Scope
from app.api.authorisation import CallerHere, needs, require_scores, shown_distance
from app.api.dependencies import FORM_LIMITS, PHOTO, Service, ServiceSettings, form_error, found_face, read_photo
from app.api.photo_threads import in_photo_thread
from app.api.problems import body_not_kept, error_responses
from app.api.schemas.identify import CandidateBody, Decision, EmbeddingProbe, IdentifiedFace, IdentifyAnswer
from app.api.schemas.thresholds import Distance
from app.gallery.errors import ExtractorMismatch, GalleryNotFound, IndexEngineUnusable, StorageUnwritable
from app.gallery.identifying import Identification, Match, NamedCandidate
from app.gallery.service import DEFAULT_GALLERY, GalleryService
from app.settings import Settings
from model.errors import ImageTooLarge, ModelFileError, UnsupportedImage

router = APIRouter(tags=["recognition"])


class PhotoProbe(BaseModel):
    """The fields beside the photo."""

    model_config = ConfigDict(extra="ignore")

    gallery: str = Field(DEFAULT_GALLERY, description="name of the gallery")
    threshold: Distance | None = Field(None, description="largest distance to accept; empty: the policy's")
    top_k: int = Field(5, ge=1, le=100, description="candidates of a face at most")
    max_faces: int = Field(20, ge=1, le=100, description="the largest faces only")
    all_candidates: bool = Field(False, description="list candidates beyond the threshold as well")


_FORM: dict[str, Any] = PhotoProbe.model_json_schema()
_FORM["properties"] = {
    "image": {"type": "string", "contentMediaType": "application/octet-stream", "description": PHOTO},
    **_FORM["properties"],
}
_FORM["required"] = ["image"]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": EmbeddingProbe.model_json_schema()},
        },
    }
}


async def _probe(request: Request) -> AsyncIterator[EmbeddingProbe | tuple[PhotoProbe, UploadFile]]:
    """What was sent, by its media type; the form's files are closed after the answer."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        body = await request.body()
        with _validation():
            probe = EmbeddingProbe.model_validate_json(body)
        yield probe
        return
    if kind != "multipart/form-data":
        raise HTTPException(415, "send a photo as multipart/form-data, or an embedding as application/json")
    read = request.form(max_files=1, max_fields=20, max_part_size=FORM_LIMITS["max_part_size"])
    async with AsyncExitStack() as opened:
        try:
            form = await opened.enter_async_context(read)
        except OSError as error:
            raise body_not_kept(error) from error
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise form_error("image", "Field required: a file")
        with _validation():
            fields = PhotoProbe.model_validate(
                {name: value for name, value in form.items() if isinstance(value, str) and value != ""}
            )
        yield fields, image


@contextmanager
def _validation() -> Iterator[None]:
    """Raise what FastAPI's own validation of a body would raise."""
    try:
        yield
    except ValidationError as error:
        raise RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_input=False, include_context=False)]
        ) from error


@router.post(
    "/identify",
    dependencies=[needs(Scope.IDENTIFY)],
    summary="Name the faces of a photo, or answer unknown",
    openapi_extra=_BODY,
    response_model=IdentifyAnswer,
    responses=error_responses(
        GalleryNotFound,
        ExtractorMismatch,
        UnsupportedImage,
        ImageTooLarge,
        IndexEngineUnusable,
        StorageUnwritable,
        ModelFileError,
        http=(415,),
    ),
)
async def identify(
    caller: CallerHere,
    service: Service,
    settings: ServiceSettings,
    probe: Annotated[EmbeddingProbe | tuple[PhotoProbe, UploadFile], Depends(_probe)],
) -> Response:
    """Compare every face of a photo with the gallery.

    For each face: box, landmarks, detection score, quality, `identity` (null: unknown) and the candidates within the
    threshold, one a subject. A photo without a face has an empty list. A caller that embeds on its own sends
    `{"embedding": […]}` as JSON.

    ```
    curl -F image=@somebody.jpg http://127.0.0.1:8000/identify
    ```
    """
    asked = probe if isinstance(probe, EmbeddingProbe) else probe[0]
    caller.require_gallery(asked.gallery)
    require_scores(caller, threshold=asked.threshold, all_candidates=asked.all_candidates)
    if isinstance(probe, EmbeddingProbe):
        return await run_in_threadpool(_identify_embedding, service, caller, probe)
    return await in_photo_thread(_identify_photo, service, settings, caller, *probe)


def _identify_embedding(service: GalleryService, caller: Caller, probe: EmbeddingProbe) -> Response:
    found = service.identify_embedding(
        probe.gallery,
        probe.embedding,
        threshold=probe.threshold,
        top_k=probe.top_k,
        all_candidates=probe.all_candidates,
    )
    return _answer(found, faces=[], probe=_decision(found.matches[0], caller))


def _identify_photo(
    service: GalleryService, settings: Settings, caller: Caller, fields: PhotoProbe, image: UploadFile
) -> Response:
    found = service.identify(
        fields.gallery,
        read_photo(image, settings),
        threshold=fields.threshold,
        top_k=fields.top_k,
        max_faces=fields.max_faces,
        all_candidates=fields.all_candidates,
    )
    faces = [
        IdentifiedFace(**dict(found_face(face)), **dict(_decision(match, caller)))
        for face, match in zip(found.faces, found.matches, strict=True)
    ]
    return _answer(found, faces=faces, probe=None)


def _decision(match: Match, caller: Caller) -> Decision:
    def shown(candidate: NamedCandidate) -> CandidateBody:
        return CandidateBody.of(candidate, distance=shown_distance(candidate.distance, caller))

    return Decision(
        identity=None if match.identity is None else shown(match.identity),
        candidates=[shown(candidate) for candidate in match.candidates],
    )


def _answer(found: Identification, *, faces: list[IdentifiedFace], probe: Decision | None) -> Response:
    """The answer as bytes, made in the thread of the search: with many candidates' metadata it may have megabytes."""
    answer = IdentifyAnswer(
        gallery=found.gallery.name,
        extractor=found.gallery.extractor,
        subjects=found.subjects,
        threshold=found.threshold,
        faces=faces,
        probe=probe,
    )
    return Response(answer.model_dump_json(), media_type="application/json")
