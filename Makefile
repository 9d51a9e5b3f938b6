# AmberBlob: everyday commands. Needs Python 3.11 or newer, pip and make; nothing else.
# Pass arguments on with ARGS, for example: make test ARGS="-k manifest -x"

PYTHON ?= python3
ARGS   ?=
LONG   ?= 4
REV    ?=

VENV       := .venv
VENV_SWIFT := .venv-swift
BIN        := $(VENV)/bin
STAMP_RUN  := $(VENV)/.stamp-runtime
STAMP_DEV  := $(VENV)/.stamp-dev
LOCK_VENV  := .venv-lock
PIP        := $(BIN)/python -m pip --disable-pip-version-check
CODE       := $(wildcard amberblob node registry chunkstore antientropy archive sim tests bench bench.py demo demo.py)

PIP_TOOLS   := pip-tools==7.6.2
PIP_COMPILE := CUSTOM_COMPILE_COMMAND="make lock" $(LOCK_VENV)/bin/pip-compile --quiet --generate-hashes \
	--no-emit-index-url --no-emit-find-links --strip-extras --allow-unsafe --build-deps-for editable

# Hundreds of processes are started by the tests: none should compile the same sources once more.
unexport PYTHONDONTWRITEBYTECODE

define check-python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "AmberBlob needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
	echo "Name another one: make PYTHON=/path/to/python3.11 ..." >&2; \
	exit 1; }
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup dev test test-ceph check fmt model sim sim-long soak bench bench-rivals bench-vs demo lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# The recipes below end in `exec`, so that Ctrl-C and SIGTERM reach the program itself and not a shell around it.

dev: $(STAMP_RUN) ## start a local development cluster (ARGS go to `amberblob dev`)
	@exec $(BIN)/amberblob dev $(ARGS)

# Three at a time also on two processors: tests of clusters mostly wait. tests/schedule.py says which go side by side.
test: $(STAMP_DEV) ## run the tests, three at a time (ARGS go to pytest; -n 0 for one at a time)
	@exec $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder $(ARGS)

test-ceph: $(STAMP_DEV) ## run the archive's tests on a real radosgw too (a small Ceph starts for it; as root: make bench-rivals installs it)
	@AMBERBLOB_TEST_CEPH=1 exec $(BIN)/python -m pytest --timeout 300 tests/contract/archive $(ARGS)

check: $(STAMP_DEV) ## lint, formatting, types and import layers
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP_DEV) ## format the code and apply safe lint fixes
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

model: $(STAMP_DEV) ## run the model of the protocol: 100,000 seeds, then every shortcut must be caught
	@exec $(BIN)/python -m sim.model --seeds 100000 --mutants $(ARGS)

sim: $(STAMP_DEV) ## run 1,000 worlds of whole nodes, half of them from the commit; then 20 of them twice
	$(BIN)/python -m sim --seeds 1000 --of-commit $(ARGS)
	$(BIN)/python -m sim --seeds 20 --twice

sim-long: $(STAMP_DEV) ## run for hours what `model`, `sim` and the tests run for minutes (LONG=HOURS, 4 by default)
	$(BIN)/python -m sim.model --seeds 1000000 --mutants
	AMBERBLOB_TEST_ALL_CRASH_POINTS=1 AMBERBLOB_TEST_EXAMPLES=2000 AMBERBLOB_TEST_RACES=5000 \
		$(BIN)/python -m pytest --timeout 7200 tests/crash tests/fuzz tests/nemesis/test_conditional_race.py tests/unit/antientropy tests/unit/chunkstore/test_digests.py \
		tests/unit/chunkstore/test_state_machine.py tests/unit/chunkstore/test_twins.py
	$(BIN)/python -m sim --mutants --seeds 200
	$(BIN)/python -m sim --first 10000000 --minutes $$(( $(LONG) * 60 )) $(ARGS)

soak: $(STAMP_DEV) ## run real nodes under the nemesis for hours (LONG=HOURS, 4 by default; ARGS go to `python -m tests.nemesis`)
	@exec $(BIN)/python -m tests.nemesis --hours $(LONG) $(ARGS)

bench: $(STAMP_DEV) ## run the benchmarks (ARGS go to `python -m bench`)
	@exec $(BIN)/python -m bench $(ARGS)

bench-rivals: $(STAMP_DEV) ## install Swift and radosgw, to be measured beside us (as root: also their Debian packages)
	@exec $(BIN)/python -m bench.rivals.install

bench-vs: $(STAMP_DEV) ## measure this checkout beside another commit (REV=COMMIT; ARGS go to `python -m bench.versus`)
	@exec $(BIN)/python -m bench.versus $(ARGS) -- "$(REV)"

demo: $(STAMP_DEV) ## run the demonstration (ARGS go to `python -m demo`)
	@exec $(BIN)/python -m demo $(ARGS)

setup: $(STAMP_DEV) ## only create the virtual environment, with the development tools

lock: ## recompute the lock files (ARGS go to pip-compile, for example --upgrade)
	$(check-python)
	test -x $(LOCK_VENV)/bin/python || $(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip --disable-pip-version-check install --quiet '$(PIP_TOOLS)'
	$(PIP_COMPILE) $(ARGS) --extra etcd --extra redis --extra s3 --output-file requirements.lock pyproject.toml
	$(PIP_COMPILE) $(ARGS) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	$(PIP_COMPILE) $(ARGS) --output-file bench/rivals/swift.lock bench/rivals/swift.in

clean: ## remove the virtual environments, caches and build output
	rm -rf $(VENV) $(LOCK_VENV) $(VENV_SWIFT) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(BIN)/python:
	$(check-python)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Could not create $(VENV); is the venv module installed?" >&2; exit 1; }

$(STAMP_RUN): requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(STAMP_DEV): requirements-dev.lock $(STAMP_RUN)
	$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	@touch $@
