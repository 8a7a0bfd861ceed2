# Two commands for a newcomer: make demo, make test. Both make the virtual environment that they need.

PYTHON ?= python3
VENV ?= .venv
DIR ?=
# xdist: one worker more than this machine has processors only makes them wait for each other.
WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# compat: a folder in sys.path. The default is an import hook, which loses against a checkout that lies in the current folder.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --config-settings editable_mode=compat
METADATA := setup.cfg pyproject.toml $(wildcard setup.py)
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n $(WORKERS) --benchmark-disable
# Says what it does; the tests that need it say why they are skipped where it fails, or fail where CI=true.
PROVISION := $(BIN)/python tests/realguest/provision >/dev/null || true

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all hostile bench bench-guest lint format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { name[++n] = $$1; text[n] = $$2; if (length($$1) > most) most = length($$1) } \
		END { for (i = 1; i <= n; i++) printf "  make %-" most "s  %s\n", name[i], text[i] }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## a guest mounts a folder of this machine (DIR=folder to choose it)
	@$(BIN)/pyvirtfs demo $(if $(DIR),'$(subst ','\'',$(DIR))')

test: $(VENV)/.developer ## the tests, with real Linux guests under QEMU where those can be had
	@$(PROVISION)
	$(PYTEST) $(PARALLEL) -m 'not slow' $(PYTEST_ARGS)

test-all: $(VENV)/.developer ## also those that take minutes: every cache mode, large files, a root file system on 9p
	@$(PROVISION)
	$(PYTEST) $(PARALLEL) $(PYTEST_ARGS)

hostile: $(VENV)/.developer ## what broke other file servers, one line for each kind of defect (FULL=1: the long way)
	@$(BIN)/python -m tests.hostile.report -n $(WORKERS) $(if $(FULL),,-m 'not slow') $(PYTEST_ARGS)

bench-guest: $(VENV)/.developer ## QEMU's own device and this one in a real guest, side by side (some minutes)
	$(BIN)/python -m benchmarks.realguest

bench: $(VENV)/.developer ## the benchmarks, in groups
	$(PYTEST) benchmarks -o python_files='bench_*.py' --benchmark-only --benchmark-quiet --timeout=0 $(PYTEST_ARGS)

lint: $(VENV)/.developer ## ruff, formatting, mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.developer ## let ruff put the source into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove everything that make has made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo 'make: pyvirtfs needs Python 3.11 or newer, and "$(PYTHON)" is not (make PYTHON=... names another one)' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'make: $(PYTHON) cannot make virtual environments (Debian: apt-get install python3-venv)' >&2; exit 1; }
	@echo 'Making the virtual environment $(VENV) ...' >&2
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(METADATA) | $(VENV)/.created
	@echo 'Installing pyvirtfs into $(VENV) ...' >&2
	@$(PIP) --editable .
	@touch $@

$(VENV)/.developer: $(METADATA) | $(VENV)/.created
	@echo 'Installing pyvirtfs, its tests and its tools into $(VENV) ...' >&2
	@$(PIP) --editable '.[test,dev]'
	@touch $@ $(VENV)/.installed
