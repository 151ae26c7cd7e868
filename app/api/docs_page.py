"""GET /docs: the OpenAPI document as a page that loads nothing from elsewhere."""

from pathlib import Path
from typing import Literal

import fastapi_offline
from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

OPENAPI = "/openapi.json"
PAGE = "/docs"
_FILES = Path(fastapi_offline.__file__).parent / "static"

router = APIRouter(include_in_schema=False)


@router.get(PAGE)
async def page(request: Request) -> HTMLResponse:
    """The page; where a proxy serves under a path of its own, that stands in front of each address."""
    root = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=root + OPENAPI,
        title="Facegallery",
        swagger_js_url=f"{root}{PAGE}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{PAGE}/swagger-ui.css",
        swagger_favicon_url=f"{root}{PAGE}/favicon.png",
    )


@router.get(PAGE + "/{file}")
async def file_of_page(file: Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"]) -> FileResponse:
    """One of the page's files."""
    return FileResponse(_FILES / file)
