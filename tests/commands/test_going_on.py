"""Each command as a process: killed at random, called again with one thing changed, and compared with one left alone.

Whatever happened before, there are the rows of an undisturbed run, or an error.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from qdrant_client import QdrantClient, models

from llama_index_refine.commands.cli import app
from tests.chat_server import ChatServer, Question, Reply, yes
from tests.docs_server import DocsServer
from tests.small_index import WordEmbedding
from tests.toy_data import write_folder

pytest.importorskip("llama_index.embeddings.openai", reason="needs: pip install llama-index-embeddings-openai")
if sys.platform == "win32":
    pytest.skip("needs processes that can be forked and killed", allow_module_level=True)
processes = pytest.importorskip("tests.commands.processes")

ANIMALS = ("cat", "dog", "owl", "horse", "cow", "hen")
DOES = ("sleeps", "eats", "runs", "waits", "sings")
WHERE = ("here", "there", "outside", "at home")
TEXTS = [f"the {animal} {does} {where}" for animal in ANIMALS for does in DOES for where in WHERE]


def judge(question: Question) -> Reply:
    """Cats for the first query or label, owls for the others; another model, or other arguments, say otherwise."""
    if "Choose a Document" in question.prompt or "Answer:" in question.prompt:
        return Reply("Doc: 2, Relevance: 9\nDoc: 1, Relevance: 3")
    wanted = "cat" if "cat" in question.query else "owl"
    other = question.body["model"] != "tiny" or "seed" in question.body or "strictly" in question.prompt
    return yes(0.9 if (("dog" if other else wanted) in question.document) else 0.1)


def write_collection(path: Path, texts: list[str], name: str = "notes") -> None:
    client = QdrantClient(path=str(path))
    if not client.collection_exists(name):
        client.create_collection(name, models.VectorParams(size=48, distance=models.Distance.COSINE))
    points = [
        models.PointStruct(
            id=number,
            vector=WordEmbedding().get_text_embedding(text),
            payload={"text": text, "title": text.split()[1]},
        )
        for number, text in enumerate(texts, 1)
    ]
    client.upsert(name, points)
    client.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    started = ChatServer(judge).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def embeddings() -> Iterator[DocsServer]:
    with DocsServer() as started:
        yield started


class Call:
    """A command on files of its own folder, and what it writes."""

    def __init__(self, name: str, folder: Path, server: ChatServer, embeddings: DocsServer) -> None:
        self.name, self.folder, self.server = name, folder, server
        llm = {"--llm-base-url": server.url, "--llm-model": "tiny"}
        where = {"--collection": "notes", "--path": "qdrant", "--text-key": "text", "--feedback-top-k": "10"}
        where |= {"--embed-model": "openai:words", "--embed-base-url": embeddings.url}
        own: dict[str, dict[str, Any]] = {
            "select": {"--query": ["a cat", "an owl"], "--out": "rows.csv", **where},
            "classify": {"--labels": "labels.json", "--out": "rows.jsonl", **where},
            "bench": {
                "--out": "run",
                "--cache": "cache",
                "--embed-model": "toy",
                "--teacher": ["gold", "llm"],
                "--peers": "rerank,llm rerank",
                "--feedback-top-k": "5",
                "--max-queries": "2",
                "--no-plots": "",
            },
        }
        self.options = {**own[name], **llm}

    def run(self, folder: Path, changed: dict[str, Any] | None = None, kill_at: int = 0) -> Any:
        words: list[object] = ["bench", "run", folder / "toy"] if self.name == "bench" else [self.name]
        for option, value in {**self.options, **(changed or {})}.items():
            for one in value if isinstance(value, list) else [value]:
                inside = (
                    folder / one if option in ("--path", "--labels", "--out", "--texts", "--model", "--cache") else one
                )
                words += [option, inside] if one != "" else [option]
        return processes.run(words, folder, kill_at)

    def rows(self, folder: Path, out: str | None = None) -> object:
        """What was written, without times."""
        path = folder / (out or self.options["--out"])
        if self.name != "bench":
            return path.read_bytes()
        cells = json.loads((path / "run.json").read_text())["cells"]
        kept = ("per_query", "llm_calls")
        return [
            {**cell, "measured": {name: [one[key] for key in kept] for name, one in cell["measured"].items()}}
            for cell in cells
        ]

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.folder, self.folder.with_name(name)))


@pytest.fixture(params=["select", "classify", "bench"])
def call(request, tmp_path: Path, server: ChatServer, embeddings: DocsServer) -> Call:
    return prepared(request.param, tmp_path, server, embeddings)


def prepared(name: str, tmp_path: Path, server: ChatServer, embeddings: DocsServer) -> Call:
    folder = tmp_path / "base"
    folder.mkdir()
    if name == "bench":
        write_folder(folder / "toy")
    else:
        write_collection(folder / "qdrant", TEXTS)
        (folder / "labels.json").write_text(json.dumps({"felines": "a cat", "birds": "an owl"}))
        (folder / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS[::10]))
    return Call(name, folder, server, embeddings)


@pytest.mark.timeout(1200)
def test_killed_at_any_moment_it_goes_on_to_the_same_rows(call: Call):
    undisturbed = call.copy("undisturbed")
    whole = call.run(undisturbed)
    assert whole.status == 0, whole.said
    assert whole.touched > 4
    rows = call.rows(undisturbed)
    chance = random.Random(27)
    for trial in range(2):
        folder = call.copy(f"killed{trial}")
        # Each goes on and is killed once more, before it may end.
        for kill_at in (chance.randint(2, whole.touched), chance.randint(1, whole.touched)):
            ended = call.run(folder, kill_at=kill_at)
            assert ended.status in (0, -signal.SIGKILL), ended.said
        ended = call.run(folder)
        assert ended.status == 0, ended.said
        assert call.rows(folder) == rows


@pytest.mark.timeout(1200)
def test_killed_while_the_llm_is_asked_it_goes_on_to_the_same_rows(call: Call, monkeypatch: pytest.MonkeyPatch):
    undisturbed, folder = call.copy("undisturbed"), call.copy("killed")
    before = call.server.calls
    assert call.run(undisturbed).status == 0
    calls = call.server.calls - before
    chance, left = random.Random(28), 0

    def dying(question: Question) -> Reply:
        nonlocal left
        left -= 1
        if left == 0:
            import multiprocessing

            (process,) = multiprocessing.active_children()
            os.kill(process.pid, signal.SIGKILL)
        return judge(question)

    monkeypatch.setattr(call.server, "reply", dying)
    for _ in range(2):
        left = chance.randint(1, calls)
        assert call.run(folder).status in (0, -signal.SIGKILL)
    left = 0
    assert call.run(folder).status == 0
    assert call.rows(folder) == call.rows(undisturbed)


# What was refused is begun anew for so many options of a command; it is the same for all of them.
BEGUN_ANEW = 4
# One option after another, with what it is changed to; None where it is where the rows are, or no part of them.
SHARED: dict[str, Any] = {
    "--collection": "others",
    "--url": "http://127.0.0.1:9",
    "--api-key": "a-key",
    "--path": "copied",
    "--text-key": "title",
    "--vector-name": "dense",
    "--embed-model": "openai:other",
    "--embed-base-url": None,
    "--llm-base-url": None,
    "--llm-model": "another",
    "--llm-kwargs": '{"seed": 7}',
    "--instruction": "strictly",
    "--feedback-top-k": "12",
    "--out": None,
}
CHANGED: dict[str, dict[str, Any]] = {
    "select": {
        **SHARED,
        "--query": ["a cat", "an owl", "a dog"],
        "--precision": "0.5",
        "--recall": "0.5",
        "--confidence": "0.8",
        "--budget": "12",
        "--keep": None,
    },
    "classify": {
        **SHARED,
        "--labels": "other.json",
        "--texts": "texts.txt",
        "--model": "mine.safetensors",
        "--none-of-these": "",
    },
    "bench": {
        "--out": None,
        "--cache": "another",
        "--embed-model": "other",
        "--embed-base-url": None,
        "--teacher": ["llm", "noisy"],
        "--peers": "rocchio,rerank",
        "--feedback-top-k": "6",
        "--rerank-times": "2",
        "--max-queries": "3",
        "--seed": "2",
        "--llm-base-url": None,
        "--llm-model": "another",
        "--llm-kwargs": '{"seed": 7}',
        "--no-plots": None,
    },
}


def options_of(name: str) -> list[Any]:
    commands: Any = typer.main.get_command(app)
    command = commands.commands[name]
    command = command.commands["run"] if name == "bench" else command
    return [
        parameter for parameter in command.params if parameter.param_type_name == "option" and parameter.name != "help"
    ]


@pytest.mark.parametrize("name", CHANGED)
def test_every_option_is_changed_below(name: str):
    """A new option of these commands decides rows until somebody has looked."""
    for option in options_of(name):
        assert {*option.opts, *option.secondary_opts} & set(CHANGED[name]), f"{name} {option.opts} is not looked at"


def same_or_error(call: Call, folder: Path, changed: dict[str, Any], rows_before: object, anew: bool) -> bool:
    """The rows are those of a run left alone, or an error says which files are in the way.

    :param anew: whether to remove these, and to start again.
    :return: whether files were in the way.
    """
    ended = call.run(folder, changed)
    if ended.status == 0:
        fresh = folder.with_name(f"{folder.name}-fresh")
        for made in ("rows.csv", "rows.csv.run", "rows.jsonl", "rows.jsonl.run", "rows.jsonl.safetensors"):
            (folder / "kept" / made).unlink(missing_ok=True)
        shutil.copytree(folder / "kept", fresh)
        alone = call.run(fresh, changed)
        assert alone.status == 0, alone.said
        assert call.rows(folder) == call.rows(fresh)
        return False
    assert ended.status == 1, ended.said
    assert "Error: " in ended.said
    assert call.rows(folder) == rows_before
    in_the_way = "start again" in ended.said
    if in_the_way:
        # Remove the files that the message names, and no others: then the rows are those of a run left alone.
        named = [word.strip(",") for word in ended.said.rpartition("remove ")[2].split() if str(folder) in word]
        assert named
        assert all(Path(file).is_file() for file in named)
    if in_the_way and anew:
        for file in named:
            Path(file).unlink()
        shutil.copytree(folder / "kept", fresh := folder.with_name(f"{folder.name}-fresh"))
        again, alone = call.run(folder, changed), call.run(fresh, changed)
        assert again.status == alone.status, again.said + alone.said
        assert again.status or call.rows(folder) == call.rows(fresh)
    return in_the_way


@pytest.fixture(scope="module", params=list(CHANGED))
def finished(request, tmp_path_factory, server: ChatServer, embeddings: DocsServer) -> tuple[Call, object]:
    """A command that has ended, with other things to name beside it."""
    call = prepared(request.param, tmp_path_factory.mktemp("finished"), server, embeddings)
    folder = call.folder
    if call.name == "bench":
        with np.load(folder / "toy" / "toy.npz") as arrays:
            np.savez(folder / "toy" / "other.npz", corpus=arrays["corpus"][::-1], queries=arrays["queries"])
    else:
        write_collection(folder / "qdrant", TEXTS[::2], "others")
        write_collection(folder / "copied", TEXTS[::3])
        (folder / "other.json").write_text(json.dumps({"felines": "an owl", "birds": "a cat"}))
    shutil.copytree(folder, folder / "kept")
    ended = call.run(folder)
    assert ended.status == 0, ended.said
    return call, call.rows(folder)


@pytest.mark.timeout(1800)
def test_one_option_changed(finished: tuple[Call, object], subtests_of_options: Callable[..., Any]):
    call, rows = finished
    begun_anew = 0
    for option, value in CHANGED[call.name].items():
        if value is not None:
            with subtests_of_options(call.name, option):
                folder, anew = call.copy(f"with{option}"), begun_anew < BEGUN_ANEW
                begun_anew += same_or_error(call, folder, {option: value}, rows, anew)


@pytest.fixture
def subtests_of_options() -> Callable[..., Any]:
    from contextlib import contextmanager

    @contextmanager
    def named(command: str, option: str) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"{command}, {option} changed: {error}") from error

    return named
