"""Pages that have to name everything: held to the code, or to the other pages."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import yaml

import llama_index_refine
from llama_index_refine.graders.asking import failures
from llama_index_refine.qdrant import errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llama_index_refine"
DOCS = ROOT / "docs"
FUNCTIONS = (FunctionType, classmethod, staticmethod, property)


def said(node: ast.AST) -> str | None:
    """A string in the source as a pattern, with anything where it has a value; None for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) or ".*?" for part in node.values)
    return None


def reasons() -> Iterator[str]:
    """Patterns of what `Refinement.reason` can be, and of the steps with which it begins."""
    for file in sorted((PACKAGE / "retrieval").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found: list[ast.AST] = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "NotRefinedError":
                found = [*node.args]
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Attribute) and target.attr == "doing":
                found = [part for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            if isinstance(target, ast.Attribute) and (getattr(target.value, "id", ""), target.attr) == (
                "refinement",
                "reason",
            ):
                found = [node.value]
            yield from filter(None, map(said, found))


def advice() -> Iterator[str]:
    """Patterns of what can stand behind a reason: what to do about Qdrant, and about the LLM."""
    sentences = [errors._HEADER, errors._UNREADABLE, errors._TIMEOUT, *(row[2] for row in errors._ADVICE)]
    for name, value in vars(failures).items():
        if isinstance(value, str) and name.isupper() and re.match(r"(the LLM|the quota|the request|an? ) ?\w", value):
            sentences.append(value.replace("{status}", ""))
    yield from (re.escape(sentence).replace("%s", r"\w+") for sentence in sentences)


def test_troubleshooting_has_an_entry_for_each_reason():
    page = " ".join((DOCS / "troubleshooting.md").read_text(encoding="utf-8").split())
    patterns = {*reasons(), *advice()}
    assert len(patterns) > 40
    assert [pattern for pattern in sorted(patterns) if not re.search(pattern, page)] == []


def entries() -> list[str]:
    pages = sorted((DOCS / "reference").glob("*.md"))
    return [entry for page in pages for entry in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)]


def found(entry: str) -> Any:
    module, _, name = entry.rpartition(".")
    return getattr(import_module(module), name)


def public() -> dict[str, Any]:
    """What is public: what the package lists, and what a page tells the reader to import."""
    names = {name: getattr(llama_index_refine, name) for name in llama_index_refine.__all__}
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for module, imported in re.findall(
            r"^ *from (llama_index_refine[\w.]*) import (.+)$", page.read_text("utf-8"), re.M
        ):
            names |= {name: getattr(import_module(module), name) for name in imported.split(", ")}
    return names


def test_every_public_name_has_one_entry_in_the_reference():
    entered = entries()
    assert len(entered) == len(set(entered))
    objects = [found(entry) for entry in entered]
    assert [name for name, value in public().items() if value not in objects] == []


@pytest.mark.parametrize("entry", [entry for entry in entries() if entry.rpartition(".")[2][0].isupper()])
def test_every_public_method_has_its_lines(entry):
    """What has no docstring is left out of the page."""
    ours = [each for each in found(entry).__mro__ if each.__module__.startswith("llama_index_refine")]
    methods = {name: value for each in ours for name, value in vars(each).items() if isinstance(value, FUNCTIONS)}
    assert [name for name, value in methods.items() if not name.startswith("_") and not value.__doc__] == []


def test_every_argument_of_the_retriever_is_in_one_group():
    table = (DOCS / "reference" / "retriever.md").read_text("utf-8").split("\n| ")[2:]
    grouped = [name for row in table for name in re.findall(r"`(\w+)`", row.split("\n")[0])]
    arguments = [*inspect.signature(llama_index_refine.RefinedRetriever.__init__).parameters][1:]
    assert sorted(grouped) == sorted(arguments)


def test_llms_txt_names_every_page():
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    named = set(re.findall(r"\]\(([\w/.-]+\.md)\)", text))
    assert named == pages, "docs/llms.txt has a line for each page"


def test_every_page_is_in_the_navigation():
    # The file has tags of mkdocs' own elsewhere, not in its navigation.
    nav = yaml.safe_load("nav:" + (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1].split("\n\n")[0])
    named = set(re.findall(r"[\w/.-]+\.md", str(nav)))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
