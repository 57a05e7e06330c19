"""The command `mcp`, by the protocol's own client over both transports."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.tools import FunctionTool
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models
from typer.testing import CliRunner

from llama_index_refine import RefinedRetriever
from llama_index_refine.commands.cli import app
from llama_index_refine.commands.mcp import listen, make_server, serve_http, url_of
from tests.chat_server import ChatServer, error
from tests.docs_server import DocsServer
from tests.qdrant_server import Fault, QdrantServer
from tests.small_index import QUERY, SubjectGrader, WordEmbedding, make_index, make_nodes, node_id

mcp = pytest.importorskip("mcp", reason='needs: pip install "llama-index-refine[mcp]"')
pytest.importorskip("mcp_types", reason='needs: pip install "llama-index-refine[mcp]"')

SECRET = "sk-not-to-be-seen-0123456789"
OWL = node_id("owls 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection on disk."""
    path = tmp_path_factory.mktemp("served") / "qdrant"
    client = QdrantClient(path=str(path))
    storage = StorageContext.from_defaults(vector_store=QdrantVectorStore("animals", client=client))
    VectorStoreIndex(make_nodes(), storage_context=storage, embed_model=WordEmbedding())
    client.close()
    return path


@pytest.fixture
def embeddings() -> Iterator[DocsServer]:
    with DocsServer() as server:
        yield server


def text_of(result: Any) -> str:
    (content,) = result.content
    return content.text


@asynccontextmanager
async def over_http(retriever: RefinedRetriever) -> AsyncIterator[str]:
    """Serve a retriever's tools on loopback, and say where."""
    with listen("127.0.0.1", 0) as listening:
        server = make_server(retriever.as_tools(about="Animals."), "animals")
        serving = asyncio.create_task(serve_http(server, "127.0.0.1", listening))
        yield url_of(listening)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_process_over_stdio(folder: Path, chat_server: ChatServer, embeddings: DocsServer, tmp_path: Path):
    """The server's only output is the protocol's: the client would choke on any other."""
    arguments = ["mcp", "--path", str(folder), "--collection", "animals", "--memory", "kept", "--about", "Animals."]
    arguments += ["--embed-model", "openai:words", "--embed-base-url", embeddings.url]
    arguments += ["--llm-base-url", chat_server.url, "--llm-model", "tiny"]
    noisy = "from llama_index_refine.commands.cli import main; main()"
    process = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-c", noisy, *arguments],
        env={"OPENAI_API_KEY": SECRET, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    with (tmp_path / "said.log").open("w+") as log:
        async with mcp.Client(mcp.stdio_client(process, errlog=log)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert [*tools] == ["find", "find_all", "classify", "judge"]
            assert [tool.annotations.read_only_hint for tool in tools.values()] == [True, True, True, False]
            assert "The collection: Animals." in tools["find"].description
            found = await client.call_tool("find", {"query": QUERY, "limit": 3, "filter": {"subject": "owls"}})
            assert not found.is_error
            assert text_of(found).count('"subject": "owls"') == 3
            assert f"Cost: LLM calls {chat_server.calls}, " in text_of(found)
            kept = await client.call_tool("judge", {"query": QUERY, "node_id": OWL, "grade": 1})
            assert text_of(kept) == f"Kept: 1 for {OWL}."
            chat_server.reply = lambda question: error(401, f"bad key {SECRET}")
            failing = await client.call_tool("find", {"query": "the owl at night", "limit": 2})
            assert not failing.is_error
            assert "Documents: 2. Not refined" in text_of(failing)
            wrong = await client.call_tool("find", {"query": QUERY, "filter": {"colour": "red"}})
            assert wrong.is_error
            assert "filter: no document has 'colour'" in text_of(wrong)
        log.seek(0)
        assert SECRET not in log.read() + text_of(failing)


async def test_streamable_http():
    retriever = RefinedRetriever.from_index(make_index(), grader=SubjectGrader("owls"), trust=1.0)
    async with over_http(retriever) as url, mcp.Client(url) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["find", "find_all", "classify"]
        found = await client.call_tool("find", {"query": QUERY, "limit": 3})
        (same,) = [tool for tool in retriever.as_tools() if tool.metadata.name == "find"]
        assert text_of(found).split("\n")[1:] == (await same.acall(query=QUERY, limit=3)).content.split("\n")[1:]
        wrong = await client.call_tool("find", {"query": QUERY, "limit": 0})
        assert wrong.is_error
        assert text_of(wrong) == "limit: Input should be greater than or equal to 1, got 0"
        async with httpx.AsyncClient() as page:
            asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            refused = await page.post(url, json=asked, headers={"Origin": "https://example.org"})
        assert refused.status_code == 403


async def test_what_fails_is_the_tools_error(qdrant_server: QdrantServer):
    """The server goes on, and words that may repeat a key are not handed on."""

    async def leaking(**given: Any) -> str:
        raise KeyError(SECRET)

    size = models.VectorParams(size=48, distance=models.Distance.COSINE)
    qdrant_server.storage.create_collection("animals", size)
    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    store = QdrantVectorStore("animals", client=client)
    (find, *_) = RefinedRetriever(store, WordEmbedding(), SubjectGrader("owls")).as_tools()
    leak = FunctionTool(async_fn=leaking, metadata=find.metadata.__class__("x", "leak", find.metadata.fn_schema))
    async with mcp.Client(make_server([find, leak], "animals")) as session:
        qdrant_server.faults["query", 1] = Fault(status=500)
        results = [await session.call_tool(name, {"query": QUERY}) for name in ("find", "leak", "nowhere", "find")]
    assert [result.is_error for result in results] == [True, True, True, False]
    assert text_of(results[1]) == "leak failed: KeyError"
    assert text_of(results[2]) == "there is no tool 'nowhere'; there are find, leak"
    assert text_of(results[3]).startswith("Documents: 0.")


def test_what_cannot_be_served(folder: Path, chat_server: ChatServer, embeddings: DocsServer, monkeypatch):
    def run(*more: str) -> tuple[str, str]:
        options = ["--path", str(folder), "--collection", "animals", "--embed-model", "openai:words"]
        options += ["--embed-base-url", embeddings.url, *more]
        ran = CliRunner().invoke(app, ["mcp", *options], env={"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None})
        assert ran.exit_code == 1
        return ran.stdout, ran.stderr

    llm = ["--llm-base-url", chat_server.url, "--llm-model", "tiny"]
    assert run() == ("", "Error: grading needs an LLM: set OPENAI_API_KEY, or give --llm-base-url and --llm-model\n")
    assert "--memory must be another collection" in run(*llm, "--memory", "animals")[1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        out, said = run(*llm, "--transport", "http", "--port", port)
    assert out == ""
    assert f"--host 127.0.0.1 --port {port} cannot be listened on" in said
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    assert run(*llm) == ("", 'Error: the server needs: pip install "llama-index-refine[mcp]"\n')
