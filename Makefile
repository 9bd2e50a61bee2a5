# Every target sets up .venv by itself, once; it is set up again when the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROMPT ?= a cyan rocket with a red nose

.PHONY: demo test test-all lint graph docs bench clean-venv

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/dreamkiln text-to-3d "$(PROMPT)" --out runs/demo-mesh
	$(BIN)/dreamkiln images "$(PROMPT)" --num-images 16 --out runs/demo-images

test: $(READY) lint
	.ci/postgresql
	.ci/suite -m "not slow"

# Minutes more: kills of replicas, workers and the orchestrator on a real Ray, and the benchmarks' own tests.
test-all: $(READY) lint
	.ci/postgresql
	.ci/suite

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The rooms of orchestrator/ and which of them import which.
graph: $(READY)
	$(BIN)/python -m tests.rooms

# outputs/site/index.html; a link or a docstring that leads nowhere fails it.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)
	$(BIN)/python -m benchmarks.run

clean-venv:
	rm -rf $(VENV)
