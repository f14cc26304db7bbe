# Two commands do all the set-up: `make demo` and `make test`. Both need Python 3.11+ (with venv) and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
REAL_ARGS ?= --stand-ins
BILLING_SCALE_ARGS ?= --accounts 100000 --days 1 --swept-first 1000 --readings 1000
REQUIREMENTS_ARGS ?=
# One more than there are cores: tests wait more than they compute.
PYTEST_ARGS ?= --numprocesses $(shell expr $$(nproc 2> /dev/null || echo 1) + 1) --dist loadfile

# Tests start the program hundreds of times, which would compile its sources each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test adversary chaos test-host test-cluster test-real lint types unit compiled compiled-test compare scaling hostile billing-scale load docs requirements release clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

comma := ,

# $(call install,WHAT): says what it does, and leaves pip's own progress to a terminal, where somebody waits for it.
define install
	@echo 'Installing $(subst .,quota-sidecar,$(1)) into $(VENV). The first time takes about a minute.'
	@if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; set -x; $(BIN)/python -m pip install $$quiet --editable '$(1)'
endef

$(BIN)/python:
	@echo 'Creating the virtual environment $(VENV).'
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# Stamps say that an installation is up to date with pyproject.toml.
$(VENV)/.installed: pyproject.toml hatch_build.py sidecar/gateway/http1/_scan.pyx | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-test: pyproject.toml hatch_build.py sidecar/gateway/http1/_scan.pyx | $(BIN)/python
	$(call install,.[test])
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-compare: pyproject.toml | $(VENV)/.installed-test
	$(call install,.[test$(comma)compare])
	@touch $@

$(VENV)/.installed-load: pyproject.toml | $(BIN)/python
	$(call install,.[load])
	@touch $@

# Where there is a compiler, the demo has the request path compiled, as an installation from a wheel has it.
HAS_COMPILER := $(shell command -v $${CC:-cc} > /dev/null && \
	$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2> /dev/null && echo yes)

demo: $(VENV)/.installed $(if $(HAS_COMPILER),build/compiled/.done) ## Run the whole system on this machine, with accounts to try
	@echo 'Starting the demo.'
	@exec env $(if $(HAS_COMPILER),$(AS_WHEEL)) $(BIN)/python -m sidecar demo $(DEMO_ARGS)

test: lint types unit compiled-test ## Run lint, types, unit and compiled-test

lint: $(VENV)/.installed-test ## Check style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test ## Check types with mypy --strict
	$(BIN)/mypy

# Those that kill processes take minutes, and run once, with what users install: in compiled-test.
unit: $(VENV)/.installed-test ## Run the tests
	$(BIN)/pytest --ignore tests/chaos $(PYTEST_ARGS)

# The wheel as users get it, with the request path compiled: built where nothing else is installed, unpacked, and put
# before the sources by AS_WHEEL.
COMPILED := build/compiled
AS_WHEEL := PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(COMPILED):$(CURDIR)
COMPILED_TESTS := tests/conformance tests/integration/gateway tests/integration/ledger_client tests/chaos

