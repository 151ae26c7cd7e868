# `make` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# A folder with lfw-sample/ and mnist/ for the tests that need photos or digits; they skip without it.
FACEGALLERY_TEST_DATA ?= $(wildcard ../shared/data)
export FACEGALLERY_TEST_DATA

.DEFAULT_GOAL := help
.PHONY: help setup serve test lint format migrations-check fuzz bench bench-index soak sbom migrate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.serve ## install what serving needs, migrate the database, serve on 127.0.0.1:8000
	@exec $(BIN)/facegallery serve --migrate

test: setup lint migrations-check ## install everything and run every check
	$(BIN)/python -m pytest

setup: $(VENV)/.dev ## install everything: serving, training, development

lint: setup ## format, lint, types, imports, security
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --severity-level medium app model
	@# Told, not failed: an advisory comes without a change of ours, and needs a network that may not be there.
	-@$(BIN)/pip-audit --progress-spinner off --timeout 5 --skip-editable 2>&1 | grep -v "could not be audited" | tail -n 20 || true

sbom: setup ## list every installed package with version and licence (CycloneDX) in build/sbom.json
	@mkdir -p build
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file build/sbom.json

format: setup ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

migrations-check: setup ## the scripts make the tables that the code maps, there and back
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && export FACEGALLERY_DATA_DIR="$$folder" && \
	$(BIN)/alembic upgrade head && $(BIN)/alembic check && $(BIN)/alembic downgrade base && $(BIN)/alembic upgrade head

fuzz: setup ## minutes of made-up calls and 10,000 mutated photos
	FACEGALLERY_FUZZ=10000 FACEGALLERY_FUZZ_CALLS=30 $(BIN)/python -m pytest tests/fuzz -o timeout=3600

bench: setup ## people over HTTP: PHOTOS=folder with a folder of photos for each person
	$(BIN)/python benchmarks/people.py --photos $(or $(PHOTOS),$(error PHOTOS=DIR is needed)) --output runs/people

soak: setup ## kill -9 under load, 200 times on SQLite and 50 on PostgreSQL
	$(BIN)/python -m tests.soak.crashing

bench-index: SIZES ?= 10000,100000,1000000
bench-index: setup ## index kinds beside other engines: SIZES=10000,100000,1000000 OUTPUT=runs/index CORE=number of a core
	$(if $(CORE),taskset -c $(CORE)) $(BIN)/python benchmarks/index.py --sizes $(SIZES) --output $(or $(OUTPUT),runs/index)

migrate: $(VENV)/.serve ## bring the database's tables up to date
	$(BIN)/facegallery migrate

clean: ## remove what make and the checks made; the gallery in data/ stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo 'Python 3.11 or newer is needed, and $(or $(PYTHON),python3) is not; name one: make $(MAKECMDGOALS) PYTHON=python3.11' >&2; \
		exit 1; \
	fi
	@# Half of one, as where Debian lacks python3-venv, would be taken for whole by the next run.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.serve
