"""What operators see: Prometheus metrics and structured logs."""

import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

STAGE_SECONDS = Histogram(
    "facegallery_stage_seconds", "Time of one step on the way of a photo.", ["stage"], buckets=_SECONDS
)
REQUEST_SECONDS = Histogram(
    "facegallery_request_seconds", "Time of one HTTP request.", ["method", "route", "status"], buckets=_SECONDS
)
QUEUE_SECONDS = Histogram("facegallery_queue_seconds", "Time that a photo waited for a free worker.", buckets=_SECONDS)
FACES_TOTAL = Counter("facegallery_faces_total", "Faces found in photos.")
DECISIONS_TOTAL = Counter("facegallery_decisions_total", "Probes identified and probes answered unknown.", ["decision"])
TEMPLATES_ADDED_TOTAL = Counter("facegallery_templates_added_total", "Templates stored by this process.")
PHOTOS_REFUSED_TOTAL = Counter("facegallery_photos_refused_total", "Photos refused at enrolment.", ["reason"])
DAMAGED_TEMPLATES_TOTAL = Counter(
    "facegallery_damaged_templates_total", "Stored templates that did not open, each time they were read.", ["reason"]
)
INDEXED_TEMPLATES = Gauge(
    "facegallery_indexed_templates", "Templates in the indexes of a process.", multiprocess_mode="livemax"
)


def exposition() -> bytes:
    """All metrics in Prometheus' text format, added up over the processes where there are several."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Measure one step on the way of a photo."""
    start = time.perf_counter()
    try:
        yield
    finally:
        STAGE_SECONDS.labels(name).observe(time.perf_counter() - start)


class _StandardError(io.TextIOBase):
    """Standard error as it is when a line is written, which may be another one than when logging was set up.

    A line that cannot be written, as on a full disk, is lost: who logs it is to go on.
    """

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


class _Once:
    """Drops an event that was logged before with the same values."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, _logger: object, name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        said = repr((name, sorted(event.items())))
        if said in self._seen:
            raise structlog.DropEvent
        self._seen.add(said)
        return event


def set_up_logging(*, form: str, level: str, repeats: bool = True) -> None:
    """Log structured events to standard error, as lines for people or as JSON.

    Args:
        form: `console` or `json`.
        level: least level that is logged.
        repeats: an event may come again; else it is logged once, however often its cause is met: for commands, which
            end and are read as a whole.
    """
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        # Its own tracebacks show the values of local variables: photos, embeddings, keys.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if form == "json" else structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*([] if repeats else [_Once()]), *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _StandardError())),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(_StandardError())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