$(COMPILED)/.done: pyproject.toml hatch_build.py $(shell find sidecar lua -name '*.py' -o -name '*.pyx' -o -name '*.lua')
	@echo 'Compiling the request path. This takes about a minute.'
	@rm -rf $(COMPILED) build/wheel
	@$(PYTHON) -m venv build/venv
	QUOTA_SIDECAR_BUILD_CORE=require build/venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	@$(PYTHON) -m zipfile -e build/wheel/*.whl $(COMPILED)
	@touch $@

compiled: $(COMPILED)/.done ## Build the wheel with the request path compiled

# One test counts looks in a subclass, which a compiled class does not allow.
compiled-test: $(COMPILED)/.done $(VENV)/.installed-test ## Run the tests of the request path once more, compiled
	QUOTA_SIDECAR_EXPECT_COMPILED=1 $(AS_WHEEL) $(BIN)/python -m pytest --import-mode=append $(PYTEST_ARGS) \
		--deselect tests/conformance/test_framing.py::test_a_head_that_trickles_in_costs_no_square_of_its_length $(COMPILED_TESTS)

chaos: $(COMPILED)/.done $(VENV)/.installed-test ## Run 200 rounds of real faults against real processes, and the simulation for long
	$(AS_WHEEL) $(BIN)/python -m tests.chaos.rounds.rounds $(CHAOS_ARGS)
	SCHEDULES=$${SCHEDULES:-10000} DIFFERENTIAL_EXAMPLES=$${DIFFERENTIAL_EXAMPLES:-20000} \
		$(BIN)/pytest tests/simulation/test_schedules.py tests/simulation/test_valkey_differential.py $(PYTEST_ARGS)

adversary: $(VENV)/.installed-test ## Try random and honest callers for long (ADVERSARY_EXAMPLES, ADVERSARY_CALLS; NODE_PATH for Express)
	ADVERSARY_EXAMPLES=$${ADVERSARY_EXAMPLES:-2000} ADVERSARY_CALLS=$${ADVERSARY_CALLS:-200000} \
		$(BIN)/pytest tests/adversary $(PYTEST_ARGS)

test-host: $(VENV)/.installed-test ## Test redirected traffic in network namespaces (needs root, ip, nft, iptables, curl)
	QUOTA_SIDECAR_HOST_TESTS=1 $(BIN)/pytest -q tests/host

test-cluster: $(VENV)/.installed-test ## Test the chart in kubectl's cluster, which must be empty (needs QUOTA_SIDECAR_CLUSTER_IMAGE)
	QUOTA_SIDECAR_CLUSTER_TESTS=1 $(BIN)/pytest -v tests/cluster

# make test-real REAL_ARGS='--lago URL --openmeter URL --lago-key-file FILE'
test-real: $(VENV)/.installed ## Compare the books with a real Lago and OpenMeter (REAL_ARGS; without them with stand-ins)
	$(BIN)/python -m sidecar verify-billing $(REAL_ARGS)

compare: $(COMPILED)/.done $(VENV)/.installed-compare ## Measure the gateway beside nginx, nginx + Lua, Envoy and aiohttp (needs wrk and nginx)
	$(AS_WHEEL) $(BIN)/python -m loadtests.compare $(COMPARE_ARGS)

scaling: $(COMPILED)/.done $(VENV)/.installed-compare ## Measure what a request costs as accounts, connections, bodies, … grow (needs wrk)
	$(AS_WHEEL) $(BIN)/python -m loadtests.scaling $(SCALING_ARGS)

hostile: $(COMPILED)/.done $(VENV)/.installed-compare ## Measure honest callers while others attack (on loopback)
	$(AS_WHEEL) $(BIN)/python -m loadtests.hostile $(HOSTILE_ARGS)

billing-scale: $(VENV)/.installed-test ## Measure the control plane with 100,000 accounts (takes half an hour)
	$(BIN)/python -m loadtests.billing_scale $(BILLING_SCALE_ARGS)

# One scenario against `sidecar demo`: make load-herd LOAD_ARGS='--users 50'. The reports go to build/load.
SCENARIOS := steady herd topup valkey-restart openmeter-outage rolling-restart slow-clients big-bodies

load: ## Run all load-test scenarios in turn, each with a report (one of them: make load-steady)
	@failed=; for name in $(SCENARIOS); do $(MAKE) --no-print-directory load-$$name || failed="$$failed $$name"; done; \
		test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

load-%: $(VENV)/.installed-load
	$(BIN)/python -m loadtests.scenarios $* --report build/load/$*.html $(LOAD_ARGS)

docs: $(VENV)/.installed ## Write docs/configuration.md again
	$(BIN)/python -m sidecar.app.configuration_reference > docs/configuration.md

# The versions that are there stay where pyproject.toml still allows them; REQUIREMENTS_ARGS=--upgrade takes the newest.
requirements: | $(BIN)/python ## Lock deploy/requirements.txt again, with the hashes of every file
	$(BIN)/python -m venv build/venv
	build/venv/bin/python -m pip install --quiet 'uv>=0.5'
	build/venv/bin/uv pip compile --quiet --generate-hashes --python-version 3.11 --python-platform linux \
		--no-emit-index-url --custom-compile-command 'make requirements  (newer versions: REQUIREMENTS_ARGS=--upgrade)' \
		--output-file deploy/requirements.txt $(REQUIREMENTS_ARGS) pyproject.toml

release: | $(BIN)/python ## Build, install and try what a release publishes, into dist (needs git, a C compiler)
	$(BIN)/python -m deploy.release build

clean: ## Delete what was built, and the virtual environment
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
