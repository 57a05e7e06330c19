"""Data flows one way, and so do imports."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import grimp
import pytest

PACKAGE = "llama_index_refine"
# Each may know those before it in its row's right-hand side, and no others.
MAY_KNOW = {
    "refinement": {"display", "similarity"},
    "ids": set(),
    "images": set(),
    "lines": set(),
    "locks": set(),
    "similarity": set(),
    "scheduling": set(),
    "storage": set(),
    "stores": {"images"},
    "display": {"images", "similarity"},
    "refining": {"locks", "refinement", "similarity"},
    "selecting": {"refining"},
    "calibration": {"display", "ids", "refining", "selecting", "storage"},
    "selection": {"display", "refinement", "selecting", "similarity", "storage"},
    "qdrant": {"ids", "images", "locks", "scheduling", "similarity", "stores"},
    "graders": {"ids", "images", "locks"},
    "memory": {"ids", "images", "locks", "scheduling", "similarity", "refining", "qdrant"},
    "retrieval": {
        "calibration",
        "ids",
        "images",
        "lines",
        "locks",
        "refinement",
        "similarity",
        "scheduling",
        "refining",
        "selecting",
        "selection",
        "qdrant",
        "graders",
        "memory",
    },
    "classifying": {"refinement", "similarity", "refining", "selecting"},
    "classifier": {
        "classifying",
        "refinement",
        "refining",
        "qdrant",
        "retrieval",
        "retriever",
        "scheduling",
        "storage",
    },
    "retriever": {
        "calibration",
        "refinement",
        "selection",
        "scheduling",
        "stores",
        "refining",
        "qdrant",
        "graders",
        "memory",
        "retrieval",
        "tools",
    },
    "tools": {"display", "graders"},
}
# What users start: free to know all of the above.
ON_TOP = ("evaluation", "demo", "ui", "commands")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            yield importer, imported


def test_every_room_is_listed(graph):
    rooms = {room(module) for module in graph.modules} - {PACKAGE}
    assert rooms == {*MAY_KNOW, *ON_TOP}


def test_rooms_know_only_what_they_may(graph):
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in imports(graph)
        if room(importer) in MAY_KNOW
        and room(imported) != PACKAGE
        and room(imported) not in MAY_KNOW[room(importer)] | {room(importer)}
    ]
    assert not wrong


def test_what_users_start_is_known_to_nothing_beneath(graph):
    order = {name: at for at, name in enumerate(ON_TOP)}
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in imports(graph)
        if room(imported) in order and order.get(room(importer), -1) < order[room(imported)]
    ]
    assert not wrong


def test_no_circle_of_modules(graph):
    circles = [
        f"{importer} -> {imported} -> ... -> {importer}"
        for importer, imported in imports(graph)
        if graph.chain_exists(importer=imported, imported=importer)
    ]
    assert not circles


def test_every_folder_says_what_it_offers(graph):
    """Whoever adds a module names it in its folder's `__init__`, and says for whom it is."""
    unsaid = []
    for module in sorted(graph.modules - {PACKAGE}):
        folder, _, name = module.rpartition(".")
        if folder != PACKAGE and f"`{name}`" not in (import_module(folder).__doc__ or ""):
            unsaid.append(f"{folder} does not name `{name}` in its docstring")
    assert not unsaid
