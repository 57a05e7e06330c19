"""PostprocessorGrader around LlamaIndex's own postprocessors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.postprocessor import LLMRerank, SimilarityPostprocessor, StructuredLLMRerank
from llama_index.core.postprocessor.rankGPT_rerank import RankGPTRerank
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

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


def graded(scores: Sequence[Any], **kwargs: Any) -> list[float | None]:
    nodes = [TextNode(id_=str(number), text="t") for number in range(len(scores))]
    named = {str(number): score for number, score in enumerate(scores)}
    return list(PostprocessorGrader(Scores(scores=named), **kwargs).grade(QUERY, nodes))


async def test_scores_in_zero_to_one_are_grades():
    grader = PostprocessorGrader(Scores(scores={"0": 0.2, "1": 0.9, "2": 0.4}))
    assert grader.grade(QUERY, NODES) == [0.2, 0.9, 0.4]
    assert await grader.agrade(QUERY, NODES) == [0.2, 0.9, 0.4]
    assert NODES[0].get_content() == "cats purr softly"
    assert grader.grade(QUERY, []) == await grader.agrade(QUERY, []) == []


def test_other_scores_are_logits_all_of_them():
    assert graded([0.0, 800.0, -800.0]) == pytest.approx([0.5, 1.0, 0.0])
    grades = graded([0.2, 0.9, 1.5])
    assert grades == sorted(grades)


SCORES = (st.floats(-20, 20) | st.floats(0, 1)).map(lambda score: round(score, 6))
SCALES: list[Any] = [(0.0, 1.0), (1.0, 10.0), (-5.0, 5.0), "logit", "rank", None, lambda score: score / 4]


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: "function" if callable(scale) else str(scale))
@given(batches=st.lists(st.lists(SCORES, min_size=1, max_size=8), min_size=1, max_size=4))
def test_grades_rise_with_scores_and_the_same_score_keeps_its_grade(scale, batches):
    reranker = Scores(scores={})
    grader = PostprocessorGrader(reranker, scale)
    seen: dict[float, float | None] = {}
    for batch in [*batches, *batches]:
        reranker.scores = {str(number): score for number, score in enumerate(batch)}
        grades = grader.grade(QUERY, [TextNode(id_=str(number), text="t") for number in range(len(batch))])
        by_score = sorted(zip(batch, grades, strict=True))
        assert all(grade is not None and 0 <= grade <= 1 for grade in grades)
        assert all(low[1] <= high[1] for low, high in pairwise(by_score) if low[0] < high[0])
        if scale != "rank":
            assert all(seen.setdefault(score, grade) == grade for score, grade in by_score)


def test_what_a_class_is_known_for_is_not_guessed():
    class NVIDIARerank(Scores):
        pass

    class MyJina(type("JinaRerank", (Scores,), {})):
        pass

    for kind, score, grade in ((NVIDIARerank, 0.0, 0.5), (MyJina, 0.25, 0.25)):
        assert PostprocessorGrader(kind(scores={"0": score})).grade(QUERY, NODES[:1]) == [grade]
    assert PostprocessorGrader(MyJina(scores={"0": 0.25}), scale="logit").grade(QUERY, NODES[:1])[0] > 0.5


@pytest.mark.parametrize(("activation", "grade"), [(torch.nn.Sigmoid(), 0.5), (torch.nn.Identity(), 0.622459)])
@pytest.mark.parametrize("name", ["activation_fn", "default_activation_function"])
def test_a_sentence_transformers_scale_is_its_models(activation, grade, name):
    class SentenceTransformerRerank(Scores):
        _model: Any = PrivateAttr()

    reranker = SentenceTransformerRerank(scores={"0": 0.5})
    reranker._model = SimpleNamespace(**{name: activation})
    assert PostprocessorGrader(reranker).grade(QUERY, NODES[:1]) == pytest.approx([grade])


def test_a_guess_that_turns_out_wrong_is_said_and_kept_to():
    reranker = Scores(scores={"0": 0.2, "1": 0.9, "2": 0.4})
    grader = PostprocessorGrader(reranker)
    grader.grade(QUERY, NODES)
    reranker.scores = {"0": -3.0, "1": 0.9, "2": 4.0}
    account = Account()
    with account.active():
        assert grader.grade(QUERY, NODES) == [0.0, 0.9, 1.0]
    assert account.failures == ['Scores does not score in [0, 1]: pass scale="logit"']


def test_one_bad_score_is_one_bad_grade_and_one_score_alone_is_no_rank():
    assert graded([0.0]) == [0.0]
    assert graded([0.4, 0.4]) == [0.4, 0.4]
    assert graded([0.4, None, float("nan")]) == [0.4, None, None]


def test_own_mapping():
    assert graded([1, 5, None], scale=lambda score: score / 4) == [0.25, 1.0, None]


@pytest.mark.parametrize("scale", ["logits", (1.0, 0.0), (0.0, float("inf")), (0.0,), ("a", "b"), 3])
def test_another_scale_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be"):
        PostprocessorGrader(Scores(scores={}), scale)


async def test_rankgpt_only_orders(llm, chat_server):
    chat_server.reply = lambda question: Reply("[3] > [1] > [2]")
    grader = PostprocessorGrader(RankGPTRerank(top_n=1, llm=llm))
    assert await grader.agrade(QUERY, NODES) == [0.5, 0.0, 1.0]
    assert grader.grade(QUERY, NODES) == [0.5, 0.0, 1.0]


def test_marks_from_one_to_ten(llm, chat_server):
    marks = [{"document_number": number, "relevance": mark} for number, mark in enumerate((9, 1, 8), start=1)]
    chat_server.reply = lambda question: Reply(arguments={"documents": marks})
    assert PostprocessorGrader(StructuredLLMRerank(llm=llm)).grade(QUERY, NODES) == [0.9, 0.1, 0.8]


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


class Orders(BaseNodePostprocessor):
    """A reranker that only orders, by the number that a text is."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        best = sorted(nodes, key=lambda node: -int(node.node.get_content()))
        return [NodeWithScore(node=node.node) for node in best]


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=20, unique=True), st.integers(1, 19))
def test_an_order_holds_over_all_rounds_of_a_query(numbers, first):
    nodes = [TextNode(id_=str(number), text=str(number)) for number in numbers]
    grader = PostprocessorGrader(Orders(), "rank")
    with Account().active():
        grades = [*grader.grade(QUERY, nodes[:first]), *grader.grade(QUERY, nodes[first:])]
    assert all(0 <= grade <= 1 for grade in grades)
    by_number = [grade for _, grade in sorted(zip(numbers, grades, strict=True))]
    assert by_number == sorted(by_number)


