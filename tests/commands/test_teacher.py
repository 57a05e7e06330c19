"""Which LLM the options and the environment name."""

from __future__ import annotations

import pytest
from llama_index.core.schema import QueryBundle, TextNode

from llama_index_refine.commands.bench import make_llm
from llama_index_refine.commands.embedding import make_embed_model
from llama_index_refine.commands.teacher import DEFAULT_MODEL, LLMOptions
from tests.chat_server import ChatServer

QUERY, NODES = QueryBundle("how do cats purr"), [TextNode(text="cats purr")]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("key", "environment", "option", "model", "named"),
    [
        (None, None, None, None, None),
        ("k", None, None, None, DEFAULT_MODEL),
        ("k", None, None, "m", "m"),
        (None, "http://s/v1", None, "m", "m"),
        (None, "http://s/v1", None, None, None),
        ("k", "http://s/v1", None, None, DEFAULT_MODEL),
        (None, None, "http://s/v1", "m", "m"),
    ],
)
def test_the_model_that_is_named(monkeypatch: pytest.MonkeyPatch, key, environment, option, model, named):
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    if environment:
        monkeypatch.setenv("OPENAI_BASE_URL", environment)
    assert LLMOptions(llm_base_url=option, llm_model=model).model() == named


def test_what_is_missing_is_told():
    with pytest.raises(ValueError, match="there is no key to ask m with: set OPENAI_API_KEY, or give --llm-base-url"):
        LLMOptions(llm_model="m").model()
    with pytest.raises(ValueError, match="--llm-base-url needs --llm-model"):
        LLMOptions(llm_base_url="http://s/v1").model()


def test_a_server_in_the_environment_needs_no_key(monkeypatch: pytest.MonkeyPatch, chat_server: ChatServer):
    monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url)
    kwargs = '{"seed": 7, "extra_body": {"chat_template_kwargs": {"x": 1}}}'
    grader = LLMOptions(llm_model="m", llm_kwargs=kwargs).grader()
    assert grader is not None
    assert grader.grade(QUERY, NODES) == pytest.approx([0.9])
    body = chat_server.questions[0].body
    assert (body["model"], body["seed"], body["chat_template_kwargs"]) == ("m", 7, {"x": 1})
    llm = make_llm(LLMOptions(llm_model="m", llm_kwargs='{"seed": 8}'))
    assert llm is not None
    assert llm.complete("cats").text
    assert chat_server.questions[-1].body["seed"] == 8


def test_arguments_of_each_call_are_part_of_what_is_cached():
    from llama_index_refine.graders.llm import LLMGrader

    kwargs = "{}", '{"seed": 1}', "{}"
    options = [LLMOptions(llm_model="m", llm_base_url="http://s/v1", llm_kwargs=one) for one in kwargs]
    prints = [LLMGrader(make_llm(one)).fingerprint() for one in options]
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize("text", ["{", "[1]", "3", "seed=7", '"x"'])
def test_arguments_that_are_no_json_object(text: str):
    with pytest.raises(ValueError, match="--llm-kwargs"):
        LLMOptions(llm_base_url="http://s/v1", llm_model="m", llm_kwargs=text).grader()


def test_embeddings_of_a_server_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("llama_index.embeddings.openai", reason="needs: pip install llama-index-embeddings-openai")
    with pytest.raises(ValueError, match="needs OPENAI_API_KEY, or --embed-base-url"):
        make_embed_model("openai:m")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert make_embed_model("openai:m").api_base == "http://127.0.0.1:9/v1"
