"""The documents are true: they list everything there is, and their examples run."""

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import BaseModel
from sqlalchemy import make_url, text
from typer.main import get_command

import app.telemetry
from app.api.problems import PROBLEM_TYPES
from app.api.schemas.enroll import EnrollAnswer
from app.api.schemas.identify import IdentifyAnswer
from app.api.schemas.problems import Problem
from app.cli import cli as facegallery
from app.gallery.sealing.master_keys import MasterKey
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import check_schema
from app.settings import Settings
from model.cli import app as facemodel
from model.training.config import TrainingConfig
from tests.dumping import Operator, console_lines, run_lines
from tests.http.conftest import Server

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = "http://127.0.0.1:8000"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def test_every_setting_is_listed_with_its_default_and_meaning() -> None:
    rows = re.findall(r"^\| `(FACEGALLERY_\w+)` \| (.*?) \| (.*) \|$", page("operations.md"), re.MULTILINE)
    assert rows == [
        (f"FACEGALLERY_{name.upper()}", "" if field.default in {None, ""} else f"`{field.default}`", field.description)
        for name, field in Settings.model_fields.items()
    ]


@pytest.mark.parametrize(("program", "commands"), [("facegallery", facegallery), ("facemodel", facemodel)])
def test_every_command_is_listed(program: str, commands: object) -> None:
    names = getattr(get_command(commands), "commands")  # type: ignore[arg-type]  # noqa: B009
    assert names
    assert [name for name in names if f"`{program} {name}" not in page("operations.md")] == []


def test_every_option_is_told_somewhere() -> None:
    def options(command: Any) -> set[str]:
        below = [options(one) for one in getattr(command, "commands", {}).values()]
        return {name for one in command.params for name in one.opts if name.startswith("--")}.union(*below)

    text = "".join(path.read_text() for path in PAGES)
    told_by_typer = {"--help", "--install-completion", "--show-completion"}
    assert [name for name in sorted(options(get_command(facegallery)) - told_by_typer) if name not in text] == []


def test_every_training_setting_is_listed_with_its_meaning() -> None:
    rows = re.findall(r"^\| `([a-z]+\.\w+)` \| .*? \| (.*) \|$", page("training.md"), re.MULTILINE)
    tables = {name: getattr(field.annotation, "model_fields") for name, field in TrainingConfig.model_fields.items()}  # noqa: B009
    assert rows == [
        (f"{table}.{name}", f.description) for table, fields in tables.items() for name, f in fields.items()
    ]


def test_every_problem_type_is_listed_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (\d+)", page("api.md"), re.MULTILINE))
    assert rows == {slug: str(kind.status) for slug, kind in PROBLEM_TYPES.items()}


def test_every_metric_is_listed() -> None:
    source = Path(app.telemetry.__file__).read_text()
    metrics = set(re.findall(r'"(facegallery_\w+)"', source))
    assert metrics == set(re.findall(r"^\| `(facegallery_\w+)`", page("operations.md"), re.MULTILINE))


def test_every_error_of_the_log_is_listed_and_every_warning_is_told_somewhere() -> None:
    sources = [path.read_text() for path in sorted((ROOT / "app").rglob("*.py"))]

    def told(level: str) -> set[str]:
        return {name for source in sources for name in re.findall(rf"[lL]og\.{level}\(\s*\"([^\"]+)\"", source)}

    errors, warnings, text = told("error"), told("warning"), "".join(path.read_text() for path in PAGES)
    assert len(warnings) > 20
    assert [name for name in sorted(warnings) if f"`{name}`" not in text] == []
    rows = "".join(re.findall(r"^(\| `[a-z_]+\.[^|]*)\|", page("running.md"), re.MULTILINE))
    listed = set(re.findall(r"`([a-z_.]+)`", rows))
    assert errors - listed == set()
    assert [name for name in listed if not any(f'"{name}"' in source for source in sources)] == []


def test_every_route_is_listed(server: httpx.Client) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    listed = re.findall(r"^\| `([A-Z]+ /\S*)`", page("api.md"), re.MULTILINE)
    assert routes == set(listed)


def test_answers_are_shown_as_they_are() -> None:
    shown = [json.loads(block) for block in blocks(ROOT / "docs" / "api.md", "json")]
    shapes: tuple[type[BaseModel], ...] = (EnrollAnswer, IdentifyAnswer, Problem)
    assert [
        shape.model_validate(answer).model_dump(mode="json", exclude_none=shape is Problem)
        for shape, answer in zip(shapes, shown, strict=True)
    ] == shown


def test_every_module_that_is_named_to_contributors_is_there() -> None:
    rows = re.findall(r"^  \| [a-zSQL].*? \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    for folder, row in re.findall(
        r"^  \| `([a-z]+/)` \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    ):
        named |= {name if "/" in name else folder + name for name in re.findall(r"`([a-z_/]+)`", row)}
    assert {"enrolling", "views/replica", "sql/subjects"} <= named
    assert [name for name in sorted(named) if not (ROOT / "app" / "gallery" / f"{name}.py").exists()] == []


def test_links_lead_somewhere() -> None:
    targets = [
        (path.name, target.split("#")[0])
        for path in PAGES
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text())
        if "://" not in target and target.split("#")[0]
    ]
    folders = {path.name: path.parent for path in PAGES}
    assert [(name, target) for name, target in targets if not (folders[name] / target).exists()] == []


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_to_headings_lead_to_one() -> None:
    targets = [
        (path, target, heading)
        for path in PAGES
        for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text())
    ]
    assert len(targets) > 10
    assert [
        (path.name, target, heading)
        for path, target, heading in targets
        if heading not in headings(path.parent / target if target else path)
    ] == []


