"""`make` where the Python is not what is needed: it says so, and leaves nothing that the next run trips over."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")

OLDER = """#!/bin/sh
# A Python that says it is an older one, and does the rest.
if [ "$1" = -c ]; then exec {python} -c "import sys; sys.version_info = (3, 10, 12); $2"; fi
exec {python} "$@"
"""
WITHOUT_VENV = """#!/bin/sh
# As Debian's without python3-venv: the folder and its Python are there before it fails.
if [ "$2" = venv ]; then mkdir -p "$3/bin"; ln -s {python} "$3/bin/python"; exit 1; fi
exec {python} "$@"
"""


def make(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run `make serve` with a Python that is a script, as far as the folder `.venv`."""
    python, environment = folder / "python", folder / ".venv"
    python.write_text(script.format(python=sys.executable))
    python.chmod(0o755)
    command = ["make", "-C", str(ROOT), "--no-print-directory", "serve", f"PYTHON={python}", f"VENV={environment}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_another_python_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = make(tmp_path, OLDER)
    said = f"Python 3.11 or newer is needed, and {tmp_path}/python is not; name one: make serve PYTHON=python3.11"
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, said)
    assert not (tmp_path / ".venv").exists()


def test_an_environment_that_is_made_by_half_is_removed(tmp_path: Path) -> None:
    assert make(tmp_path, WITHOUT_VENV).returncode == 2
    assert not (tmp_path / ".venv").exists()
