"""Query and chat engines over a refined retriever."""

from __future__ import annotations

import pytest
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine

from tests.llama_index.conftest import subjects
from tests.small_index import QUERY


def owls_in(prompt: str) -> int:
    return prompt.count("the owl with")


def test_query_engine(retriever, llm):
    model = llm("Owls do not.")
    response = RetrieverQueryEngine.from_args(retriever, llm=model).query(QUERY)
    assert str(response) == "Owls do not."
    assert subjects(response.source_nodes) == ["owls"] * 4
    assert owls_in(model.prompts[0]) == 4


def test_query_engine_streaming(retriever, llm):
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm("Owls do not."), streaming=True)
    response = engine.query(QUERY)
    pieces = list(response.response_gen)
    assert len(pieces) > 1
    assert "".join(pieces) == "Owls do not."
    assert subjects(response.source_nodes) == ["owls"] * 4


async def test_query_engine_asynchronously(retriever, llm):
    response = await RetrieverQueryEngine.from_args(retriever, llm=llm("Owls do not.")).aquery(QUERY)
    assert str(response) == "Owls do not."
    assert subjects(response.source_nodes) == ["owls"] * 4


def test_citation_query_engine(retriever, llm):
    model = llm("Owls do not [1].")
    engine = CitationQueryEngine(
        retriever=retriever, llm=model, response_synthesizer=None, citation_chunk_size=512, citation_chunk_overlap=20
    )
    response = engine.query(QUERY)
    assert str(response) == "Owls do not [1]."
    assert [entry.text.split(":")[0] for entry in response.source_nodes] == [f"Source {n}" for n in range(1, 5)]
    assert all("the owl with" in entry.text for entry in response.source_nodes)


@pytest.mark.parametrize("streaming", [False, True])
def test_context_chat_engine(retriever, llm, streaming):
    model = llm("Owls do not.", "They hunt.")
    engine = ContextChatEngine.from_defaults(retriever=retriever, llm=model)
    ask = engine.stream_chat if streaming else engine.chat
    first = ask(QUERY)
    said = "".join(first.response_gen) if streaming else first.response
    assert said == "Owls do not."
    assert subjects(first.source_nodes) == ["owls"] * 4
    assert owls_in(model.prompts[0]) == 4
    second = engine.chat("what do they do instead")
    assert second.response == "They hunt."
    assert "Owls do not." in model.prompts[1]


async def test_condense_plus_context_chat_engine(retriever, llm):
    model = llm("Owls do not.", QUERY, "They hunt.")
    engine = CondensePlusContextChatEngine.from_defaults(retriever=retriever, llm=model)
    first = engine.chat(QUERY)
    assert subjects(first.source_nodes) == ["owls"] * 4
    second = await engine.achat("what do they do instead")
    assert "what do they do instead" in model.prompts[1]
    assert second.response == "They hunt."
    assert subjects(second.source_nodes) == ["owls"] * 4
