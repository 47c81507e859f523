# Everything runs inside .venv, which `make setup` makes; the other targets set up by themselves.
.DEFAULT_GOAL := help
.PHONY: help setup browser demo test check coverage mutants torture docs format lock clean

export PYTHON
BIN := .venv/bin
# Each file of tests is run by one process; models of a few thousand weights gain nothing by a second thread.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

help:    ## these lines
	@sed -n 's/^\([a-z]*\):[a-z ]*## */  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup:   ## .venv from requirements.lock, the package, the embedded teacher (PYTHON=... names the Python)
	@scripts/setup

demo: setup    ## the whole pipeline on data/topics, from inputs to the report
	@$(BIN)/stepdistill run

browser: ; @scripts/browser

test: setup browser    ## the tests
	@$(TEST)

check: setup browser   ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TEST)

coverage: setup browser  ## the tests, and which lines and branches of pipeline/ they reach
	@$(TEST) --cov --cov-report=term-missing

mutants: setup  ## small changes of the code, one at a time: how many do the tests notice? (an hour or two)
	@$(BIN)/python scripts/mutants.py

torture: setup  ## every promise of docs/guarantees.md, tried to break as often as can be (hours)
	@$(BIN)/python scripts/torture.py

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
