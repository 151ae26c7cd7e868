"""Errors as RFC 9457 problem documents, in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.access import errors as access
from app.api.methods import allowed_methods
from app.gallery import errors as gallery
from app.gallery.errors import PhotosRefused
from app.gallery.sql.failures import in_full
from model import errors as model
from model.errors import FacegalleryError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "/problems/"
LOGGED = "facegallery.problem"  # where the scope of a request has what the log says of the problem
_RETRY_SECONDS = 2
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One type of problem: its HTTP status, a title, and what a caller can do."""

    slug: str
    status: int
    title: str
    advice: str
    retry: bool = False


_TYPES: Mapping[type[FacegalleryError], ProblemType] = {
    error: ProblemType(error.slug, status, title, advice, retry=status == 503)
    for error, status, title, advice in (
        (gallery.InvalidInput, 422, "Invalid input", "Correct the parts that `errors` names."),
        (
            gallery.GalleryNotFound,
            404,
            "No such gallery",
            "Enroll somebody into it, or create it with POST /galleries.",
        ),
        (gallery.GalleryExists, 409, "Gallery exists", "Use the gallery that is there, or choose another name."),
        (gallery.SubjectNotFound, 404, "No such subject", "List the subjects with GET /galleries/{gallery}/subjects."),
        (gallery.SubjectExists, 409, "Subject exists", "Choose another key."),
        (gallery.TemplateNotFound, 404, "No such template", "List them with GET /galleries/{gallery}/templates."),
        (
            gallery.ExtractorMismatch,
            409,
            "Gallery of another extractor",
            "Run the service with the gallery's extractor, or move the gallery with `facegallery reembed`.",
        ),
        (gallery.PhotosRefused, 422, "No photo could be used", "See `refused` for the reason of each photo."),
        (model.UnsupportedImage, 422, "Not a readable image", "Send a JPEG, PNG, WebP, BMP or GIF file."),
        (
            model.ImageTooLarge,
            413,
            "Image too large",
            "Send a smaller photo; faces need no more than a few hundred pixels.",
        ),
        (model.NoFace, 422, "No face found", "Send a photo that shows one face clearly."),
        (model.SeveralFaces, 422, "Several faces found", "Send a photo of one person, or ask for face=largest."),
        (model.LowQuality, 422, "Face too poor to enroll", "Do what the sentences in `detail` say."),
        (model.ModelFileError, 500, "Network file damaged", "The operator must restore the weights."),
        (gallery.Busy, 503, "Busy", "Try again after the seconds in Retry-After."),
        (gallery.DatabaseUnavailable, 503, "Database unavailable", "Try again after the seconds in Retry-After."),
        (
            gallery.StorageUnwritable,
            507,
            "Storage cannot be written",
            "The operator must make room or mount it writable.",
        ),
        (gallery.IndexEngineUnusable, 500, "Index engine unusable", "The operator must do what `detail` says."),
        (
            gallery.TimedOut,
            503,
            "Took too long",
            "Send fewer or smaller photos, or try again after the seconds in Retry-After.",
        ),
        (access.Unauthorized, 401, "No valid key", "Send `Authorization: Bearer` and a key from the operator."),
        (
            access.Forbidden,
            403,
            "Not for this caller",
            "Ask the operator for a key with the scope that `detail` names.",
        ),
        (
            access.KeyInAddress,
            400,
            "Key in the address",
            "Have the operator revoke it, and send keys as `Authorization: Bearer` only.",
        ),
        (access.TooManyCalls, 429, "Too many calls", "Try again after the seconds in Retry-After."),
        (access.AuditBroken, 500, "Audit log damaged", "The operator must run `facegallery audit verify`."),
        (gallery.MasterKeyMissing, 503, "Master key missing", "The operator must give the vault's master key."),
        (gallery.ClockDoubtful, 503, "Clock doubtful", "The operator must look at the clocks; nothing was erased."),
        (gallery.KeyUnavailable, 503, "Key unavailable", "The operator must restore the vault from its backup."),
        (gallery.TemplateTampered, 500, "Template tampered with", "Erase the template and enroll the photo again."),
        (gallery.FileTampered, 500, "Sealed file damaged", "The operator must remove it; it is made again."),
        (gallery.ConsentRequired, 422, "Consent required", "Send a `consent` that has not expired."),
        (gallery.ReceiptInvalid, 422, "Receipt invalid", "Take the receipt as it was answered, and the right key."),
        (gallery.SchemaOutdated, 503, "Tables outdated", "The operator must run `facegallery migrate`."),
    )
}
_REQUEST_TOO_LARGE = ProblemType("request-too-large", 413, "Request too large", "Send fewer or smaller photos.")
_BODY_TOO_SLOW = ProblemType("body-too-slow", 408, "Body too slow", "Send it faster, or a smaller one.")
_NOT_READY = ProblemType("not-ready", 503, "Not ready", "Try again after the seconds in Retry-After.", retry=True)
_INTERNAL = ProblemType("internal", 500, "Internal error", "Report the request id; the log has the cause.")
_HTTP = ProblemType("http", 400, "HTTP error", "The status says what is wrong: 400, 404, 405 or 415.")
_OTHERS = (
    _REQUEST_TOO_LARGE,
    _BODY_TOO_SLOW,
    _NOT_READY,
    _INTERNAL,
    _HTTP,
)
PROBLEM_TYPES: Mapping[str, ProblemType] = {kind.slug: kind for kind in (*_TYPES.values(), *_OTHERS)}


