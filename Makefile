# The same words by hand and in CI: install, demo, format, check, test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo format check test clean
.DEFAULT_GOAL := help

help:
	@echo "make install   environment in $(VENV) with the package and what its tests need"
	@echo "make demo      a whole experiment on handwritten digits, ending with a trade-off plot"
	@echo "make test      the test suite"
	@echo "make check     formatting, lint, types, direction of imports"
	@echo "make format    mend formatting and what lint can mend"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python -m experiment.main param/digits/prune/lenet5.yaml

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
