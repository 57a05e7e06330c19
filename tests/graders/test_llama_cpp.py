"""RerankGrader on the real llama.cpp server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core.schema import QueryBundle, TextNode

from llama_index_refine import RerankGrader
from llama_index_refine.graders.account import Account

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

QUERY = QueryBundle("which cat sleeps")
NODES = [TextNode(text=text) for text in ("the cat sleeps", "it rains", "a dog barks")]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.llama_cpp"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], text=True, **pipes) as server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.terminate()


@pytest.mark.parametrize("path", ["", "/v1"])
def test_one_request_grades_all(address, path):
    account = Account()
    grader = RerankGrader("any", address + path, scale="logit", instruction="find cats", retries=0, on_error="raise")
    with account.active():
        grades = grader.grade(QUERY, NODES)
        again = grader.grade(QUERY, NODES[::-1])
    assert len({*grades}) == 3
    assert again == pytest.approx(grades[::-1])
    assert account.calls == 2
    assert account.prompt_tokens > 0
    assert account.failures == []


def test_one_text_that_is_too_long_takes_no_others_grade_with_it(address):
    account = Account()
    grader = RerankGrader("any", address, scale="logit", retries=0, on_error="raise")
    with account.active():
        grades = grader.grade(QUERY, [*NODES, TextNode(text="cats and dogs " * 100)])
    assert grades[:3] == pytest.approx(RerankGrader("any", address, scale="logit").grade(QUERY, NODES))
    assert grades[3] is None
    assert account.failures == ["a document was too long for the LLM's context: lower the grader's max_document_tokens"]