class _ProblemAnswer(JSONResponse):
    """A problem document; the log hears of it what `logged` says, never the detail, which may name a person."""

    media_type = MEDIA_TYPE
    logged: Mapping[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        scope[LOGGED] = self.logged
        await super().__call__(scope, receive, send)


def problem(
    slug: str,
    detail: str,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    reason: str | None = None,
    **extensions: Any,
) -> JSONResponse:
    """A problem document as an answer.

    Args:
        slug: key of `PROBLEM_TYPES`.
        detail: a sentence that says what was wrong and what to do.
        status: HTTP status, where it is not the type's.
        headers: further headers.
        reason: what the log says besides, for who runs the service.
        extensions: further members of the document; those that are None are left out.
    """
    kind = PROBLEM_TYPES[slug]
    status = status or kind.status
    body = _document(kind, status, detail) | {name: value for name, value in extensions.items() if value is not None}
    retry = {"Retry-After": str(_RETRY_SECONDS)} if kind.retry else {}
    answer = _ProblemAnswer(body, status, headers={**retry, **(headers or {})})
    answer.logged = {"problem": slug} | ({} if reason is None else {"reason": reason})
    return answer


def _document(kind: ProblemType, status: int, detail: str) -> dict[str, Any]:
    return {"type": TYPE_PREFIX + kind.slug, "title": kind.title, "status": status, "detail": detail}


def request_too_large(limit: int) -> JSONResponse:
    """The answer to a body over the limit in bytes."""
    return problem(
        _REQUEST_TOO_LARGE.slug,
        f"a request has at most {limit} bytes; send fewer or smaller photos",
        headers={"Connection": "close"},  # else the server reads on, to the end of a body that may have none
    )


def body_too_slow(seconds: float) -> JSONResponse:
    """The answer to a body that comes too slowly; `seconds` is how late it may be."""
    detail = f"the body is more than {seconds:g} s late; send it faster, or a smaller one"
    return problem(_BODY_TOO_SLOW.slug, detail, headers={"Connection": "close"})


def too_much_at_once() -> JSONResponse:
    """The answer to a body for which there is no room beside those of other requests."""
    return problem(
        gallery.Busy.slug, "too many bytes are being sent at this moment; try again", headers={"Connection": "close"}
    )


def body_not_kept(error: OSError) -> gallery.StorageUnwritable:
    """The error where a photo of the body could not be put into the folder for temporary files."""
    _log.error("body.not_kept", reason=str(error))
    return gallery.StorageUnwritable("the folder for temporary files cannot be written; nothing was stored")


def internal() -> JSONResponse:
    """The answer to a failure that is no caller's fault."""
    return problem(_INTERNAL.slug, "something went wrong here; the request id leads to the cause in the log")


def error_responses(
    *errors: type[FacegalleryError], refused: Sequence[type[FacegalleryError]] = (), http: Sequence[int] = ()
) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of a route's errors: those given, and those that every route may meet.

    Args:
        errors: what the route raises.
        refused: why the photos of an enrolment are refused; the whole answer has one status then, whatever the type's.
        http: further statuses of the type `http` that it answers with.
    """
    general = (
        gallery.InvalidInput,
        gallery.Busy,
        gallery.DatabaseUnavailable,
        gallery.TimedOut,
        access.Unauthorized,
        access.Forbidden,
        access.KeyInAddress,
        access.TooManyCalls,
        access.AuditBroken,
    )
    known = (_TYPES[error] for error in (*errors, *general))
    reasons = (replace(_TYPES[error], status=_TYPES[PhotosRefused].status) for error in refused)
    others = (replace(_HTTP, status=status) for status in http)
    return _describe(*known, *reasons, _REQUEST_TOO_LARGE, _BODY_TOO_SLOW, _INTERNAL, _HTTP, *others)


def not_ready_response() -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of a service that is not ready."""
    return _describe(_NOT_READY)


def _describe(*kinds: ProblemType) -> dict[int | str, dict[str, Any]]:
    """Types of problems as OpenAPI's responses, by status."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kinds):
        entry = by_status.setdefault(
            kind.status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        entry["description"] = "; ".join(filter(None, [entry["description"], f"`{kind.slug}`: {kind.title.lower()}"]))
        entry["content"][MEDIA_TYPE]["examples"][kind.slug] = {"value": _document(kind, kind.status, kind.advice)}
    return by_status


def known(error: FacegalleryError) -> JSONResponse:
    """The answer to an error of the tree."""
    if isinstance(error, PhotosRefused):
        refused = [{"photo": one.photo, "reason": one.slug, "detail": one.detail} for one in error.refused]
        status = _TYPES[PhotosRefused].status
        return problem(error.reason, str(error), status=status, part=error.part, refused=refused)
    errors = [{"part": error.part, "message": str(error)}] if isinstance(error, gallery.InvalidInput) else None
    headers: dict[str, str] = {}
    if isinstance(error, access.Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="facegallery"' + (', error="invalid_token"' if error.given else "")
    if isinstance(error, access.TooManyCalls):
        headers["Retry-After"] = str(error.retry_after)
    kind = _TYPES[type(error)]
    reason = in_full(error) if kind.status >= 500 else None  # others may name a person
    return problem(kind.slug, str(error), part=error.part, errors=errors, headers=headers, reason=reason)


def install(app: FastAPI) -> None:
    """Have every error of the application answered with a problem document."""

    @app.exception_handler(FacegalleryError)
    async def _known(_request: Request, error: FacegalleryError) -> JSONResponse:
        return known(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        # The input itself is not echoed: it may be a photo, or a number that JSON cannot hold.
        errors = [
            {
                "part": ".".join(str(step) for step in one["loc"][1:]) or str(one["loc"][0]),
                "message": one["msg"].removeprefix("Value error, "),
            }
            for one in error.errors()
        ]
        detail = "; ".join(f"{one['part']}: {one['message']}" for one in errors)
        return problem(gallery.InvalidInput.slug, detail, errors=errors)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, ClientDisconnect):  # nobody is there any more to be told what was wrong
            raise error.__cause__
        if isinstance(error.__cause__, OSError):  # FastAPI takes it for the body's fault
            return known(body_not_kept(error.__cause__))
        # FastAPI answers 400 where a body breaks Python's JSON reader otherwise than by its syntax.
        if isinstance(error.__cause__, RecursionError | UnicodeDecodeError):
            message = "JSON is nested too deep" if isinstance(error.__cause__, RecursionError) else "JSON is not UTF-8"
            return problem(gallery.InvalidInput.slug, message, errors=[{"part": "body", "message": message}])
        # The framework names the methods of one route of several that an address has.
        headers = {"Allow": allowed_methods(request)} if error.status_code == 405 else error.headers
        return problem("http", str(error.detail), status=error.status_code, headers=headers)
