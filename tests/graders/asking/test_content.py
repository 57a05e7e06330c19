"""What a teacher reads of a node whose metadata is long."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import MetadataMode, TextNode

from llama_index_refine.graders.asking.showing import content, count_tokens, cut
from llama_index_refine.graders.listwise import ListwiseGrader
from llama_index_refine.graders.llm import LLMGrader
from tests.graders.conftest import QUERY

WORDS = st.lists(st.sampled_from(["cats", "purr", "<div class='card'>", "héé", "\n", "猫"]), max_size=80).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(text=WORDS, metadata=WORDS, budget=st.integers(1, 60), mode=st.sampled_from(list(MetadataMode)))
def test_the_text_comes_first_into_the_cut(text, metadata, budget, mode):
    node = TextNode(text=text, metadata={"html": metadata})
    found = content(node, mode, budget)
    whole = node.get_content(mode)
    if count_tokens(whole) <= budget:
        assert found == whole
    elif count_tokens(text) <= budget:
        assert cut(found, budget).strip().endswith(text.strip())
    else:
        assert text.startswith(found)
        assert cut(found, budget) == cut(text, budget)


def test_metadata_that_fits_stands_where_llamaindex_puts_it():
    node = TextNode(text="cats", metadata={"title": "purring"})
    assert content(node, MetadataMode.LLM, 512) == "title: purring\n\ncats"
    long = TextNode(text="cats", metadata={"title": "purring " * 500})
    assert content(long, MetadataMode.LLM, 20).startswith("title: purring purring")
    assert content(long, MetadataMode.NONE, 20) == "cats"


@pytest.mark.parametrize("kind", [LLMGrader, ListwiseGrader])
def test_a_teacher_reads_the_text_behind_long_metadata(kind, llm, chat_server):
    node = TextNode(text="cats purr softly", metadata={"html": "<div class='card'>" * 1500})
    kind(llm).grade(QUERY, [node])
    assert "cats purr softly" in chat_server.questions[0].document
    assert "<div class='card'>" in chat_server.questions[0].document
