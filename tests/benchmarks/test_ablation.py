import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from model.training.loop import Step, Watch
from model.training.preparation import PreparedFolder
from tests.model.training.conftest import colours as colours

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("ablation")


def test_an_interrupted_run_is_no_row_of_the_table(
    ablation: Any, colours: PreparedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.toml").write_text(
        f"[data]\nfolders = [{str(colours.folder)!r}]\nvalidation_people = 0\ntest_people = 6\n"
        "people_per_batch = 2\nphotos_per_person = 2\nworkers = 0\n[run]\nsteps = 3\n"
    )

    def interrupting(_: object) -> Watch:
        def stepped(step: Step) -> None:
            if step.number == 2:
                os.kill(os.getpid(), signal.SIGINT)

        return Watch(stepped)

    monkeypatch.setattr(ablation, "Watch", interrupting)
    arguments = ["ablation.py", str(tmp_path / "recipe.toml"), "--output", str(tmp_path / "out"), "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", arguments)

    with pytest.raises(SystemExit, match="interrupted at step 2 of none-0-0"):
        ablation.main()

    assert not (tmp_path / "out" / "ablation.csv").exists()
    assert [path.parent.name for path in (tmp_path / "out").glob("*/checkpoint.pt")] == ["none-0-0"]
