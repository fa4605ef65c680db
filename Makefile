# `make` alone lists the verbs. Everything runs in .venv, which is made on first use from the pinned versions.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test bounds lint format types doctest docs docs-serve recipes wheel-test bench soak clean

help: ## list the verbs
	@echo "lightning_gnnopt: make VERB"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with the pinned environment

# torch comes first and pinned: a bare `torch` would pull the newest build with several GB of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Set PYTHON=python3.12, say."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes, once) ..."
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## train GraphSAGE on the digits graph and print what came out
	@$(BIN)/gnnopt-train experiment=digits

# Tests wait for processes as often as they compute: one for each core, and none of the cores is overcommitted.
JOBS ?= logical

test: $(STAMP) ## run the whole suite, with coverage, on all cores (JOBS=0: in one process)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --cov --cov-report=term

KERNEL_TESTS := tests/sampling $(patsubst %,tests/loading/test_%.py,cached_features copies dense_features features fields gather \
	hotness layerwise sparse_features)

# A cache of its own: machine code compiled without the checks would be taken from the usual one.
bounds: $(STAMP) ## run the kernels' tests with every array index checked by numba
	cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR="$$cache" \
		$(BIN)/python -m pytest $(KERNEL_TESTS) -q --no-cov -p no:cacheprovider

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

doctest: $(STAMP) ## run the examples in the docstrings
	$(BIN)/python -m pytest --doctest-modules lightning_gnnopt benchmarks -p no:cacheprovider

docs: $(STAMP) ## build the documentation site into site/, strictly
	$(BIN)/mkdocs build --strict --quiet

docs-serve: $(STAMP) ## show the documentation at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

recipes: $(STAMP) ## run every shipped recipe for one batch
	$(BIN)/python -m pytest tests/test_recipes.py -m ''

wheel-test: $(STAMP) ## build wheel and sdist, install each into a venv of its own, run the console script
	$(BIN)/python tests/install_smoke.py

bench: $(STAMP) ## run the benchmarks, quickly
	$(BIN)/python -m benchmarks.endtoend --quick
	$(BIN)/python -m benchmarks.loading --quick

soak: $(STAMP) ## run fits with faults for 20 minutes (SEED=0): nothing may be left behind, no bit may differ
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --minutes 20 --seed $(or $(SEED),0)

clean: ## remove everything that was built or written, .venv included
	rm -rf $(VENV) build dist site htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis outputs multirun
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