def test_another_query_is_ordered_by_itself():
    grader, nodes = PostprocessorGrader(Orders(), "rank"), [TextNode(text=str(number)) for number in (1, 2)]
    for query in (QUERY, QueryBundle("another")):
        with Account().active():
            assert grader.grade(query, nodes) == [0.0, 1.0]


@pytest.mark.parametrize("name", ["calls", "tokens"])
@pytest.mark.parametrize("kind", [LLMRerank, StructuredLLMRerank, RankGPTRerank])
async def test_a_budget_that_cannot_be_kept_refuses_the_teacher_by_name(like, chat_server, kind, name):
    grader = PostprocessorGrader(kind(llm=like))
    account = Account(Budget(**{name: 3}))
    with account.active():
        assert grader.grade(QUERY, NODES) == await grader.agrade(QUERY, NODES) == [None] * 3
    assert chat_server.calls == 0
    (failure,) = account.failures
    assert kind.__name__ in failure
    assert f"a budget in {name} cannot be kept" in failure


def test_calls_that_are_not_counted_are_said_so(llm, chat_server):
    chat_server.reply = lambda question: Reply("Doc: 1, Relevance: 8")
    account = Account(Budget(seconds=60))
    with account.active():
        PostprocessorGrader(LLMRerank(llm=llm)).grade(QUERY, NODES)
        PostprocessorGrader(SimilarityPostprocessor(similarity_cutoff=0.5)).grade(QUERY, NODES)
    assert account.failures == ["the calls of LLMRerank's LLM are not counted"]