def test_messages_name_headings_that_are_there() -> None:
    sources = [path.read_text() for path in sorted((ROOT / "app").rglob("*.py"))]
    named = {found for source in sources for found in re.findall(r"docs/(\w+\.md)#([\w-]+)", source)}
    assert ("operations.md", "without-a-copy") in named
    assert [one for one in named if one[1] not in headings(ROOT / "docs" / one[0])] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    server = Server(tmp_path_factory.mktemp("gallery"))
    yield server.client
    server.stop()


@pytest.fixture
def photos(tmp_path: Path, astronaut_jpeg: bytes) -> Path:
    for name in ("ada-1.jpg", "ada-2.jpg", "somebody.jpg"):
        (tmp_path / name).write_bytes(astronaut_jpeg)
    return tmp_path


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "quickstart.md"], ids=lambda path: path.name)
def test_shell_examples_run(path: Path, server: httpx.Client, photos: Path) -> None:
    commands = [line for block in blocks(path, "sh") for line in block.splitlines() if line.startswith("curl")]
    assert len(commands) >= 2
    for command in commands:
        command = command.replace(ADDRESS, str(server.base_url).rstrip("/"))
        subprocess.run(
            ["bash", "-c", command.replace("curl", "curl --silent --show-error --fail", 1)], cwd=photos, check=True
        )


def test_python_examples_run(server: httpx.Client, photos: Path) -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    code = block.replace(ADDRESS, str(server.base_url).rstrip("/"))
    done = subprocess.run([sys.executable, "-c", code], cwd=photos, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("ada ")


def test_a_dump_from_before_an_upgrade_is_restored_as_it_is_said(postgresql_server: str, tmp_path: Path) -> None:
    operator = Operator(postgresql_server, tmp_path)
    operator.run("facegallery migrate 0006")
    operator.dump()
    operator.run("facegallery migrate")
    with psycopg.connect(operator.address) as connection:  # as pgvector's index has it
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE SCHEMA facegallery_index")
        connection.execute("CREATE TABLE facegallery_index.later (embedding vector(3))")
    operator.restore()
    engine = open_engine(operator.address, timeout=30)
    check_schema(engine)
    engine.dispose()


PROGRAM = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.mark.parametrize("lost", ["vault.db", "master.key"])
def test_a_gallery_without_a_copy_of_vault_or_key_is_begun_anew_as_it_is_said(
    lost: str, tmp_path: Path, astronaut_jpeg: bytes
) -> None:
    (tmp_path / "people" / "ada").mkdir(parents=True)
    (tmp_path / "people" / "ada" / "1.jpg").write_bytes(astronaut_jpeg)
    environment = os.environ | {"PATH": PROGRAM, "FACEGALLERY_DATA_DIR": "data"}
    run_lines(tmp_path, environment, "facegallery migrate", "facegallery import people/")
    for path in (tmp_path / "data").glob(f"{lost}*"):
        path.unlink()
    run_lines(tmp_path, environment, "! facegallery forget ada")
    (query,) = re.findall(r"`(SELECT .*?)`", page("operations.md"))
    engine = open_engine(f"sqlite:///{(tmp_path / 'data' / 'facegallery.db').as_posix()}", timeout=30)
    with engine.connect() as connection:
        assert [tuple(row)[:2] for row in connection.execute(text(query))] == [("default", "ada")]
    engine.dispose()
    run_lines(tmp_path, environment, *console_lines("operations.md", "facegallery audit export"))
    assert '"enroll"' in (tmp_path / "audit.jsonl").read_text()
    run_lines(tmp_path, environment, "facegallery identify people/ada/1.jpg | grep ada", "facegallery forget ada")


def test_machines_share_databases_and_change_the_master_key_as_it_is_said(
    postgresql_server: str, tmp_path: Path, astronaut_jpeg: bytes
) -> None:
    operator = Operator(postgresql_server, tmp_path)
    operator.run("dropdb facegallery", "dropdb --if-exists facegallery_vault", "dropuser --if-exists facegallery")
    operator.run(*(line.replace(" --pwprompt", "") for line in console_lines("running.md", "createuser")))
    (tmp_path / "people" / "ada").mkdir(parents=True)
    (tmp_path / "people" / "ada" / "1.jpg").write_bytes(astronaut_jpeg)
    old, new, pepper = MasterKey.make().written, MasterKey.make().written, secrets.token_hex(32)
    host = str(make_url(postgresql_server).query["host"])
    (shared,) = blocks(ROOT / "docs" / "running.md", "sh")

    def on(machine: str, key: str, *lines: str) -> None:
        values = shared.replace(":PASSWORD@HOST/", "@/").replace("=KEY\n", f"={key}\n").replace("=PEPPER", f"={pepper}")
        settings = dict(line.split("=", 1) for line in values.splitlines())
        for name in ("FACEGALLERY_DATABASE_URL", "FACEGALLERY_VAULT_URL"):
            settings[name] += f"?host={host}"
        run_lines(tmp_path, operator.environment | settings | {"FACEGALLERY_DATA_DIR": str(tmp_path / machine)}, *lines)

    on("a", old, "facegallery migrate", "facegallery import people/")
    on("b", old, "facegallery identify people/ada/1.jpg | grep ada")
    on("a", f"{new} {old}", "facegallery identify people/ada/1.jpg | grep ada", "facegallery master-key rotate")
    on("b", f"{new} {old}", "facegallery import people/")
    on(
        "b",
        new,
        "facegallery audit verify",
        "facegallery identify people/ada/1.jpg | grep ada",
        "facegallery forget ada",
    )
    on("a", old, "! facegallery identify people/ada/1.jpg")
