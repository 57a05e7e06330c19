"""The recorded grades of served LLMs, and what is made of them without a model."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from results import llm, sizes, wordings
from results.recorded import GRADES, Kept, RecordedGrader
from tests.chat_server import ChatServer, Question, error, yes
from tests.toy_data import write_folder

DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = sorted(GRADES.glob("*.tsv.gz"))


def topic_of(question: Question) -> bool:
    """Whether the document is of the topic that the query asks about."""
    query, document = question.query, question.document
    return document.startswith(f"Topic {query.split()[-1].rstrip('?')} ")


def good(question: Question):
    return yes(0.8 if topic_of(question) else 0.3)


@pytest.fixture
def server():
    server = ChatServer(good).start()
    yield server
    server.stop()


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["llm", *map(str, arguments)])
    llm.main()


def record(monkeypatch, server: ChatServer, toy: Path, grades: Path, *more: str) -> None:
    options = ["--model", "toy-model", "--base-url", server.url, "--grades", grades, "--queries", "2", *more]
    run(monkeypatch, "record", f"{toy}:toy", *options)


@pytest.fixture
def toy(tmp_path) -> Path:
    return write_folder(tmp_path / "toy")


def test_goes_on_where_it_stopped(monkeypatch, server, toy, tmp_path):
    asked: list[tuple[str, str]] = []

    def count(question: Question):
        asked.append((question.query, question.document))
        return good(question)

    def stopped(question: Question):
        return count(question) if len(asked) < 25 else error(400)

    server.reply = stopped
    with pytest.raises(SystemExit, match="gives no grades"):
        record(monkeypatch, server, toy, tmp_path / "grades", "--queries", "1")
    before = Kept.load(tmp_path / "grades", "toy-model", "toy").grades
    assert 20 <= len(before) <= 25
    server.reply = count
    record(monkeypatch, server, toy, tmp_path / "grades", "--queries", "1")
    kept = Kept.load(tmp_path / "grades", "toy-model", "toy")
    assert len(asked) == len(set(asked)) == len(kept.grades)
    assert before.items() <= kept.grades.items()
    assert kept.cost["calls"] >= len(kept.grades)
    # Without a break, the same bytes.
    record(monkeypatch, server, toy, tmp_path / "again", "--queries", "1")
    assert kept.path.read_bytes() == (tmp_path / "again" / kept.path.name).read_bytes()


def test_tables_need_no_model(monkeypatch, server, toy, tmp_path, capsys):
    record(monkeypatch, server, toy, tmp_path / "grades")
    capsys.readouterr()
    options = ["--model", "toy-model", "--grades", tmp_path / "grades", "--queries", "2", "--out", tmp_path / "page.md"]
    run(monkeypatch, "tables", f"{toy}:toy", *options)
    page = (tmp_path / "page.md").read_text()
    assert page.strip() == capsys.readouterr().out.strip()
    assert "| toy:toy | 2 |" in page
    assert "100 % | 0 % | 1.00 | 1.00 |" in page
    assert "are not kept" not in page
    # What is asked for and not kept is counted.
    kept = Kept.load(tmp_path / "grades", "toy-model", "toy")
    first = {pair for row in (0, 1) for pair in _first(toy, row)}
    kept.grades = {pair: grade for pair, grade in kept.grades.items() if pair in first}
    kept.save()
    run(monkeypatch, "tables", f"{toy}:toy", *options)
    assert "toy:toy, refined, all grades: " in (tmp_path / "page.md").read_text()


def test_says_how_sure_a_gain_is(tmp_path):
    ranked = {"first": ["a", "b"], "second": ["b", "a"], "third": ["a", "b"]}
    best = {query: ["a", "b"] for query in ranked}
    labels = {query: {"a": 1} for query in ranked}
    dataset = SimpleNamespace(qrels=labels)
    rankings = {"no feedback": ranked, "reranked": {query: ["b", "a"] for query in ranked}, "refined": best}
    one = llm.Measured(SimpleNamespace(dataset=dataset), None, [], rankings, {}, {}, [])  # type: ignore[arg-type]
    # One of three queries gains 1 - 1 / log2(3).
    gains = np.array([0.0, 1 - 1 / np.log2(3), 0.0])
    error = gains.std(ddof=1) / np.sqrt(3)
    assert llm.difference_row("toy", one) == ["toy", "no feedback", f"{gains.mean():+.3f}", f"{error:.3f}", "1", "0"]


def _first(toy: Path, row: int) -> list[tuple[str, str]]:
    corpus = llm.opened(f"{toy}:toy", 2)
    documents = corpus.dataset.documents
    return [(corpus.queries[row].id, documents[at].id) for at in llm.nearest(corpus, row)[: llm.K]]


def test_says_what_is_missing(monkeypatch, toy, tmp_path):
    with pytest.raises(SystemExit, match="no query has its first 20 documents graded by toy-model"):
        run(monkeypatch, "tables", f"{toy}:toy", "--model", "toy-model", "--grades", tmp_path)
    with pytest.raises(TypeError, match="LabelledQuery"):
        RecordedGrader(Kept(tmp_path / "x")).grade("a query", [])  # type: ignore[arg-type]


def test_ways_of_asking_are_kept_apart_and_compared(monkeypatch, server, toy, tmp_path):
    asked: list[str] = []

    def reply(question: Question):
        asked.append(question.prompt)
        if "Does this document answer" in question.prompt:
            return yes(0.5)
        return good(question)

    server.reply = reply
    ways = ("yes_no", "does it answer", "document first")
    shared = ["--model", "toy-model", "--grades", tmp_path / "grades", "--queries", "2"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["wordings", *map(str, ["record", f"{toy}:toy", *shared, "--base-url", server.url, "--only", *ways])],
    )
    wordings.main()
    calls = len(asked)
    wordings.main()
    assert len(asked) == calls
    kept = [Kept.load(tmp_path / "grades", "toy-model", "toy", name) for name in ways]
    assert len(kept[0].grades) == len(kept[1].grades) == len(kept[2].grades) == calls / 3
    out = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["wordings", *map(str, ["tables", f"{toy}:toy", *shared, "--out", out])])
    wordings.main()
    rows = {line.split(" | ")[0].strip("| "): line for line in out.read_text().splitlines() if " | " in line}
    assert "1.00 (1) | 1.00 (1)" in rows["yes no"]
    assert "0.50 (1) | 0.50 (1)" in rows["does it answer"]
    assert "document first" in rows
    assert "scale of four" not in rows


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_kept_grades_can_be_read(path):
    model, collection, *asked = path.name.removesuffix(".tsv.gz").split("--")
    kept = Kept.load(GRADES, model, collection, *(prompt.replace("-", " ") for prompt in asked))
    assert kept.grades
    assert all(0 <= grade <= 1 for grade in kept.grades.values())
    assert set(kept.about) == {"server", "machine", "date"}
    written = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert written[0].split("\t") == ["query", "document", "grade", "prompt"]
    assert written[1:] == sorted(written[1:], key=lambda line: line.split("\t")[:2])


@pytest.mark.skipif(not (DATA / "argkp").is_dir(), reason="the collection is not here")
def test_a_table_is_made_from_kept_grades(monkeypatch, tmp_path, capsys):
    folder = part_of(DATA / "argkp", "q8", tmp_path / "argkp")
    options = ["--model", "qwen2.5-coder-1.5b-q4_k_m", "--queries", "1", "--out", tmp_path / "page.md"]
    run(monkeypatch, "tables", folder, *options)
    assert "| argkp | 1 | " in capsys.readouterr().out


def part_of(folder: Path, query: str, part: Path) -> Path:
    """Write one query of a collection, and what it searches."""
    part.mkdir()
    lines = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("corpus", "queries")}
    at = next(n for n, line in enumerate(lines["queries"]) if json.loads(line)["_id"] == query)
    group = json.loads(lines["queries"][at])["group"]
    kept = {
        "corpus": [n for n, line in enumerate(lines["corpus"]) if json.loads(line)["group"] == group],
        "queries": [at],
    }
    for name, rows in kept.items():
        (part / f"{name}.jsonl").write_text("\n".join(lines[name][row] for row in rows))
    labels = (folder / "qrels.tsv").read_text().splitlines()
    known = {json.loads(lines["corpus"][row])["_id"] for row in kept["corpus"]}
    chosen = [line for line in labels[1:] if line.split("\t")[0] == query and line.split("\t")[1] in known]
    (part / "qrels.tsv").write_text("\n".join([labels[0], *chosen]))
    with np.load(folder / "minilm.npz") as vectors:
        np.savez(part / "minilm.npz", **{name: vectors[name][rows] for name, rows in kept.items()})
    return part


def test_models_are_compared_on_the_queries_that_all_have_graded(monkeypatch, server, toy, tmp_path, capsys):
    grades, page, picture = tmp_path / "grades", tmp_path / "sizes.md", tmp_path / "sizes.png"
    record(monkeypatch, server, toy, grades)
    capsys.readouterr()
    large = Kept.load(grades, "toy-model", "toy")
    small = Kept(large.path.with_name("coin--toy.tsv.gz"))
    one = {pair for pair in large.grades if pair[0] == sorted(large.grades)[0][0]}
    small.grades = {pair: 0.25 + 0.5 * (int(pair[1][-1]) % 2) for pair in one}
    small.save()
    models = ["--model", "coin", "--model", "toy-model", "--grades", grades, "--queries", "2"]
    command = ["sizes", f"{toy}:toy", *models, "--out", page, "--plot", picture]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    sizes.main()
    text = page.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "toy:toy 1." in text
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in text.splitlines() if " | " in line}
    assert rows["toy-model"][0] == "1.00"
    assert float(rows["coin"][0]) < 0.9
    # The first search is the same for both.
    assert rows["coin"][1] == rows["toy-model"][1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", [*map(str, command[:2]), "--model", "nobody", "--grades", str(grades)])
    with pytest.raises(SystemExit):
        sizes.main()
    assert "no query of these collections was graded by all of nobody" in capsys.readouterr().err
