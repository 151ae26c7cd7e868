"""Calls that schemathesis makes up from the OpenAPI document: no failure of the service, and answers as described.

`FACEGALLERY_FUZZ_CALLS` is the number of calls an operation; `make fuzz` sets it to 30, over a thousand in all.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.errors import SerializationNotPossible
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
)

from app.access.keys import ALL_SCOPES
from app.settings import Settings
from tests.http.conftest import running

CALLS = int(os.environ.get("FACEGALLERY_FUZZ_CALLS", "4"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    ignored_auth,
]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory, astronaut_jpeg: bytes) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    service_settings = Settings(
        data_dir=folder, authentication="keys", rate_limit=0, log_level="error", workers=2, _env_file=None
    )
    with running(service_settings) as client:
        key = client.app.state.gate.keys.create("fuzz", ALL_SCOPES)[1]  # type: ignore[attr-defined]
        headers = {"Authorization": f"Bearer {key}"}
        data = {"subject": "ada"}
        client.post("/enroll", data=data, files={"images": astronaut_jpeg}, headers=headers).raise_for_status()
        yield schemathesis.openapi.from_asgi("/openapi.json", client.app, headers=headers)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as described", "wrong"])
def test_calls_that_nobody_would_make(schema: Any, mode: GenerationMode) -> None:
    made = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=CALLS, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def call(case: Case[Any]) -> None:
            nonlocal made
            made += 1
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable, SerializationNotPossible):  # a call without parameters cannot be made wrong
            call()
    assert made >= 10 * CALLS
