# Every target needs only Python 3.11 or later and make: the first one that runs makes .venv.
PYTHON ?= python3
VENV   ?= .venv
# PIP_ARGS: more options for pip, such as another index for torch. PYTEST_ARGS: more options for pytest.
# Two processes run the tests file by file, unless REDIS_URL names one database, which two cannot share.
PARALLEL := $(if $(REDIS_URL),,-n 2 --dist loadfile)
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check -qq
# Named after what pip was told to install, so that the environment follows a pull that changes it.
MADE   := $(VENV)/.made-for-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: help setup demo test test-fast coverage lint ruff fix types layers bench chaos faults clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' Makefile | awk '{ printf "  %s %-10s", $$1, $$2; $$1 = $$2 = ""; print }'

setup: $(MADE) ## make the environment in .venv, or bring it up to date

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Batchery needs Python 3.11 or later; name one with: make PYTHON=python3.11" >&2; exit 1; }
	@echo "Making the environment in $(VENV) (about two minutes)..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot make virtual environments (on Debian: apt install python3-venv)" >&2; exit 1; }
	@$(PIP) install --upgrade pip
	@# First and alone, with its one version: a range could choose a build with gigabytes of CUDA libraries.
	@echo "  PyTorch"
	@$(PIP) install $(PIP_ARGS) torch -c constraints.txt
	@echo "  Batchery, what its demo and benchmarks run, and the tools that check it"
	@$(PIP) install $(PIP_ARGS) -e '.[demo,bench,dev,flower]' -c constraints.txt
	@# It works with Celery 5.7, but its metadata forbids it. The benchmarks compare with it.
	@$(PIP) install $(PIP_ARGS) --no-deps celery-batches -c constraints.txt
	@rm -f $(VENV)/.made-for-*
	@touch $@

demo: setup ## watch a worker turn single calls into batches
	@$(BIN)/python -m benchmarks.demo

test: setup ## run all tests
	@$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-fast: setup ## run the tests that start no worker process
	@$(BIN)/python -m pytest $(PARALLEL) -m "unit or redis" $(PYTEST_ARGS)

# Not those that start workers: measured as well, the whole suite takes a third longer.
coverage: setup ## run those tests, and tell which branches they do not reach
	@mkdir -p build/coverage
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest $(PARALLEL) -m "unit or redis" $(PYTEST_ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

lint: ruff types layers ## run the checks: ruff, types and layers

ruff: setup ## check style and formatting
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

fix: setup ## format, and fix what ruff can fix
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: setup ## check types, strictly
	@$(BIN)/mypy

# In .typing, where the folders have their import names.
layers: setup ## check which folder imports what
	@bin=$$(cd $(BIN) && pwd) && cd .typing && "$$bin/lint-imports" --no-logo --no-cache --config ../pyproject.toml

bench: setup ## run every benchmark; figures land in build/benchmarks
	@$(BIN)/python -m benchmarks all

chaos: setup ## break workers, server and network under calls for two minutes; CHAOS_ARGS="--minutes 10 --seed 7"
	@$(BIN)/python -m benchmarks chaos $(CHAOS_ARGS)

faults: setup ## let each call in the worker's code fail, in every way (half an hour)
	@FAULTS=all $(BIN)/python -m pytest -n 0 tests/consumer/test_faults.py $(PYTEST_ARGS)

clean: ## remove what was built, and .venv
	@rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
