"""Queries that ask several things."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from llama_index.core import Settings
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms.mock import MockLLM
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.schema import IndexNode, QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore

from llama_index_refine import Budget, FeedbackGrader, QueryWithExamples, RefinedRetriever, RefinementMemory, propose
from llama_index_refine.graders.account import current_account
from llama_index_refine.retrieval.decomposing import fused
from tests.planted import Planted, TopicGrader
from tests.small_index import SubjectGrader, make_index, node_id

PLANTED = Planted()
STORE = PLANTED.store()


class Topics(MockEmbedding):
    """Embeds "topic 3" as the planted query of that topic, and counts what it embeds."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return PLANTED.queries[int(query.split()[-1])].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class AndGenerator(BaseQuestionGenerator):
    """Splits at "and"."""

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass

    def generate(self, tools: Sequence, query: QueryBundle) -> list[SubQuestion]:
        assert tools[0].name
        return [SubQuestion(sub_question=part, tool_name=tools[0].name) for part in query.query_str.split(" and ")]

    async def agenerate(self, tools: Sequence, query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)


def retriever(grader=None, decompose=None, **kwargs):
    return RefinedRetriever(
        STORE,
        embed_model=Topics(embed_dim=32),
        grader=grader or TopicGrader(),
        decompose=decompose if decompose is not None else AndGenerator(),
        early_stop=False,
        **kwargs,
    )


def shown(grader: TopicGrader) -> list[str]:
    return [node for wave in grader.shown for node in wave]


def test_what_the_parts_saved_is_added_up():
    found = RefinedRetriever(
        STORE, embed_model=Topics(embed_dim=32), grader=TopicGrader(), decompose=AndGenerator(), trust=1.0
    ).refine("topic 1 and topic 5")
    assert found.saved_grades == sum(part.saved_grades for part in found.parts) > 0


async def test_each_part_is_answered_and_each_node_says_which(caplog):
    grader = TopicGrader()
    refined = retriever(grader, trust=1.0)
    found = refined.refine("topic 1 and topic 5")
    assert [part.query_str for part in found.parts] == ["topic 1", "topic 5"]
    assert len(found.nodes) == 10
    for topic in (1, 5):
        alone = RefinedRetriever(
            STORE,
            embed_model=Topics(embed_dim=32),
            grader=TopicGrader(),
            feedback_top_k=10,
            trust=1.0,
            early_stop=False,
        ).refine(f"topic {topic}")
        mine = [entry for entry in found.nodes if f"topic {topic}" in entry.node.metadata["refine_parts"]]
        assert [entry.node_id for entry in mine] == [entry.node_id for entry in alone.nodes[:5]]
        assert all("refine_parts" in entry.node.excluded_llm_metadata_keys for entry in mine)
    assert "topic" not in found.nodes[0].node.get_content(metadata_mode="llm").split("refine_parts")[1:]
    assert len(shown(grader)) == len(found.graded_nodes) == 20
    assert len(found.grade_of) == len(set(shown(grader)))
    assert [entry.node_id for entry in await refined.aretrieve("topic 1 and topic 5")] == [
        entry.node_id for entry in found.nodes
    ]
    (batched,) = refined.refine_batch(["topic 1 and topic 5"])
    assert [entry.node_id for entry in batched.nodes] == [entry.node_id for entry in found.nodes]
    assert "topic 1 and topic 5" in repr(found)
    json.loads(found.to_json(vectors=True, texts=True))
    found._repr_html_()
    with pytest.raises(ValueError, match="plot each of `parts`"):
        found.plot()


async def test_a_generator_with_the_blocking_half_only_splits_asynchronously_too():
    class Blocking(AndGenerator):
        async def agenerate(self, tools, query):
            raise NotImplementedError

    found = await retriever(decompose=Blocking()).arefine("topic 1 and topic 5")
    assert len(found.parts) == 2


