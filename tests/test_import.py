"""Importing the package costs nothing, and every public name is there."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import llama_index_refine

HEAVY = ("torch", "openai", "sentence_transformers", "qdrant_client", "llama_index", "matplotlib", "numpy", "rich")


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_after("import llama_index_refine; dir(llama_index_refine)") & set(HEAVY)


def test_importing_the_command_line_loads_nothing_heavy():
    assert not loaded_after("import llama_index_refine.commands.cli") & (set(HEAVY) - {"rich", "numpy"})


def test_a_name_loads_what_it_needs():
    assert "torch" in loaded_after("from llama_index_refine import QueryRefiner")


@pytest.mark.parametrize("name", llama_index_refine.__all__)
def test_every_public_name_resolves(name: str):
    found = getattr(llama_index_refine, name)
    assert getattr(import_module(found.__module__), name) is found
    assert name in dir(llama_index_refine)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Retriever'"):
        llama_index_refine.Retriever  # noqa: B018
