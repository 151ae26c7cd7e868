"""What commands print to standard output in columns."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.commands.options import printable

_UNBOUNDED = 1_000_000  # columns of a page that nothing is wrapped on


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print rows as they are: a subject's key, a gallery's or a file's name is no markup.

    Nothing is cut. In a terminal long cells are wrapped; elsewhere, for `grep` and files, they are not.

    Args:
        columns: their heads.
        rows: a value for each column.
        title: a line above.
    """
    console = Console() if sys.stdout.isatty() else Console(width=_UNBOUNDED)
    table = Table()
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row))
    if title:
        console.print(Text(printable(title)))
    console.print(table)
