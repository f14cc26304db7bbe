# Two commands do all the set-up: `make demo` and `make test`. Both need Python 3.11+ (with venv) and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
REQUIREMENTS_ARGS ?=
PYTEST_ARGS ?= --numprocesses auto --dist loadfile

# Tests start the program hundreds of times, which would compile its sources each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-host test-cluster lint types unit compiled compiled-test compare scaling load docs requirements release clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# Stamps say that an installation is up to date with pyproject.toml.
$(VENV)/.installed: pyproject.toml hatch_build.py sidecar/gateway/http1/_scan.pyx | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml hatch_build.py sidecar/gateway/http1/_scan.pyx | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-compare: pyproject.toml | $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable '.[test,compare]'
	@touch $@

$(VENV)/.installed-load: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[load]'
	@touch $@

demo: $(VENV)/.installed ## Run the whole system on loopback, with accounts to try
	$(BIN)/sidecar demo $(DEMO_ARGS)

test: lint types unit compiled-test ## Everything that has to hold

lint: $(VENV)/.installed-test ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test ## mypy --strict
	$(BIN)/mypy

# Those that kill processes take minutes, and run once, with what users install: in compiled-test.
unit: $(VENV)/.installed-test ## The tests
	$(BIN)/pytest --ignore tests/chaos $(PYTEST_ARGS)

# The wheel as users get it, with the request path compiled: built where nothing else is installed, unpacked, and put
# before the sources by AS_WHEEL.
COMPILED := build/compiled
AS_WHEEL := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(COMPILED):$(CURDIR)
COMPILED_TESTS := tests/conformance tests/integration/proxy tests/integration/ledger_client tests/chaos

$(COMPILED)/.done: $(VENV)/.installed-test $(shell find sidecar lua -name '*.py' -o -name '*.pyx' -o -name '*.lua')
	rm -rf $(COMPILED) build/wheel
	$(PYTHON) -m venv build/venv
	QUOTA_SIDECAR_BUILD_CORE=require build/venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m zipfile -e build/wheel/*.whl $(COMPILED)
	@touch $@

compiled: $(COMPILED)/.done ## Build the wheel with the request path compiled

# One test counts looks in a subclass, which a compiled class does not allow.
compiled-test: $(COMPILED)/.done ## What concerns the request path once more, compiled
	QUOTA_SIDECAR_EXPECT_COMPILED=1 $(AS_WHEEL) $(BIN)/python -m pytest --import-mode=append $(PYTEST_ARGS) \
		--deselect tests/conformance/test_framing.py::test_a_head_that_trickles_in_costs_no_square_of_its_length $(COMPILED_TESTS)

test-host: $(VENV)/.installed-test ## Redirected traffic between hosts of the tests' own (needs root, ip, nft, iptables, curl)
	QUOTA_SIDECAR_HOST_TESTS=1 $(BIN)/pytest -q tests/host

test-cluster: $(VENV)/.installed-test ## The chart in an empty cluster, kubectl's (needs QUOTA_SIDECAR_CLUSTER_IMAGE)
	QUOTA_SIDECAR_CLUSTER_TESTS=1 $(BIN)/pytest -v tests/cluster

compare: $(COMPILED)/.done $(VENV)/.installed-compare ## The gateway beside nginx, nginx + Lua, Envoy and aiohttp (needs wrk and nginx)
	$(AS_WHEEL) $(BIN)/python -m loadtests.compare $(COMPARE_ARGS)

scaling: $(COMPILED)/.done $(VENV)/.installed-compare ## What a request costs as accounts, connections, bodies, … grow (needs wrk)
	$(AS_WHEEL) $(BIN)/python -m loadtests.scaling $(SCALING_ARGS)

# One scenario against `sidecar demo`: make load-herd LOAD_ARGS='--users 50'. The reports go to build/load.
SCENARIOS := steady herd topup valkey-restart openmeter-outage rolling-restart slow-clients big-bodies

load: ## All load-test scenarios in turn, each with its report; fails if one does
	@failed=; for name in $(SCENARIOS); do $(MAKE) --no-print-directory load-$$name || failed="$$failed $$name"; done; \
		test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

load-%: $(VENV)/.installed-load
	$(BIN)/python -m loadtests.scenarios $* --report build/load/$*.html $(LOAD_ARGS)

docs: $(VENV)/.installed ## Write docs/configuration.md anew
	$(BIN)/python -m sidecar.app.configuration_reference > docs/configuration.md

# The versions that are there stay where pyproject.toml still allows them; REQUIREMENTS_ARGS=--upgrade takes the newest.
requirements: | $(BIN)/python ## Lock deploy/requirements.txt anew, with the hashes of every file
	$(BIN)/python -m venv build/venv
	build/venv/bin/python -m pip install --quiet 'uv>=0.5'
	build/venv/bin/uv pip compile --quiet --generate-hashes --python-version 3.11 --python-platform linux \
		--no-emit-index-url --custom-compile-command 'make requirements  (newer versions: REQUIREMENTS_ARGS=--upgrade)' \
		--output-file deploy/requirements.txt $(REQUIREMENTS_ARGS) pyproject.toml

release: | $(BIN)/python ## Build, install and try what a release publishes, into dist (needs git, a C compiler)
	$(BIN)/python -m deploy.release build

clean: ## Remove what was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
