"""The demo from its options to its picture."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from llama_index_refine.commands.cli import app
from llama_index_refine.demo.sample import load_sample
from tests.chat_server import ChatServer, Question, Reply, error, yes

SECRET = "sk-not-to-be-seen-0123456789"


def demo(folder: Path, *arguments: str, key: str | None = None) -> Result:
    environment = {"OPENAI_API_KEY": key, "COLUMNS": "80", "NO_COLOR": "1"}
    paths = ["--path", str(folder / "qdrant"), "--out", str(folder / "again")]
    return CliRunner().invoke(app, ["demo", *paths, *arguments], env=environment)


def figures(output: str) -> dict[str, list[float]]:
    """The table's rows: MAP, nDCG@10, P@10."""
    rows = re.findall(r"^(no feedback|reranked|refined)\D.*?((?: +\d\.\d{3}){3})$", output, re.MULTILINE)
    return {name: [float(value) for value in values.split()] for name, values in rows}


def test_refining_gains_over_reranking_over_nothing(first_run: Result):
    assert first_run.exit_code == 0, first_run.output
    table = figures(first_run.output)
    assert table["refined"][0] > table["reranked"][0] > table["no feedback"][0]
    assert re.search(r"MAP \+\d+% by refining: \d+ of 12 queries got better", first_run.output)


def test_it_says_in_one_line_that_labels_grade(first_run: Result):
    plain = " ".join(first_run.output.split())
    assert plain.count("human labels, as no LLM is named (set OPENAI_API_KEY, or give --llm-base-url") == 1


def test_it_lists_one_query_before_and_after(first_run: Result):
    before, after = first_run.output.split("First search")[1].split("\nRefined ")
    assert len(re.findall(r"^ *\d+ +(?:[01]\.00|-) +(?:yes|no) ", before, re.MULTILINE)) == 10
    assert len(re.findall(r"^ *\d+ +\d+ +(?:[01]\.00|-) +(?:yes|no) ", after, re.MULTILINE)) == 10


def test_it_fits_a_narrow_terminal_without_colour(first_run: Result):
    assert "\x1b" not in first_run.output
    lines = [line for line in first_run.output.splitlines() if not line.startswith("Score distributions")]
    assert max(map(len, lines)) <= 80


def test_it_draws_a_picture(first_run: Result, folder: Path):
    png = (folder / "out" / "scores.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 600
    assert height > 300
    chunks, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        chunks += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    assert len(set(zlib.decompress(chunks))) > 20  # not one flat colour


def truthful(question: Question) -> Reply:
    """Grade by the sample's labels, as a good LLM would."""
    sample = load_sample()
    (query,) = (each for each in sample.queries if each.text == question.query)
    relevant = {sample.documents[row].text for row in sample.relevant(query)}
    return yes(0.95 if question.document in relevant else 0.05)


def test_an_llm_grades_where_one_is_named(first_run: Result, folder: Path, chat_server: ChatServer):
    chat_server.reply = truthful
    result = demo(folder, "--queries", "3", "--llm-base-url", chat_server.url, "--llm-model", "tiny", key=SECRET)
    assert result.exit_code == 0, result.output
    table = figures(result.output)
    assert table["refined"][0] > table["no feedback"][0]
    assert "Teacher: the LLM tiny." in result.output
    asked = re.search(r"The LLM was asked ([\d,]+) times", result.output)
    assert asked
    # All but the first, which finds out whether the LLM answers; reranking and refining share what both ask.
    assert int(asked[1]) == chat_server.calls - 1
    assert 3 * 20 <= chat_server.calls - 1 < 3 * 40
    assert SECRET not in result.output
    prompt = chat_server.questions[-1].prompt
    assert "a bank's customers" in prompt


def test_an_llm_that_refuses_the_key_ends_it_before_the_long_part(folder: Path, chat_server: ChatServer):
    chat_server.reply = lambda question: error(401, f"bad key {SECRET}")
    result = demo(folder, "--llm-base-url", chat_server.url, "--llm-model", "tiny", key=SECRET)
    assert result.exit_code == 1
    assert "Error: the LLM server refused the credentials (HTTP 401)" in result.output
    assert "Embedding" not in result.output
    assert SECRET not in result.output
    assert "Traceback" not in result.output


def test_an_llm_that_is_not_there_is_told_in_one_line(folder: Path):
    result = demo(folder, "--llm-base-url", "http://127.0.0.1:9/v1", "--llm-model", "tiny")
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: the LLM gives no grade: ")
    assert "check its address" in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--llm-base-url", "http://127.0.0.1:9/v1"], "--llm-base-url needs --llm-model"),
        (["--llm-model", "gpt"], "there is no key to ask gpt with: set OPENAI_API_KEY"),
    ],
)
def test_half_an_llm_is_refused(folder: Path, arguments: list[str], message: str):
    result = demo(folder, *arguments)
    assert result.exit_code == 1
    assert result.output.splitlines() == [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert message in result.output


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "qdrant").write_text("not a folder")
    result = demo(tmp_path, "--queries", "2")
    assert result.exit_code == 1
    assert "is a file; give a folder" in result.output


def test_no_queries_are_refused(tmp_path: Path):
    assert demo(tmp_path, "--queries", "0").exit_code == 2
