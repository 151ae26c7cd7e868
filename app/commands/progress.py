"""How far a long command is: a bar for people, a line now and then for logs."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from app.commands.options import complain, errors
from app.gallery.records import TemplateBlock

_EVERY_SECONDS = 15.0


class Advance(Protocol):
    """Told how many have been done since it was told last, and how many of them cost nothing."""

    def __call__(self, count: int, passed_over: int = 0, /) -> None:
        """So many more were done."""


class Pace:
    """Rate and time left, of what is worked on alone: what is passed over goes by in no time.

    Args:
        total: how many there are.
        clock: seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._last = clock()
        self._done = self._worked = 0
        self._seconds = 0.0

    def advance(self, count: int, passed_over: int) -> None:
        """So many more were done, and so many of them passed over."""
        now = self._clock()
        if count > passed_over:
            self._worked += count - passed_over
            self._seconds += now - self._last
        self._done += count
        self._last = now

    @property
    def left(self) -> int:
        """How many are left."""
        return self._total - self._done

    def __str__(self) -> str:
        """Such as "128 of 1000, 20.0/s, 44 s left"; without a rate as long as there is none."""
        done = f"{self._done} of {self._total}"
        if not self._worked or not self._seconds:
            return done
        rate = self._worked / self._seconds
        return f"{done}, {rate:.1f}/s, {self.left / rate:.0f} s left"


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


@contextmanager
def shown_progress(what: str, total: int) -> Iterator[Advance]:
    """Show count, rate, time and time left on standard error.

    Args:
        what: a word or two, such as "importing".
        total: how many there are.

    Yields:
        A function that is told how many have been done since it was told last.
    """
    if errors.is_terminal:
        bar = Progress(
            TextColumn(what, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=errors,
        )
        with bar:
            task = bar.add_task(what, total=total)

            def advance_bar(count: int, _passed_over: int = 0, /) -> None:
                bar.advance(task, count)

            yield advance_bar
        return
    pace, told = Pace(total), time.monotonic()

    def advance(count: int, passed_over: int = 0, /) -> None:
        nonlocal told
        pace.advance(count, passed_over)
        now = time.monotonic()
        if pace.left > 0 and now - told >= _EVERY_SECONDS:
            told = now
            complain(f"{what}: {pace}", style="dim")

    yield advance


def shown_blocks(what: str, blocks: Iterable[TemplateBlock], total: int) -> Iterator[TemplateBlock]:
    """Templates in blocks, with `shown_progress` of how many were worked on."""
    with shown_progress(what, total) as advance:
        for block in blocks:
            yield block
            advance(len(block.ids))
