"""Clients of the loopback server, and a query with nodes to grade."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import certifi
import pytest
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike

from llama_index_refine.graders.llm import LLMGrader
from tests.chat_server import ChatServer

SECRET = "sk-not-to-be-seen-0123456789"

QUERY = QueryBundle("how do cats purr")
NODES = [TextNode(id_=str(i), text=text) for i, text in enumerate(["cats purr softly", "rain in spring", "old cats"])]


@pytest.fixture
def llm(chat_server: ChatServer) -> OpenAI:
    return OpenAI(model="gpt-4o-mini", api_base=chat_server.url, api_key=SECRET)


@pytest.fixture
def like(chat_server: ChatServer) -> OpenAILike:
    return OpenAILike(model="local", api_base=chat_server.url, api_key=SECRET, is_chat_model=True)


@pytest.fixture(scope="session", autouse=True)
def _few_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every HTTP client loads all certificates when it is made, 50 ms of a test, and none here needs any."""
    bundle = Path(certifi.where()).read_text()
    end = "-----END CERTIFICATE-----"
    one = tmp_path_factory.mktemp("certificates") / "one.pem"
    one.write_text(bundle[: bundle.index(end) + len(end)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(one))
        yield


@pytest.fixture(autouse=True)
def _no_secrets_in_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, logger="llama_index_refine")
    yield
    assert SECRET not in caplog.text


@pytest.fixture
def make_grader(llm: OpenAI) -> Callable[..., LLMGrader]:
    """An LLMGrader that neither waits nor tries again unless told to."""

    def make(**arguments: object) -> LLMGrader:
        return LLMGrader(**{"llm": llm, "retries": 0, **arguments})  # type: ignore[arg-type]

    return make
