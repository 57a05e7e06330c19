"""PostprocessorGrader around LlamaIndex's own postprocessors."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.postprocessor import LLMRerank, SimilarityPostprocessor
from llama_index.core.postprocessor.rankGPT_rerank import RankGPTRerank
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.postprocessor import PostprocessorGrader
from tests.chat_server import Reply
from tests.graders.conftest import NODES, QUERY


class Scores(BaseNodePostprocessor):
    """A reranker that scores, keeps the best and sorts them, as most do."""

    scores: dict[str, Any]
    top_n: int = 1

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        for node in nodes:
            node.score = self.scores[node.node.node_id]
            node.node.set_content("spoilt")
        return sorted(nodes, key=lambda node: -(node.score or 0))[: self.top_n]


async def test_scores_in_zero_to_one_are_grades():
    grader = PostprocessorGrader(Scores(scores={"0": 0.2, "1": 0.9, "2": 0.4}))
    assert grader.grade(QUERY, NODES) == [0.2, 0.9, 0.4]
    assert await grader.agrade(QUERY, NODES) == [0.2, 0.9, 0.4]
    assert NODES[0].get_content() == "cats purr softly"
    assert grader.grade(QUERY, []) == await grader.agrade(QUERY, []) == []


def test_other_scores_are_logits():
    grades = PostprocessorGrader(Scores(scores={"0": 0.0, "1": 800.0, "2": -800.0})).grade(QUERY, NODES)
    assert grades == pytest.approx([0.5, 1.0, 0.0])


def test_own_mapping():
    grader = PostprocessorGrader(Scores(scores={"0": 1, "1": 5, "2": None}), to_grade=lambda score: score / 4)
    assert grader.grade(QUERY, NODES) == [0.25, 1.0, None]


async def test_rankgpt_only_orders(llm, chat_server):
    chat_server.reply = lambda question: Reply("[3] > [1] > [2]")
    grader = PostprocessorGrader(RankGPTRerank(top_n=1, llm=llm))
    assert await grader.agrade(QUERY, NODES) == [0.5, 0.0, 1.0]
    assert grader.grade(QUERY, NODES) == [0.5, 0.0, 1.0]


async def test_llamaindex_own_llm_rerank(llm, chat_server):
    chat_server.reply = lambda question: Reply("Doc: 1, Relevance: 8\nDoc: 3, Relevance: 2")
    grader = PostprocessorGrader(LLMRerank(llm=llm))
    assert await grader.agrade(QUERY, NODES) == [0.8, 0.0, 0.2]


def test_a_filter_drops():
    assert PostprocessorGrader(SimilarityPostprocessor(similarity_cutoff=0.5)).grade(QUERY, NODES) == [0.0] * 3


async def test_given_up_at_the_deadline():
    account = Account(Budget(seconds=1e-9))
    with account.active():
        assert await PostprocessorGrader(Scores(scores={})).agrade(QUERY, NODES) == [None] * 3
    assert "deadline" in account.failures[0]


def test_fingerprint():
    assert PostprocessorGrader(SimilarityPostprocessor(similarity_cutoff=0.5)).fingerprint() != (
        PostprocessorGrader(SimilarityPostprocessor(similarity_cutoff=0.6)).fingerprint()
    )
