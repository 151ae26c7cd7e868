"""What the tests of the package have in common."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def unconfigured_log() -> Iterator[None]:
    """The log goes to standard output, as before a service is made, whatever tests of services ran before."""
    configured = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if configured is not None:
        structlog.configure(**configured)
