"""How far a long command is: a bar for people, a line now and then for logs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from app.commands.options import complain, errors

_EVERY_SECONDS = 15.0


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


@contextmanager
def shown_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show count, rate and time left on standard error.

    Args:
        what: a word or two, such as "importing".
        total: how many there are.

    Yields:
        A function that is told how many have been done since it was told last.
    """
    if errors.is_terminal:
        bar = Progress(
            *(f"{what}", BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn()), console=errors
        )
        with bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    start = told = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, told
        done += count
        now = time.monotonic()
        if done < total and now - told >= _EVERY_SECONDS:
            told = now
            rate = done / (now - start)
            complain(f"{what}: {done} of {total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left", style="dim")

    yield advance
