import subprocess
from pathlib import Path

import pytest


@pytest.mark.timeout(1200)
def test_docker_compose_up_enrolls_identifies_and_keeps_the_gallery() -> None:
    done = subprocess.run(["bash", Path(__file__).parent / "run.sh"], check=False, capture_output=True, text=True)
    if done.stdout.startswith("skipped"):
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
