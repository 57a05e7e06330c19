# Each target works from nothing: it makes .venv, installs what it needs and does its job.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check
# uv takes a third of pip's time. It links what is in its cache, so the cache lies beside it; and it is removed then, as
# nltk reads no file that has two names.
UV = UV_CACHE_DIR=.venv/.uv .venv/bin/uv pip install --quiet --python .venv/bin/python

# What depends on other packages' versions.
LOWEST_TESTS = tests/graders tests/qdrant tests/refining tests/retrieval tests/llama_index tests/commands \
    tests/test_import.py tests/test_refinement.py tests/test_retriever.py tests/test_stores.py

.PHONY: demo test test-lowest lint docs notebooks tables clean

demo: .venv/.demo
	.venv/bin/llama-index-refine demo

# Each process keeps to one core: torch's threads would wait for each other. In the order of their files, the long tests
# of the commands come first, and no process waits for them at the end.
test: .venv/.dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile \
	    --no-loadscope-reorder --cov --cov-report=term:skip-covered --cov-fail-under=90

# The oldest versions that pyproject.toml allows, in an environment of their own. UV_TORCH_BACKEND=cpu keeps it small.
LOWEST = --resolution lowest-direct --quiet
test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/python -m pytest $(LOWEST_TESTS)

.venv-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip compile $(LOWEST) --extra edge --extra mcp --extra openai --extra plot \
	    --extra sentence-transformers --python .venv-lowest/bin/python --output-file .venv-lowest/lowest.txt pyproject.toml
	UV_LINK_MODE=copy .venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python \
	    --constraint .venv-lowest/lowest.txt --editable '.[test]'
	touch $@

lint: .venv/.dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

# Run the notebooks again and keep their outputs.
notebooks: .venv/.dev
	.venv/bin/python examples/refresh.py

# Write the measured tables of results/ into the pages that show them.
tables: .venv/.dev
	.venv/bin/python results/tables.py README.md docs/comparison.md

clean:
	rm -rf .venv .venv-lowest site

.venv/bin/uv:
	$(PYTHON) -m venv .venv
	$(PIP) uv

# A stamp for each set of extras; the editable install follows the source by itself. Where uv does not get through to a
# package index that pip is set up for, pip does it.
.venv/.%: pyproject.toml constraints.txt | .venv/bin/uv
	$(UV) --constraint constraints.txt --editable '.[$*]' || $(PIP) --constraint constraints.txt --editable '.[$*]'
	rm -rf .venv/.uv
	touch $@
