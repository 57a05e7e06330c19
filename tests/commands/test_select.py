"""The commands `select` and `classify` on a real collection, with an LLM on loopback."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import Result
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from llama_index_refine.commands.cli import app
from llama_index_refine.commands.rows import Rows
from llama_index_refine.evaluation.embeddings import SentenceTransformerEmbedding
from tests.chat_server import ChatServer, yes

TEXTS = [
    *(f"My {card} was {lost} {when}." for card in ("card", "debit card", "credit card") for lost in ("lost", "stolen")
      for when in ("today", "on holiday", "last week", "at the station")),
    *(f"What is the {rate} for {money}?" for rate in ("exchange rate", "rate of exchange", "conversion rate")
      for money in ("dollars", "euros", "pounds", "yen", "francs", "crowns")),
    *(f"How do I {top} my account with {means}?" for top in ("top up", "load")
      for means in ("a cheque", "cash", "my card", "a transfer", "vouchers", "my phone")),
]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank") / "qdrant"
    client = QdrantClient(path=str(folder))
    client.create_collection("bank", models.VectorParams(size=384, distance=models.Distance.COSINE))
    vectors = SentenceTransformerEmbedding().get_text_embedding_batch(TEXTS)
    client.upsert(
        "bank",
        [
            models.PointStruct(id=number, vector=vector, payload={"text": text, "number": number})
            for number, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
        ],
    )
    client.close()
    return folder


@pytest.fixture
def asked(chat_server: ChatServer) -> ChatServer:
    def judge(question):
        loss, money = "stolen" in question.document or "lost" in question.document, "rate" in question.document
        return yes(0.95 if (loss if "lost or stolen" in question.query else money) else 0.05)

    chat_server.reply = judge
    return chat_server


def call(command: str, path: Path, server: ChatServer | None, *arguments: str) -> Result:
    names = {"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None, "COLUMNS": "80", "NO_COLOR": "1"}
    where = ["--collection", "bank", "--path", str(path), "--text-key", "text", "--feedback-top-k", "10"]
    llm = ["--llm-base-url", server.url, "--llm-model", "tiny"] if server else []
    return CliRunner().invoke(app, [command, *where, *llm, *arguments], env=names)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_writes_what_belongs_with_its_probability(path, asked, tmp_path):
    out = tmp_path / "found.jsonl"
    result = call("select", path, asked, "--query", "lost or stolen card", "--out", str(out))
    assert result.exit_code == 0, result.output
    rows = lines(out)
    right = [row for row in rows if "lost" in row["text"] or "stolen" in row["text"]]
    assert len(right) >= 20
    assert len(right) / len(rows) > 0.8
    assert [row["probability"] for row in rows] == sorted((row["probability"] for row in rows), reverse=True)
    assert rows[0]["metadata"]["number"] == int(rows[0]["id"])
    assert "precision" in result.output
    assert "not certified: no target was set" in result.output


def test_goes_on_where_it_was_stopped(path, asked, tmp_path):
    out = tmp_path / "found.csv"
    first = ["--query", "lost or stolen card", "--out", str(out)]
    assert call("select", path, asked, *first).exit_code == 0
    whole, calls = out.read_bytes(), asked.calls
    # As it is when the program is killed while it writes.
    out.write_bytes(whole + b"half a row")
    result = call("select", path, asked, *first, "--query", "exchange rate")
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(whole)
    assert b"half a row" not in out.read_bytes()
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["query"] for row in rows} == {"lost or stolen card", "exchange rate"}
    assert json.loads(rows[0]["metadata"])["number"] == int(rows[0]["id"])
    assert asked.calls > calls
    before = asked.calls
    assert call("select", path, asked, *first, "--query", "exchange rate").exit_code == 0
    assert asked.calls == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "2"], "precision must be between 0 and 1"),
        (["--precision", "0.9", "--recall", "0.9"], "precision and recall are both given"),
        (["--budget", "3"], "budget must be at least feedback_top_k"),
    ],
)
def test_bad_targets_are_one_line(path, asked, tmp_path, options, said):
    result = call("select", path, asked, "--query", "q", "--out", str(tmp_path / "a.jsonl"), *options)
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_files_that_are_not_its_own_are_left_alone(path, asked, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("precious")
    result = call("select", path, asked, "--query", "q", "--out", str(other))
    assert result.exit_code == 1
    assert "is there and not from this command" in result.output
    assert other.read_text() == "precious"
    result = call("select", path, asked, "--query", "q", "--out", str(tmp_path / "a.txt"))
    assert "must be named .jsonl or .csv" in result.output
    result = call("select", path, asked, "--query", "q", "--out", str(tmp_path / "no" / "a.csv"))
    assert "in a folder that is not there" in result.output


def test_rows_of_other_options_are_not_mixed(tmp_path):
    out = tmp_path / "a.csv"
    Rows(out, ["a"], {"precision": 0.9}).add([{"a": 1}], "one")
    assert Rows(out, ["a"], {"precision": 0.9}).done == ["one"]
    with pytest.raises(ValueError, match="was begun with other options"):
        Rows(out, ["a"], {"precision": 0.8})


def test_classifies_the_collection_and_texts(path, asked, tmp_path):
    labels, out = tmp_path / "labels.json", tmp_path / "labelled.jsonl"
    labels.write_text(json.dumps({"loss": "lost or stolen card", "money": "exchange rate"}))
    result = call("classify", path, asked, "--labels", str(labels), "--out", str(out))
    assert result.exit_code == 0, result.output
    rows = lines(out)
    assert [row["text"] for row in sorted(rows, key=lambda row: int(row["id"]))] == TEXTS
    told = [row for row in rows if any(word in row["text"] for word in ("lost", "stolen", "rate"))]
    right = sum(("rate" in row["text"]) == (row["label"] == "money") for row in told)
    assert right / len(told) > 0.9
    assert {row["label"] for row in rows} == {"loss", "money"}
    assert all(0 <= row["probability"] <= 1 for row in rows)
    # The classifier is kept: other texts cost no call.
    calls, texts = asked.calls, tmp_path / "texts.txt"
    texts.write_text("Somebody stole my card!\n\nHow many yen do I get for a dollar?\n")
    options = ["--labels", str(labels), "--texts", str(texts), "--model", f"{out}.safetensors"]
    result = call("classify", path, None, *options, "--out", str(tmp_path / "texts.csv"))
    assert result.exit_code == 0, result.output
    assert asked.calls == calls
    with (tmp_path / "texts.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["loss", "money"]


def test_labels_that_cannot_be_read_are_one_line(path, asked, tmp_path):
    file, out = tmp_path / "labels.txt", str(tmp_path / "a.jsonl")
    for content, said in (("a\na\n", "labels holds duplicates"), ("a\n", "labels must be at least 2")):
        file.write_text(content)
        result = call("classify", path, asked, "--labels", str(file), "--out", out)
        assert result.exit_code == 1
        assert said in result.output
        for made in tmp_path.glob("a.jsonl*"):
            made.unlink()
    broken = tmp_path / "labels.json"
    broken.write_text("{")
    assert "is not JSON" in call("classify", path, asked, "--labels", str(broken), "--out", out).output
    broken.write_text("3")
    assert "must hold an object" in call("classify", path, asked, "--labels", str(broken), "--out", out).output
    assert "is no file" in call("classify", path, asked, "--labels", "nowhere", "--out", out).output
