"""The commands `select` and `classify` on a real collection, with an LLM on loopback."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import Result
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from llama_index_refine import Calibration
from llama_index_refine.commands.cli import app
from llama_index_refine.commands.rows import Rows
from llama_index_refine.evaluation.embeddings import SentenceTransformerEmbedding
from tests.chat_server import ChatServer, error, yes

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


def test_a_selection_that_is_kept_tells_new_texts(path, asked, tmp_path):
    kept, texts, out = tmp_path / "kept", tmp_path / "new.txt", tmp_path / "matched.jsonl"
    options = ["--query", "lost or stolen card", "--out", str(tmp_path / "found.jsonl"), "--keep", str(kept)]
    assert call("select", path, asked, *options).exit_code == 0
    calls = asked.calls
    texts.write_text("My credit card was lost at home.\n\nWhat is the exchange rate for rupees?\n")
    arguments = ["match", "--selection", str(kept / "1.safetensors"), "--texts", str(texts), "--out", str(out)]
    for new in (0, 1):
        if new:
            texts.write_text(texts.read_text() + "My debit card was stolen on the train.\n")
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "NO_COLOR": "1"})
        assert result.exit_code == 0, result.output
        assert [(row["query"], row["id"]) for row in lines(out)] == [
            ("lost or stolen card", name) for name in ("1", "4")[: 1 + new]
        ]
    assert all(row["probability"] > 0.5 for row in lines(out))
    assert asked.calls == calls
    other = ["--selection", str(texts), "--out", str(tmp_path / "other.csv")]
    result = CliRunner().invoke(app, [*arguments, *other])
    assert result.exit_code == 1
    assert "is not a file that Selection.save wrote" in "".join(result.output.splitlines())
    (kept / "1.safetensors").unlink()
    result = call("select", path, asked, *options, "--query", "exchange rate")
    assert result.exit_code == 1
    assert "--keep lacks" in result.output
    assert "is not a file" in CliRunner().invoke(app, arguments).output


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
    assert "exists, and this command did not write it" in result.output
    assert other.read_text() == "precious"
    result = call("select", path, asked, "--query", "q", "--out", str(tmp_path / "a.txt"))
    assert "must be named .jsonl or .csv" in result.output
    result = call("select", path, asked, "--query", "q", "--out", str(tmp_path / "no" / "a.csv"))
    assert "in a folder that does not exist" in result.output


def test_rows_of_other_options_are_not_mixed(tmp_path):
    out = tmp_path / "a.csv"
    Rows(out, ["a"], {"precision": 0.9}).add([{"a": 1}], "one")
    assert Rows(out, ["a"], {"precision": 0.9}).done == ["one"]
    with pytest.raises(ValueError, match="was started with other options"):
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
    assert "is not a file" in call("classify", path, asked, "--labels", "nowhere", "--out", out).output


def test_a_dead_llm_is_no_teacher(path, chat_server, tmp_path):
    labels, out = tmp_path / "labels.json", tmp_path / "out.jsonl"
    labels.write_text(json.dumps({"loss": "lost or stolen card", "money": "exchange rate"}))
    chat_server.reply = lambda question: error(503)
    for command, options in (("classify", ["--labels", str(labels)]), ("select", ["--query", "lost or stolen card"])):
        result = call(command, path, chat_server, *options, "--out", str(out))
        assert result.exit_code == 1
        assert "the teacher graded 0 of" in result.output
        assert sorted(file.name for file in tmp_path.iterdir()) == ["labels.json"]


def taught(path: Path, server: ChatServer, folder: Path, *options: str, texts: bytes = b"a stolen card\n") -> Result:
    """Classify texts."""
    (folder / "labels.json").write_text(json.dumps({"loss": "lost or stolen card", "money": "exchange rate"}))
    if not (folder / "texts.txt").exists():
        (folder / "texts.txt").write_bytes(texts)
    files = {"--labels": "labels.json", "--texts": "texts.txt", "--out": "out.jsonl"}
    named = [word for option, name in files.items() if option not in options for word in (option, str(folder / name))]
    return call("classify", path, server, *named, *options)


def test_lines_have_their_own_numbers_and_a_row_each(path, asked, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_bytes("a stolen card\r\n\r\nthe rate\u2028of yen\r\n".encode("utf-16"))
    assert taught(path, asked, tmp_path).exit_code == 0
    with texts.open("a", encoding="utf-16-le") as file:
        file.write("\nlost\x0ctoday")
    result = taught(path, asked, tmp_path)
    assert result.exit_code == 0, result.output
    rows = [(row["id"], row["text"]) for row in lines(tmp_path / "out.jsonl")]
    assert rows == [("1", "a stolen card"), ("3", "the rate\u2028of yen"), ("5", "lost\x0ctoday")]
    texts.write_text("another\n\nthe rate\u2028of yen\n", encoding="utf-8")
    result = taught(path, asked, tmp_path)
    assert result.exit_code == 1
    assert "--texts has changed since the rows were written: 2 of them" in result.output
    assert [(row["id"], row["text"]) for row in lines(tmp_path / "out.jsonl")] == rows


def test_texts_of_several_lines_in_a_csv_file(path, asked, tmp_path):
    table = tmp_path / "texts.csv"
    table.write_text('name,text\na,"lost\nor stolen"\nb,\nc,"the rate, today"\n', encoding="utf-8")
    result = taught(path, asked, tmp_path, "--texts", str(table))
    assert result.exit_code == 0, result.output
    found = [(row["id"], row["text"]) for row in lines(tmp_path / "out.jsonl")]
    assert found == [("2", "lost\nor stolen"), ("5", "the rate, today")]
    table.write_text("name,said\na,b\n")
    result = taught(path, asked, tmp_path, "--texts", str(table), "--out", str(tmp_path / "other.csv"))
    assert "has the columns name, said: call one of them text" in result.output


def test_what_taught_the_classifier_is_known_when_its_rows_are_gone(path, asked, tmp_path):
    assert taught(path, asked, tmp_path).exit_code == 0
    calls = asked.calls
    for name in ("out.jsonl", "out.jsonl.run"):
        (tmp_path / name).unlink()
    result = taught(path, asked, tmp_path, "--instruction", "Be strict.")
    assert result.exit_code == 1
    said = "".join(result.output.split())
    assert "--instructionwasnotgivenandis" in said
    assert f"remove{tmp_path / 'out.jsonl.safetensors'}tostartagain" in said
    (tmp_path / "labels.json").unlink()
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"loss": "something lost", "money": "exchange rate"}))
    result = taught(path, asked, tmp_path, "--labels", str(other))
    assert result.exit_code == 1
    assert "--labels" in result.output
    assert asked.calls == calls
    assert taught(path, asked, tmp_path).exit_code == 0
    assert asked.calls == calls


def test_documents_that_changed_or_are_gone_are_told(tmp_path, asked):
    def write(texts: dict[int, str]) -> None:
        vectors = SentenceTransformerEmbedding().get_text_embedding_batch(list(texts.values()))
        client = QdrantClient(path=str(tmp_path / "qdrant"))
        if not client.collection_exists("bank"):
            client.create_collection("bank", models.VectorParams(size=384, distance=models.Distance.COSINE))
        client.upsert(
            "bank",
            [
                models.PointStruct(id=number, vector=vector, payload={"text": texts[number]})
                for number, vector in zip(texts, vectors, strict=True)
            ],
        )
        client.close()

    write({2 * number: text for number, text in enumerate(TEXTS)})
    everything = ["--labels", str(tmp_path / "labels.json"), "--out", str(tmp_path / "out.csv")]
    (tmp_path / "labels.json").write_text(json.dumps({"loss": "lost or stolen card", "money": "exchange rate"}))
    assert call("classify", tmp_path / "qdrant", asked, *everything).exit_code == 0
    write({1: "My card is lost.", 3: "The rate of yen."})
    assert call("classify", tmp_path / "qdrant", asked, *everything).exit_code == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        ids = [int(row["id"]) for row in csv.DictReader(file)]
    assert sorted(ids) == sorted([*range(0, 2 * len(TEXTS), 2), 1, 3])
    write({0: "something else"})
    result = call("classify", tmp_path / "qdrant", asked, *everything)
    assert result.exit_code == 1
    assert "the collection has changed since the rows were written: 1 of them" in result.output


def test_secrets_are_in_none_of_the_files(path, asked, tmp_path):
    kwargs = json.dumps({"extra_headers": {"X-Key": "a-secret"}})
    result = taught(path, asked, tmp_path, "--llm-kwargs", kwargs)
    assert result.exit_code == 0, result.output
    assert not any(b"a-secret" in file.read_bytes() for file in tmp_path.iterdir())
    result = taught(path, asked, tmp_path, "--llm-kwargs", '{"seed": 1}')
    assert result.exit_code == 1
    assert "--llm-kwargs" in result.output
    assert "a-secret" not in result.output


def test_calibrate_goes_on_where_it_was_and_proposes_what_to_judge(path, tmp_path, asked):
    ask, grades, kept = tmp_path / "ask.csv", tmp_path / "grades.jsonl", tmp_path / "one.safetensors"
    done = call(
        "calibrate",
        path,
        asked,
        "--query",
        "lost or stolen",
        "--query",
        "exchange rate",
        "--propose",
        "12",
        "--to",
        str(ask),
    )
    assert done.exit_code == 0, done.output
    assert "at most" in done.output
    with ask.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows[:8]:
        row["relevant"] = str(int("lost" in row["text"] or "stolen" in row["text"]))
    filled = tmp_path / "filled.csv"

    def fill():
        with filled.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)

    fill()
    options = ["--labels", str(filled), "--out", str(grades), "--save", str(kept)]
    first = call("calibrate", path, asked, *options)
    assert first.exit_code == 0, first.output
    assert "8 labels; 8 grades to ask for, 0 known" in first.output
    assert "area under the ROC curve" in first.output
    for row in rows[8:]:
        row["relevant"] = str(int("lost" in row["text"] or "stolen" in row["text"]))
    fill()
    again = call("calibrate", path, asked, *options)
    assert "12 labels; 4 grades to ask for, 8 known" in again.output
    assert len(Calibration.load(kept).labels) == 12
    wrong = call("calibrate", path, asked, "--propose", "3")
    assert wrong.exit_code == 1
    assert "--labels" in wrong.output
