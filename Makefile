# Two commands do everything: `make demo` runs the pipeline, `make test` passes the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test coverage check lint image-lint types contracts manifests kubectl audit fuzz test-slow locks clean

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

test: setup  ## from a fresh clone to passing tests; two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

coverage: setup  ## the same tests, and what of grun they reach, lines and branches
	$(BIN)/python -m pytest --cov -n 2 --dist loadfile

test-slow: setup  ## what takes longer, on real clusters; two files at a time, and what minds that alone
	$(BIN)/python -m pytest -m "slow and not alone" -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m "slow and alone"

lint: setup image-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

image-lint: setup
	$(BIN)/hadolint Containerfile

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

kubectl: setup  ## what renders manifests: the machine's own where it is new enough, else into .tools
	$(BIN)/python -c "from k8s.check.render import kubectl; kubectl()" 2>/dev/null || $(BIN)/python -m k8s.check.kubectl

manifests: kubectl  ## render and check k8s/; KUBERAY_CRDS names a folder of KubeRay's CustomResourceDefinitions
	$(BIN)/python -m k8s.check

audit: setup  ## the environment against the lock, and the lock against known vulnerabilities where they can be looked up
	$(BIN)/python -m tests.audit

fuzz: setup  ## 100,000 hostile inputs for every reader, some minutes each
	$(BIN)/python -m tests.fuzz

check: lint types contracts manifests audit test test-slow  ## everything that CI checks

locks:  ## every lock anew from pyproject.toml; `make locks OPTIONS=--upgrade` takes newer versions
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet uv==0.13.9
	build/uv/bin/python requirements/lock.py build/uv/bin/uv $(OPTIONS)

clean:
	rm -rf $(VENV) .tools outputs build *.egg-info
