"""`facemodel digits`: what center loss does, shown on handwritten digits."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from model.commands.options import console, progress_bar
from model.errors import FacegalleryError

if TYPE_CHECKING:
    from model.training.digits_table import Line

_PLANE = {"loss": "loss", "λ": "weight", "accuracy %": "accuracy", "to own": "own_mean", "between": "between"}
_OPEN = {"features": "features", "loss": "loss", "λ": "weight", "accuracy %": "accuracy"}
_ERRORS = {"EER % raw": "error_raw", "normalised": "error_normalised"}


def digits_command(
    data: Annotated[Path, typer.Option(help="Folder with MNIST/raw; MNIST is downloaded into it if absent.")],
    output: Annotated[Path, typer.Option(help="Folder for figures and tables.")] = Path("runs/digits"),
    seed: Annotated[int, typer.Option(help="The first seed; the same one gives the same table.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the plane's trainings.")] = 10,
    open_epochs: Annotated[int, typer.Option(min=1, help="Epochs of the trainings without 8 and 9.")] = 4,
    open_seeds: Annotated[int, typer.Option(min=1, help="Seeds of each training without 8 and 9.")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Trainings at the same time, a thread each; 0: all cores.")] = 0,
    limit: Annotated[int | None, typer.Option(min=500, help="Only the first digits, for a quick look.")] = None,
) -> None:
    """Train small networks on MNIST with softmax, alone and with center loss, and show what their features do.

    Ten digits with two features each, over both forms of center loss and λ: figures of the plane, an animation, a
    table. Then digits 0 to 7 alone, and how well the features tell apart 8 and 9, which were never learned.
    """
    try:
        from model.training.digits_data import load_digits  # torchvision, which only training needs
        from model.training.digits_figures import write_figures
        from model.training.digits_study import Extent, measure, open_settings, plane_settings, train_all
        from model.training.digits_table import as_csv, as_markdown, lines
    except ModuleNotFoundError as error:
        raise FacegalleryError(f"the study on digits needs {error.name}: install facegallery[train]") from error
    output.mkdir(parents=True, exist_ok=True)
    table, text = output / "digits.csv", output / "digits.md"
    table.touch()  # before minutes of training, not after them
    digits = load_digits(data, limit)
    extent = Extent(seed, epochs, open_epochs, open_seeds)
    plane, unseen = plane_settings(extent), open_settings(extent)
    with progress_bar("steps") as progress:
        task = progress.add_task(
            f"{len(plane) + len(unseen)} trainings", total=sum(setting.steps(digits) for setting in plane + unseen)
        )
        trained = train_all(
            digits,
            plane + unseen,
            workers=workers or os.cpu_count() or 1,
            report=lambda steps: progress.update(task, completed=steps),
        )
    with console.status("measuring and drawing"):
        rows = [measure(each, digits.test_labels) for each in trained]
        in_plane, open_set = rows[: len(plane)], rows[len(plane) :]
        table.write_text(as_csv(rows), encoding="utf-8")
        text.write_text(as_markdown(in_plane, open_set), encoding="utf-8")
        figures = write_figures(output, dict(zip(in_plane, trained, strict=False)), digits.test_labels)
    results = Console()
    results.print(_table("Ten digits in the plane", _PLANE | {"ratio": "ratio"}, lines(in_plane)))
    results.print(_table("8 and 9, not learned", _OPEN | _ERRORS, lines(open_set)))
    console.print(f"written: {', '.join(map(str, (table, text, *figures)))}", soft_wrap=True)


def _table(title: str, columns: Mapping[str, str], rows: "Sequence[Line]") -> Table:
    shown = Table(title=title, box=box.SIMPLE)
    for head in columns:
        shown.add_column(head, justify="left" if head == "loss" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(getattr(row, name) for name in columns.values()))
    return shown
