"""The command `search` on real collections that no LlamaIndex wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from llama_index_refine.commands.cli import app
from llama_index_refine.evaluation.embeddings import SentenceTransformerEmbedding
from tests.chat_server import ChatServer, Reply, error, yes
from tests.docs_server import DocsServer
from tests.qdrant_server import Fault, QdrantServer
from tests.small_index import WordEmbedding

SECRET = "sk-not-to-be-seen-0123456789"

PAPERS = [
    *(f"The {animal} sleeps in the {place}." for animal in ("cat", "dog", "horse") for place in ("house", "garden")),
    *(f"Interest rates {move} in {month}." for move in ("rise", "fall") for month in ("May", "June", "July")),
    *(f"Cats hunt {prey} at {time}." for prey in ("mice", "birds") for time in ("night", "noon")),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("papers") / "qdrant"
    client = QdrantClient(path=str(folder))
    size = models.VectorParams(size=384, distance=models.Distance.COSINE)
    client.create_collection("papers", {"dense": size})
    client.create_collection("small", models.VectorParams(size=4, distance=models.Distance.COSINE))
    vectors = SentenceTransformerEmbedding().get_text_embedding_batch(PAPERS)
    points = [
        models.PointStruct(id=number, vector={"dense": vector}, payload={"abstract": text})
        for number, (text, vector) in enumerate(zip(PAPERS, vectors, strict=True))
    ]
    client.upsert("papers", points)
    client.close()
    return folder


def search(*arguments: str, key: str | None = None, **environment: str) -> Result:
    names = {"OPENAI_API_KEY": key, "QDRANT_API_KEY": None, "COLUMNS": "80", "NO_COLOR": "1", **environment}
    return CliRunner().invoke(app, ["search", "--query", "feline hunters", *arguments], env=names)


def llm(server: ChatServer) -> list[str]:
    return ["--llm-base-url", server.url, "--llm-model", "tiny"]


def is_one_line(result: Result) -> bool:
    return result.exit_code == 1 and len(result.output.strip().splitlines()) == 1 and "Traceback" not in result.output


def test_before_and_after_with_grades(path: Path, chat_server: ChatServer):
    chat_server.reply = lambda question: yes(0.9 if "hunt" in question.document else 0.2)
    options = ["--collection", "papers", "--text-key", "abstract", "--vector-name", "dense", "--top-k", "4"]
    result = search("--path", str(path), *options, *llm(chat_server), "--instruction", "Find hunters.", key=SECRET)
    assert result.exit_code == 0, result.output
    before, after = result.output.split("Refined")
    assert before.count("0.90") >= 1
    assert after.count("Cats hunt") == 4
    assert f"{chat_server.calls} LLM calls" in after
    assert SECRET not in result.output
    assert "Find hunters." in chat_server.questions[0].prompt


def test_a_server(qdrant_server: QdrantServer, chat_server: ChatServer):
    qdrant_server.storage.create_collection("papers", models.VectorParams(size=384, distance=models.Distance.COSINE))
    vectors = SentenceTransformerEmbedding().get_text_embedding_batch(PAPERS)
    points = [
        models.PointStruct(id=number, vector=vector, payload={"paper": {"text": text}})
        for number, (text, vector) in enumerate(zip(PAPERS, vectors, strict=True))
    ]
    qdrant_server.storage.upsert("papers", points)
    options = ["--url", qdrant_server.url, "--collection", "papers", "--text-key", "paper.text"]
    result = search(*options, *llm(chat_server), QDRANT_API_KEY=SECRET)
    assert result.exit_code == 0, result.output
    assert "Cats hunt" in result.output
    assert SECRET not in result.output


@pytest.mark.parametrize(("status", "advice"), [(401, "set QDRANT_API_KEY"), (503, "is it a Qdrant server?")])
def test_a_server_that_refuses(qdrant_server: QdrantServer, chat_server: ChatServer, status: int, advice: str):
    qdrant_server.faults["exists", 1] = Fault(status=status)
    result = search("--url", qdrant_server.url, "--collection", "papers", *llm(chat_server))
    assert is_one_line(result)
    assert f"answered {status}" in result.output
    assert advice in result.output


def test_embeddings_from_a_server(chat_server: ChatServer, qdrant_server: QdrantServer):
    pytest.importorskip("llama_index.embeddings.openai", reason="needs: pip install llama-index-embeddings-openai")
    size = models.VectorParams(size=48, distance=models.Distance.COSINE)
    qdrant_server.storage.create_collection("papers", size)
    points = [
        models.PointStruct(id=number, vector=WordEmbedding().get_text_embedding(text), payload={"text": text})
        for number, text in enumerate(PAPERS)
    ]
    qdrant_server.storage.upsert("papers", points)
    options = ["--url", qdrant_server.url, "--collection", "papers", "--text-key", "text"]
    with DocsServer() as server:
        embedding = ["--embed-model", "openai:tiny", "--embed-base-url", server.url]
        result = search(*options, *embedding, *llm(chat_server))
    assert result.exit_code == 0, result.output
    assert "Refined" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--embed-model", "openai:tiny", "--embed-base-url", "http://127.0.0.1:9/v1"], "could not be embedded: API"),
        (["--embed-model", "openai:tiny"], "openai:tiny needs OPENAI_API_KEY, or --embed-base-url"),
        (["--embed-base-url", "http://127.0.0.1:9/v1"], "--embed-base-url needs --embed-model openai:NAME"),
    ],
)
def test_embeddings_that_cannot_be_had(path: Path, chat_server: ChatServer, options: list[str], message: str):
    pytest.importorskip("llama_index.embeddings.openai", reason="needs: pip install llama-index-embeddings-openai")
    result = search("--path", str(path), "--collection", "papers", *options, *llm(chat_server))
    assert is_one_line(result)
    assert message in result.output


def test_no_llm(path: Path):
    result = search("--path", str(path), "--collection", "papers")
    assert is_one_line(result)
    assert "grading needs an LLM: set OPENAI_API_KEY, or give --llm-base-url and --llm-model" in result.output


def test_a_server_in_the_environment_needs_a_model(path: Path, chat_server: ChatServer):
    result = search("--path", str(path), "--collection", "papers", OPENAI_BASE_URL=chat_server.url)
    assert is_one_line(result)
    assert "--llm-model, the model to ask for at OPENAI_BASE_URL" in result.output


def test_no_such_collection(path: Path, chat_server: ChatServer):
    result = search("--path", str(path), "--collection", "paper", *llm(chat_server))
    assert is_one_line(result)
    assert "there is no collection 'paper'; there are 'papers', 'small'" in result.output


def test_no_such_folder(tmp_path: Path, chat_server: ChatServer):
    result = search("--path", str(tmp_path / "none"), "--collection", "papers", *llm(chat_server))
    assert is_one_line(result)
    assert "is not a folder" in result.output


def test_server_unreachable(chat_server: ChatServer):
    result = search("--url", "http://127.0.0.1:9", "--collection", "papers", *llm(chat_server), QDRANT_API_KEY=SECRET)
    assert is_one_line(result)
    assert "no Qdrant server answers at http://127.0.0.1:9" in result.output
    assert SECRET not in result.output


def test_wrong_vector_size(path: Path, chat_server: ChatServer):
    result = search("--path", str(path), "--collection", "small", *llm(chat_server))
    assert is_one_line(result)
    assert "384" in result.output
    assert " 4" in result.output
    assert chat_server.calls == 0


def test_wrong_vector_name(path: Path, chat_server: ChatServer):
    result = search("--path", str(path), "--collection", "papers", "--vector-name", "sparse", *llm(chat_server))
    assert is_one_line(result)
    assert "'dense'" in result.output


def test_an_llm_that_refuses_the_key(path: Path, chat_server: ChatServer):
    chat_server.reply = lambda question: error(401, f"bad key {SECRET}")
    options = ["--collection", "papers", "--text-key", "abstract"]
    result = search("--path", str(path), *options, *llm(chat_server), key=SECRET)
    assert is_one_line(result)
    assert "refused the credentials" in result.output
    assert SECRET not in result.output


def test_an_llm_that_talks_idly(path: Path, chat_server: ChatServer):
    chat_server.reply = lambda question: Reply("Well, who knows.")
    result = search("--path", str(path), "--collection", "papers", "--text-key", "abstract", *llm(chat_server))
    assert is_one_line(result)
    assert "the teacher graded 0 of" in result.output


def test_no_such_embedding_model(path: Path, chat_server: ChatServer):
    options = ["--collection", "papers", "--embed-model", str(path / "no-model")]
    result = search("--path", str(path), *options, *llm(chat_server), HF_HUB_OFFLINE="1")
    assert is_one_line(result)
