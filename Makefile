# Everything is installed into .venv; a bare machine needs python3 (3.10 or later, with venv and pip), git and make.
# A second call installs nothing unless pyproject.toml or constraints.txt changed.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -c constraints.txt
RUN := runs/quickstart

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow gpu-check lint format types clean

# Several OpenMP programs at once on few cores spin while they wait and slow each other many times over; sleeping
# while waiting costs a program that is alone next to nothing. It has to be set before torch starts.
quickstart test test-slow: export OMP_WAIT_POLICY := passive

help:
	@echo "make quickstart [ARGS='--out DIR']   install, extend the shipped base, measure it before and after"
	@echo "make test [ARGS='-k context']        install with the test extra, run the default test suite"
	@echo "make test-slow                       the tests that take minutes"
	@echo "make gpu-check [ARGS='--parts step']   on a GPU: the tests marked gpu, then benchmarks/gpu.py into gpu.json"
	@echo "make lint | format | types           ruff, ruff (changing files), mypy"
	@echo "make clean                           remove .venv and caches; runs/ stays"

# The default run folder belongs to this target, and lengthen never writes into a folder with content: so an earlier
# one goes. With --out in ARGS nothing is removed.
quickstart: $(VENV)/.installed
	$(if $(findstring --out,$(ARGS)),,rm -rf $(RUN))
	$(BIN)/lengthen quickstart $(if $(findstring --out,$(ARGS)),,--out $(RUN)) $(ARGS)

# A process per core with one thread each: the models of the tests are too small for more.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow $(ARGS)

# torch for another CUDA version than pip's default: install it into .venv first.
gpu-check: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py --json gpu.json $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(INSTALL) -e ".[test]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	@touch $@
