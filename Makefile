# Everything runs inside .venv, which `make setup` makes; the other targets set up by themselves.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs format lock clean

export PYTHON
BIN := .venv/bin
TEST := $(BIN)/python -m pytest

help:    ## these lines
	@sed -n 's/^\([a-z]*\):[a-z ]*## */  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup:   ## .venv from requirements.lock, the package, the embedded teacher (PYTHON=... names the Python)
	@scripts/setup

demo: setup    ## the whole pipeline on data/topics, from inputs to the report
	@$(BIN)/stepdistill run

test: setup    ## the tests
	@$(TEST)

check: setup   ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TEST)

docs: setup    ## the docs as a site, in build/docs; a broken link fails
	@$(BIN)/zensical build --clean --strict

format: setup  ## format the code and repair what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup    ## requirements.lock anew from pyproject.toml
	@$(BIN)/python scripts/lock.py

clean:   ## remove .venv, the tools' caches and build output (not runs/, not the embedded teacher)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
