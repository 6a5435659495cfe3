# Everything runs from .venv, which any target makes from nothing: it needs make and Python 3.11 or newer.
PYTHON ?= python3
PYTEST_ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.docs-installed

# Those that need no data, no weights but the shipped ones and no training of hours.
BENCHMARKS := agreement backends confidence filter foresight gold_posterior latency program_overhead saving \
	widening

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow notebooks lint docs bench train-queens8 clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## solve boards with the pretrained models
	$(BIN)/probgram demo

test: $(INSTALLED) ## the fast tests; PYTEST_ARGS="-k name" chooses
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile $(PYTEST_ARGS)

test-slow: $(INSTALLED) ## the tests that take minutes
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

notebooks: $(INSTALLED) ## execute the notebooks, without changing them
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --nbmake-kernel=python3 notebooks

lint: $(INSTALLED) ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p probgram

docs: $(DOCS_INSTALLED) ## build the documentation into site/, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(INSTALLED) ## the benchmarks of shipped weights, then docs/results.md; benchmarks/README.md has the others
	@set -e; for name in $(BENCHMARKS) "frontiers queens8 pointers" results; do \
		echo "== $$name"; \
		$(BIN)/python -m benchmarks.$$name; \
	done

train-queens8: $(INSTALLED) ## train the eight-queens model from nothing
	$(BIN)/python -m benchmarks.trainings queens8

clean: ## remove what building and testing leave behind; .venv and runs stay
	rm -rf build dist site htmlcov .coverage .coverage.* *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Done again only when what is to be installed changes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "probgram needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
		echo "Name another: make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; }
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,jax]' -c constraints.txt
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[docs]' -c constraints.txt
	@touch $@
