# The same words by hand and in CI: install, demo, format, check, test, docs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo format check test gpu docs clean
.DEFAULT_GOAL := help

help:
	@echo "make install   environment in $(VENV) with the package and what its tests need"
	@echo "make demo      a whole experiment on handwritten digits, ending with a trade-off plot"
	@echo "make test      the test suite"
	@echo "make gpu       tests and figures on a machine with a GPU, in eight minutes; see docs/gpu.md"
	@echo "make docs      the documentation, into docs/_build/html"
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# With the Python that has torch: that of make install, if it ran, else PYTHON.
gpu:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) tests/gpu/run.py

# From scratch, so that every tutorial runs; a warning is an error.
docs: install
	rm -rf docs/_build docs/gallery
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf docs/_build docs/gallery $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
