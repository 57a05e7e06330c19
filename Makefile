# Each target works from nothing: it makes .venv, installs what it needs and does its job.
PYTHON ?= python3
PIP_INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint docs notebooks tables clean

demo: .venv/.demo
	.venv/bin/llama-index-refine demo

test: .venv/.dev
	.venv/bin/python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=90

lint: .venv/.dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

# Run the notebooks again and keep their outputs.
notebooks: .venv/.dev
	.venv/bin/python examples/refresh.py

# Write the measured tables of results/ into the pages that show them.
tables: .venv/.dev
	.venv/bin/python results/tables.py README.md docs/comparison.md docs/how-it-works.md

clean:
	rm -rf .venv site

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A stamp for each set of extras; the editable install follows the source by itself.
.venv/.%: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) --editable '.[$*]'
	touch $@
