# Two commands do everything: `make demo` runs the pipeline, `make test` passes the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test check lint types contracts audit fuzz test-slow clean

# installed by a lock, as pyreft pins an old transformers; torch apart from it, as its builds differ from machine to machine
$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

setup: $(VENV)/.ready

demo: setup  ## from a fresh clone to a promoted adapter
	$(BIN)/python pipelines/sweep.py
	$(BIN)/python pipelines/promote.py

test: setup  ## from a fresh clone to passing tests
	$(BIN)/python -m pytest

test-slow: setup  ## what takes longer, on real clusters
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

audit: setup  ## the environment against the lock, and the lock against known vulnerabilities where they can be looked up
	$(BIN)/python -m tests.audit

fuzz: setup  ## 100,000 hostile inputs for every reader, some minutes each
	$(BIN)/python -m tests.fuzz

check: lint types contracts audit test test-slow  ## everything that CI checks

clean:
	rm -rf $(VENV) outputs build *.egg-info
