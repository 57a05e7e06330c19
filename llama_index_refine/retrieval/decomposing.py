"""Several questions in one: each part is retrieved for by itself, and their lists are fused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.question_gen.types import BaseQuestionGenerator
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.tools.types import ToolMetadata

from llama_index_refine.graders.account import Account
from llama_index_refine.ids import same_id
from llama_index_refine.qdrant.points import Grouping
from llama_index_refine.refinement import Refinement
from llama_index_refine.retrieval.pipeline import Pipeline
from llama_index_refine.retrieval.queries import QueryWithExamples, with_examples
from llama_index_refine.scheduling import at_once, each, gather, perform, side_by_side

logger = logging.getLogger(__name__)

# A question in more parts than this is no question any more; each part costs a search and two grades at least.
MOST_PARTS = 5
# Reciprocal rank fusion's constant (Cormack, Clarke and Buettcher 2009).
CONSTANT = 60
TOOL = ToolMetadata(name="documents", description="Finds documents about one subject at a time.")


@dataclass(frozen=True, eq=False)
class Questions:
    """Has queries split by an LLM. An item is a `QueryBundle`, its result a list of texts.

    :param generator: LlamaIndex's question generator, None for one on `Settings.llm`.
    """

    generator: BaseQuestionGenerator | None

    def run(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Split one after the other."""
        return at_once(each(items, partial(self._split, blocks=True)))

    async def arun(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Split side by side."""
        return await side_by_side(items, partial(self._split, blocks=False), self.run)

    async def _split(self, query: QueryBundle, blocks: bool) -> list[str]:
        generator = self.generator or LLMQuestionGenerator.from_defaults()
        questions = generator.generate([TOOL], query) if blocks else await generator.agenerate([TOOL], query)
        return list(dict.fromkeys(text for question in questions if (text := question.sub_question.strip())))


async def retrieve_parts(pipeline: Pipeline, questions: Questions, query: QueryBundle) -> Refinement:
    """Retrieve for each part of a query. The parts share the query's budget, and the nodes that may be graded.

    :param pipeline: retrieves for a part.
    :param questions: splits a query.
    :param query: the query.
    :return: the whole query's refinement where it has one part; else one with `parts`, whose nodes are theirs by
        reciprocal rank.
    :raises Exception: a part's embedding or its first search failed; with on_error="raise", anything that failed.
    """
    account = Account(pipeline.budget)
    parts = await _parts(pipeline, questions, query, account)
    if len(parts) < 2:
        return (await pipeline.retrieve(query, account))[0]
    share, memory = pipeline.feedback_top_k // len(parts), pipeline.remembering
    of_a_part = replace(
        pipeline,
        feedback_top_k=share,
        rounds=min(pipeline.rounds, share // 2),
        # Who asks the part by itself later has more grades to ask for.
        remembering=memory and replace(memory, feedback_top_k=share),
    )
    outcomes = await gather("parts", [of_a_part.retrieve(part, account.part()) for part in parts])
    results = [(*outcome.get(), outcome.seconds) for outcome in outcomes]
    found = [replace(refinement, timings=seconds) for refinement, _, seconds in results]
    told = [feedback for _, feedback, _ in results if feedback is not None]
    groups = {same_id(point): group for feedback in told for point, group in feedback.groups.items()}
    grouping = pipeline.collection.options.grouping
    return _fused(query, found, account, lambda lists: fused(lists, pipeline.similarity_top_k, grouping, groups))


async def _parts(pipeline: Pipeline, questions: Questions, query: QueryBundle, account: Account) -> list[QueryBundle]:
    if query.image_path or not query.query_str.strip() or not account.open_call():
        return [query]
    try:
        texts = await perform("decompose", questions, query)
    except Exception as error:
        if pipeline.on_error == "raise":
            raise
        account.note(f"the query could not be split ({type(error).__name__})")
        logger.warning("Retrieving for the whole query, which could not be split: %s", type(error).__name__)
        return [query]
    like, unlike = (query.like, query.unlike) if isinstance(query, QueryWithExamples) else ((), ())
    return [with_examples(text, like, unlike) for text in texts[: min(MOST_PARTS, pipeline.feedback_top_k // 2)]]


def questions_of(decompose: bool | BaseQuestionGenerator, score: str) -> Questions | None:
    """Say how queries are split.

    :param decompose: whether, or by what.
    :param score: what the nodes' scores are to be.
    :return: how; None for not at all.
    :raises ValueError: something else, or scores that lists of several questions cannot have.
    """
    if decompose is False:
        return None
    if score == "probability":
        raise ValueError(
            "decompose merges the lists of several questions, but score='probability' is about one: leave one of "
            "them out"
        )
    if decompose is not True and not isinstance(decompose, BaseQuestionGenerator):
        raise ValueError(f"decompose must be a bool or a question generator, got {type(decompose).__name__}")
    return Questions(None if decompose is True else decompose)


def fused(
    lists: Sequence[Sequence[NodeWithScore]],
    limit: int,
    grouping: Grouping | None = None,
    groups: Mapping[str, str | None] | None = None,
) -> list[NodeWithScore]:
    """Fuse lists by reciprocal rank: a node's score is the sum of 1 / (60 + its rank) over the lists that have it.

    :param lists: nodes, best first.
    :param limit: the most nodes.
    :param grouping: how many nodes of one document; None for any number.
    :param groups: the document of each node, by its id.
    :return: the nodes, best first; of equal ones that of the first list.
    """
    scores: dict[str, float] = {}
    nodes: dict[str, BaseNode] = {}
    for rows in lists:
        for rank, entry in enumerate(rows, 1):
            scores[entry.node_id] = scores.get(entry.node_id, 0.0) + 1 / (CONSTANT + rank)
            nodes.setdefault(entry.node_id, entry.node)
    best = sorted(scores, key=lambda node_id: -scores[node_id])
    if grouping is not None and groups is not None:
        best = [best[at] for at in grouping.first([groups.get(same_id(node_id)) for node_id in best])]
    best = best[:limit]
    return [NodeWithScore(node=nodes[node_id], score=scores[node_id]) for node_id in best]


def _fused(
    query: QueryBundle,
    parts: Sequence[Refinement],
    account: Account,
    fuse: Callable[[Sequence[Sequence[NodeWithScore]]], list[NodeWithScore]],
) -> Refinement:
    before = fuse([part.nodes_before for part in parts])
    whole = Refinement.unmoved(np.asarray(parts[0].query), query.query_str, before)
    reasons = list(dict.fromkeys(part.reason for part in parts if part.reason))
    graded = [part for part in parts if part.refined]
    return replace(
        whole,
        nodes=fuse([part.nodes for part in parts]),
        parts=tuple(parts),
        metric=parts[0].metric,
        grades=np.concatenate([whole.grades, *(np.asarray(part.grades) for part in graded)]),
        graded_nodes=[entry for part in graded for entry in part.graded_nodes],
        documents=_beside([whole.documents, *(part.documents for part in graded)]),
        ungraded=sum(part.ungraded for part in parts),
        rounds=max(part.rounds for part in parts),
        saved_grades=sum(part.saved_grades for part in parts),
        remembered=sum(part.remembered for part in parts),
        borrowed=sum(part.borrowed for part in parts),
        answerable=max((part.answerable for part in parts if part.answerable is not None), default=None),
        failures=tuple(account.failures),
        reason=None if graded else "; ".join(reasons),
        **account.bill(),
    )


def _beside(documents: Sequence[Any]) -> np.ndarray:
    """Put the parts' documents together; none where each part has rows of its own, as its tokens' matches are."""
    alike = len({np.shape(rows)[1:] for rows in documents}) == 1 and np.ndim(documents[0]) == 2
    return np.concatenate([np.asarray(rows) for rows in documents]) if alike else np.asarray(documents[0])[:0]
