# Each target sets up what it needs. `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.pippin-set-up
PACKAGES := actors configs kernels ops policies runtime
PYTHON ?=
PYTEST := $(BIN)/python -m pytest
SIDE_BY_SIDE := -n 2
REAL_PROCESSES := tests/ops/test_supervise.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench soak clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(STAMP) ## a virtual environment with everything in it
	@sh ops/openblas.sh $(VENV)

demo: setup ## a GRPO run that ends by printing how much better the model got
	@echo "==> running the demo"
	@$(BIN)/python -m ops.demo

test: setup ## the tests (about 4 minutes on two cores)
	@echo "==> running the tests"
	@$(PYTEST) $(SIDE_BY_SIDE)

lint: setup ## ruff, ruff format and pyright
	@echo "==> ruff check";  $(BIN)/ruff check .
	@echo "==> ruff format"; $(BIN)/ruff format --check .
	@echo "==> pyright";     $(BIN)/pyright

bench: setup ## the benchmarks
	@echo "==> running the benchmarks"
	@$(BIN)/pippin bench

soak: setup ## more cases of the same promises, and a thousand kills of fault runs (about 20 minutes)
	@echo "==> running the tests that are marked soak (about 5 minutes)"
	@$(PYTEST) $(SIDE_BY_SIDE) -m soak --ignore $(REAL_PROCESSES)
	@echo "==> running all tests that share one run on real processes (about 5 minutes)"
	@$(PYTEST) -m "soak or not soak" $(REAL_PROCESSES)
	@echo "==> killing fault runs (about 10 minutes)"
	@$(BIN)/pippin bench kills --kills 1000

clean: ## remove the environment and caches; runs stay
	@echo "==> removing $(VENV) and caches (runs/ stays)"
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	@find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@sh ops/venv.sh $(VENV) $(PYTHON)
	@echo "==> installing Pippin and what it needs into $(VENV) (minutes, the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
		-c constraints.txt -e '.[dev]'
	@touch $@
	@echo "==> installed: $(BIN)/pippin"
