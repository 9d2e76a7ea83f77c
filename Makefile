# `make` lists the targets. Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test check format lint types fast notebooks lab bench torture docs clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(SETUP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[notebook,dev]'
	@touch $@

setup: $(SETUP) ## make .venv and install the package with its tools

demo: $(SETUP) ## run the main job end to end on the built-in models
	$(BIN)/python experiments/demo.py

test: $(SETUP) ## lint, types, and every test: what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2

check: $(SETUP) ## format, lint, types and the fast tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 -m 'not slow'

format: $(SETUP) ## format the sources
	$(BIN)/ruff format .

lint: $(SETUP) ## lint
	$(BIN)/ruff check .

types: $(SETUP) ## type-check
	$(BIN)/pyright

fast: $(SETUP) ## the fast tests only
	$(BIN)/python -m pytest -n 2 -m 'not slow'

notebooks: $(SETUP) ## fill the store and execute every notebook
	$(BIN)/python notebooks/execute.py

lab: $(SETUP) ## JupyterLab on notebooks/, on 127.0.0.1 only, behind its token
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate notebooks

bench: $(SETUP) ## measure speed and memory against step-by-step references (many minutes)
	$(BIN)/python bench/retrieval.py
	$(BIN)/python bench/sweep.py

torture: $(SETUP) ## kill, starve and feed it nonsense for some half an hour, and print the figures
	$(BIN)/python -m tests.torture

docs: $(SETUP) ## the API reference from the docstrings, in out/api
	$(BIN)/python docs/build.py

clean: ## remove the environment and caches, never artifacts
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
