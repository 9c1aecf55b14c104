# Needs Python >= 3.10, git and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run study docs test test-long test-engines install lint types suite clean

run: install
	$(BIN)/speedkit run -o executor.warm=true

study: install
	$(BIN)/python examples/mini_study.py --out runs/mini-study --chain-to 6

test: $(VENV)/.installed-test lint types suite

install: $(STAMP)

docs: $(VENV)/.installed-test
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test-long: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m long

# Needs Debian's slurm-wlm and munge, and `pip install ray`; what is absent is skipped.
test-engines: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m engines tests/executors

types: $(VENV)/.installed-test
	$(BIN)/mypy

# Two files at a time, in their order, since the long ones stand early; without -n, one by one.
suite: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("speedkit needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(STAMP) pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
