# Two commands do all the set-up: `make demo` and `make test`. Both need Python 3.11+ (with venv) and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PYTEST_ARGS ?= --numprocesses auto --dist loadfile

.PHONY: help demo test lint types unit bench docs clean

help: ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# Stamps say that an installation is up to date with pyproject.toml.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed ## Run the whole system on loopback, with accounts to try
	$(BIN)/sidecar demo $(DEMO_ARGS)

test: lint types unit ## Everything that has to hold

lint: $(VENV)/.installed-test ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test ## mypy --strict
	$(BIN)/mypy

unit: $(VENV)/.installed-test ## The tests
	$(BIN)/pytest $(PYTEST_ARGS)

bench: $(VENV)/.installed-test ## Requests/s, latency and CPU per request beside a plain pass-through
	$(BIN)/python -m loadtests.bench

docs: $(VENV)/.installed ## Write docs/configuration.md anew
	$(BIN)/python -m sidecar.config.reference > docs/configuration.md

clean: ## Remove what was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