@pytest.mark.parametrize("feedback_top_k", [4, 7, 20])
def test_the_parts_share_what_may_be_graded(feedback_top_k):
    grader = TopicGrader()
    found = retriever(grader, feedback_top_k=feedback_top_k).refine("topic 0 and topic 1 and topic 2 and topic 3")
    assert len(shown(grader)) <= feedback_top_k
    assert len(found.parts) == min(4, feedback_top_k // 2)


def test_the_parts_together_return_so_many_nodes_of_a_document():
    found = retriever(similarity_top_k=6, vector_store_kwargs={"group_by": "half", "group_size": 2}).refine(
        "topic 1 and topic 5"
    )
    assert len(found.parts) == 2
    for nodes in (found.nodes, found.nodes_before):
        halves = [entry.node.metadata["half"] for entry in nodes]
        assert sorted(halves) == [0, 0, 1, 1]


def test_a_part_that_finds_one_node_counts_it_among_those_of_its_document():
    second, first = np.sort(PLANTED.vectors @ PLANTED.queries[0])[-2:]
    kwargs = {"group_by": "half", "score_threshold": float(first + second) / 2}
    found = retriever(vector_store_kwargs=kwargs).refine("topic 0 and topic 2")
    assert [len(part.nodes_before) for part in found.parts] == [1, 2]
    for nodes in (found.nodes, found.nodes_before):
        halves = [entry.node.metadata["half"] for entry in nodes]
        assert len(halves) == len({*halves})


def test_a_question_that_is_one_stays_whole():
    grader = TopicGrader()
    found = retriever(grader).refine("topic 4")
    assert not found.parts
    assert found.query_str == "topic 4"
    assert len(shown(grader)) == 20
    assert found.llm_calls == 1


def test_nodes_that_come_whole_from_a_docstore_say_which_part_they_answer_too():
    """Of nodes that are not text, a docstore has all that there is to know."""
    texts = [f"the {subject} number {at} would sleep" for subject in ("owl", "train") for at in range(4)]
    nodes = [IndexNode(id_=node_id(text), text=text, index_id="x") for text in texts]
    refined = RefinedRetriever.from_index(make_index(nodes), grader=SubjectGrader("owls"), decompose=AndGenerator())
    found = refined.refine("which owl and which train")
    assert len(found.nodes) == len(texts)
    assert all(entry.node.metadata["refine_parts"] for entry in found.nodes)
    assert all("refine_parts" in entry.node.excluded_llm_metadata_keys for entry in found.nodes)


def test_a_node_has_the_grade_of_the_part_that_it_answers():
    class OnlyTheFirst(TopicGrader):
        def grade(self, query, nodes):
            return super().grade(query, nodes) if query.query_str == "topic 1" else [0.0] * len(nodes)

    found = retriever(OnlyTheFirst(), node_metadata=True).refine("topic 1 and again topic 1")
    (first, second) = (part.grade_of for part in found.parts)
    both = {*first} & {*second}
    assert any(first[node_id] for node_id in both)
    assert {node_id: found.grade_of[node_id] for node_id in both} == {node_id: first[node_id] for node_id in both}
    noted = {entry.node_id: entry.node.metadata["refine_grade"] for entry in found.nodes}
    assert noted == {node_id: found.grade_of.get(node_id) for node_id in noted}


def test_one_budget_pays_for_the_split_and_for_all_parts(caplog):
    class Charging(TopicGrader):
        def grade(self, query, nodes):
            account = current_account()
            grades = [grade if account.open_call() else None for grade in super().grade(query, nodes)]
            account.charge(prompt_tokens=10 * len(nodes))
            if None in grades:
                account.note(f"nothing is left for {query.query_str}")
            return grades

    found = retriever(Charging(), budget=Budget(calls=13)).refine("topic 1 and topic 5")
    # The split is a call too, and no part's.
    assert found.llm_calls == 13 == 1 + sum(part.llm_calls for part in found.parts)
    assert [part.llm_calls for part in found.parts] == [len(part.grades) for part in found.parts]
    assert found.prompt_tokens == sum(part.prompt_tokens for part in found.parts) > 0
    told = [f"nothing is left for {part.query_str}" for part in found.parts if part.ungraded]
    assert [failure for part in found.parts for failure in part.failures] == told == sorted(found.failures)
    assert retriever(budget=Budget(calls=1)).refine("topic 1 and topic 5").llm_calls == 1


def test_examples_hold_for_every_part():
    like = [node.node_id for node in PLANTED.nodes() if node.metadata["topic"] == 2][:3]
    bundle = QueryWithExamples("topic 1 and topic 5", like=like)
    found = retriever(FeedbackGrader()).refine(bundle)
    assert [{entry.node_id for entry in part.graded_nodes} for part in found.parts] == [set(like)] * 2


def test_a_query_that_cannot_be_split_is_asked_whole(caplog):
    class Broken(AndGenerator):
        def generate(self, tools, query):
            raise RuntimeError("sk-secret")

    with caplog.at_level(logging.WARNING, "llama_index_refine"):
        found = retriever(decompose=Broken()).refine(QueryBundle("topic 1", embedding=PLANTED.queries[1].tolist()))
    assert found.refined
    assert not found.parts
    assert found.failures == ("the query could not be split (RuntimeError)",)
    assert "sk-secret" not in caplog.text
    with pytest.raises(RuntimeError, match="sk-secret"):
        retriever(decompose=Broken(), on_error="raise").refine("topic 1")


def test_llamaindex_s_generator_asks_the_llm_of_the_settings(monkeypatch):
    class Splitting(MockLLM):
        def complete(self, prompt, formatted=False, **kwargs):
            assert "topic 1 as well as topic 5" in prompt
            questions = [{"sub_question": f"topic {topic}", "tool_name": "documents"} for topic in (1, 5)]
            return super().complete(f"```json\n{json.dumps({'items': questions})}\n```")

    monkeypatch.setattr(Settings, "_llm", Splitting())
    found = retriever(decompose=True).refine("topic 1 as well as topic 5")
    assert [part.query_str for part in found.parts] == ["topic 1", "topic 5"]


def test_lists_are_fused_by_reciprocal_rank():
    one, two = (retriever().refine(f"topic {topic}").nodes for topic in (1, 5))
    together = fused([one, two], 6)
    assert [entry.node_id for entry in together] == [
        entry.node_id for pair in zip(one[:3], two[:3], strict=True) for entry in pair
    ]
    assert together[0].score == pytest.approx(1 / 61)
    assert fused([one, one], 1)[0].score == pytest.approx(2 / 61)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decompose": "yes"}, "decompose must be a bool or a question generator, got str"),
        ({"score": "probability"}, "score='probability' is about one"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        retriever(**arguments)


def test_people_are_asked_about_the_part_that_a_node_was_graded_for():
    found = retriever(feedback_top_k=8).refine("topic 1 and topic 5")
    rows = propose([found], 100)
    graded = {(part.query_str, entry.node_id) for part in found.parts for entry in part.graded_nodes}
    assert {(row["query"], row["id"]) for row in rows} == graded


def test_a_part_that_is_asked_by_itself_later_is_graded_on():
    """Of two parts each gets half of the grades: what a memory keeps of one is not all that the question may have."""
    grader, memory = TopicGrader(), RefinementMemory(SimpleKVStore())
    refined = retriever(grader, memory=memory)
    refined.refine("topic 1 and topic 5")
    assert len(shown(grader)) == 20
    grader.shown.clear()
    alone = refined.refine("topic 1")
    assert alone.remembered == 10
    assert len(alone.grades) == 20
    assert len(shown(grader)) == 10
    grader.shown.clear()
    assert len(refined.refine("topic 1").grades) == 20
    assert len(shown(grader)) < 10
