# make demo    the guided tour                     make demo ARGS="--help" passes options on
# make explore the run of the demo in the browser
# make test    everything: lint, types, tests      make unit ARGS="-k cg" runs some of the tests
# make screenshots    the pictures of the README, anew; needs chromium on the PATH
# Needs Python 3.11 or newer, git and make; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo explore test lint types unit wheel screenshots clean

demo: .venv/installed
	$(BIN)/whence demo $(ARGS)

explore: .venv/installed
	$(BIN)/whence explore runs/demo $(ARGS)

test: lint types unit

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: .venv/installed-dev
	$(BIN)/basedpyright

# Idle threads wait instead of spinning: with one thread the results do not depend on the machine.
unit: export OMP_NUM_THREADS = 1
unit: export OMP_WAIT_POLICY = PASSIVE
unit: .venv/installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

wheel: .venv/installed-dev
	$(BIN)/python -m build --no-isolation

screenshots: .venv/installed-dev
	$(BIN)/python docs/screenshots.py

clean:
	rm -rf .venv build dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt src/whence/version.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
