"""What the OpenAPI document says beyond the routes: what holds for all of them, and names for generated clients."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.schemas.problems import Problem

DESCRIPTION = """
Photos are sent as `multipart/form-data`, everything else as JSON in UTF-8. Where calls need a key, it goes into
`Authorization: Bearer fg_…`, with the scopes that stand beside the call.

- A **distance** is Euclidean between embeddings of length 1, from 0 to 2; smaller is more alike.
- **Boxes and landmarks** are in pixels of the upright photo, from its upper left corner; they may lie beyond its edge.
- **Moments** are RFC 3339 with a zone, and answered in UTC.
- **Pages**: ask again with `cursor` = `next_cursor` until that is null.
- **Errors** are RFC 9457 documents, `application/problem+json`; their `type` is stable, and `GET /problems/{slug}`
  explains it. What has a `Retry-After` may be sent again after so many seconds.
- Names of galleries and keys of subjects are Unicode (NFC), 1 to 200 characters, without control characters; they are
  percent-encoded in addresses.
"""
TAGS = [
    {"name": "recognition", "description": "Enroll people, name them, compare photos."},
    {"name": "steps", "description": "The first steps of recognition alone; nothing is searched or stored."},
    {"name": "galleries", "description": "Sets of people that a photo is searched in."},
    {"name": "people", "description": "Who is in a gallery."},
    {"name": "operations", "description": "For those who run the service."},
]
_EVERYWHERE = {
    "X-Request-ID": "names this request in the log; the caller's own, if it sent one of 1 to 64 of `A-Z a-z 0-9 . _ -`",
    "Facegallery-Extractor": "identity of the extractor that runs, name and digest",
}
_WITH = {
    "401": {"WWW-Authenticate": "the scheme `Bearer`"},
    "429": {"Retry-After": "seconds to wait"},
    "503": {"Retry-After": "seconds to wait, where trying again may help"},
}


def operation_id(route: APIRoute) -> str:
    """The name of a route's function, which generated clients call their method by."""
    return route.name


def describe(app: FastAPI) -> None:
    """Have the document name the problem document, the headers of answers, and which fields are files."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = generate()
        components = document.setdefault("components", {}).setdefault("schemas", {})
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(schema.pop("$defs", {}))
        schema["properties"] = {name: _without_null(field) for name, field in schema["properties"].items()}
        components["Problem"] = schema
        for operation in _operations(document):
            for status, response in operation["responses"].items():
                named = _EVERYWHERE | _WITH.get(status, {})
                response["headers"] = {
                    name: {"description": text, "schema": {"type": "string"}} for name, text in named.items()
                }
        for form in _forms(document):
            form["properties"] = {name: _without_null(field) for name, field in form["properties"].items()}
        for file in _files(document):
            file["format"] = "binary"  # what generators look for, whatever OpenAPI 3.1 says
        components.pop("HTTPValidationError", None)
        components.pop("ValidationError", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (operation for path in document["paths"].values() for operation in path.values())


def _forms(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas of multipart forms."""
    components = document["components"]["schemas"]
    for operation in _operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        if "multipart/form-data" in content:
            schema = content["multipart/form-data"]["schema"]
            yield components[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A field that may be left out but is never null: a form has no null, and clients made from it write None there."""
    kinds = field.get("anyOf", [])
    if {"type": "null"} not in kinds:
        return field
    kind: dict[str, Any]
    (kind,) = (one for one in kinds if one != {"type": "null"})
    return kind | {name: value for name, value in field.items() if name not in {"anyOf", "default"}}


def _files(part: object) -> Iterator[dict[str, Any]]:
    """The schemas of files within a part of the document."""
    if isinstance(part, dict):
        if "contentMediaType" in part:
            yield part
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from _files(value)
