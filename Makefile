# Needs Python >= 3.11 and make. Everything is installed into .venv, once; a change of pyproject.toml or constraints.txt installs again.
#
#   make demo      the whole pipeline on a small world of its own, on the CPU, in minutes
#   make test      lint, types, layers and the default tests
#   make verify    every tier of tests: hours
#
# Another interpreter: make PYTHON=python3.12 demo. Arguments for pytest: make test PYTEST="-k dpo".
# Tests run in two processes; another number: make test WORKERS=4.

PYTHON ?= python3
VENV ?= .venv
PYTEST ?=
WORKERS ?= 2
BIN := $(VENV)/bin
# Sums over several threads differ from run to run, and the tests compare exactly: one thread each, several processes.
RUN_TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST)

.PHONY: demo test test-ci verify lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/align demo

test: lint
	$(RUN_TESTS)

test-ci: $(VENV)/.installed-test
	$(RUN_TESTS) -m ci

verify: test $(VENV)/.installed-peer $(VENV)/trl-1.12
	$(RUN_TESTS) -m "ci or slow or peer or gpu"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	@touch $@

# The last TRL with a PPO trainer, beside the one that the other peer tests import: only its source is read.
$(VENV)/trl-1.12: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ trl==1.12.0

# .installed-test and .installed-peer, by the extra of that name
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) ".[$*]"
	@touch $@ $(VENV)/.installed
