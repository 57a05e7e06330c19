"""Several questions in one: each part is retrieved for by itself, and their lists are fused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.question_gen.types import BaseQuestionGenerator
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.tools.types import ToolMetadata

from llama_index_refine.graders.account import Account
from llama_index_refine.refinement import Refinement
from llama_index_refine.retrieval.examples import QueryWithExamples, with_examples
from llama_index_refine.retrieval.loop import FeedbackLoop
from llama_index_refine.retrieval.notes import with_parts
from llama_index_refine.retrieval.outcomes import billed, finished
from llama_index_refine.retrieval.running import arun, run
from llama_index_refine.steps import Step, Steps

logger = logging.getLogger(__name__)

# A question in more parts than this is no question any more; each part costs a search and two grades at least.
MOST_PARTS = 5
# Reciprocal rank fusion's constant (Cormack, Clarke and Buettcher 2009).
CONSTANT = 60
TOOL = ToolMetadata(name="documents", description="Finds documents about one subject at a time.")


@dataclass(frozen=True)
class Questions:
    """Has queries split by an LLM. An item is a `QueryBundle`, its result a list of texts.

    :param generator: LlamaIndex's question generator, None for one on `Settings.llm`.
    """

    generator: BaseQuestionGenerator | None

    def run(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Split one after the other."""
        results: list[Any] = []
        for item in items:
            try:
                results.append(_texts(self._made().generate([TOOL], item)))
            except Exception as error:
                results.append(error)
        return results

    async def arun(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Split without blocking the event loop."""
        results: list[Any] = []
        for item in items:
            try:
                results.append(_texts(await self._made().agenerate([TOOL], item)))
            except Exception as error:
                results.append(error)
        return results

    def _made(self) -> BaseQuestionGenerator:
        return self.generator or LLMQuestionGenerator.from_defaults()


@dataclass(frozen=True)
class SideBySide:
    """Runs retrievals side by side. An item is a list of steps, its result a list of `Outcome`s."""

    def run(self, items: Sequence[Sequence[Steps[Any]]]) -> Sequence[Any]:
        """Run them, blocking."""
        return [run(sequences) for sequences in items]

    async def arun(self, items: Sequence[Sequence[Steps[Any]]]) -> Sequence[Any]:
        """Run them without blocking the event loop."""
        return [await arun(sequences) for sequences in items]


@dataclass(frozen=True)
class Decomposing:
    """Retrieves for each part of a query. The parts share the query's budget, and the nodes that may be graded.

    :param questions: splits a query.
    """

    questions: Questions

    def steps(self, loop: FeedbackLoop, query: QueryBundle) -> Steps[Refinement]:
        """Retrieve for one query.

        :param loop: retrieves for a part.
        :param query: the query.
        :return: the whole query's refinement where it has one part; else one with `parts`, whose nodes are theirs by
            reciprocal rank.
        :raises Exception: a part's embedding or its first search failed; with on_error="raise", anything that failed.
        """
        account = Account(loop.budget)
        parts = yield from self._parts(loop, query, account)
        if len(parts) < 2:
            return (yield from loop.steps(query, account))
        share = loop.feedback_top_k // len(parts)
        of_a_part = replace(loop, feedback_top_k=share, rounds=min(loop.rounds, share // 2))
        sequences = [of_a_part.steps(part, account) for part in parts]
        outcomes = yield Step("parts", SideBySide(), sequences)
        found = [replace(finished(outcome), timings=outcome.seconds) for outcome in outcomes]
        return _together(query, found, account, loop.similarity_top_k)

    def _parts(self, loop: FeedbackLoop, query: QueryBundle, account: Account) -> Steps[list[QueryBundle]]:
        if query.image_path or not query.query_str.strip() or not account.open_call():
            return [query]
        try:
            texts = yield Step("decompose", self.questions, query)
        except Exception as error:
            if loop.on_error == "raise":
                raise
            account.note(f"the query could not be split ({type(error).__name__})")
            logger.warning("Retrieving for the whole query, which could not be split: %s", type(error).__name__)
            return [query]
        like, unlike = (query.like, query.unlike) if isinstance(query, QueryWithExamples) else ((), ())
        return [with_examples(text, like, unlike) for text in texts[: min(MOST_PARTS, loop.feedback_top_k // 2)]]


def split_by(decompose: bool | BaseQuestionGenerator, score: str) -> Decomposing | None:
    """Say how queries are split.

    :param decompose: whether, or by what.
    :param score: what the nodes' scores are to be.
    :return: how; None for not at all.
    :raises ValueError: something else, or scores that lists of several questions cannot have.
    """
    if decompose is False:
        return None
    if score == "probability":
        raise ValueError("decompose fuses the lists of several questions, and score='probability' is of one: choose")
    if decompose is not True and not isinstance(decompose, BaseQuestionGenerator):
        raise ValueError(f"decompose must be a bool or a question generator, got {type(decompose).__name__}")
    return Decomposing(Questions(None if decompose is True else decompose))


def fused(lists: Sequence[Sequence[NodeWithScore]], limit: int) -> list[NodeWithScore]:
    """Fuse lists by reciprocal rank: a node's score is the sum of 1 / (60 + its rank) over the lists that have it.

    :param lists: nodes, best first.
    :param limit: the most nodes.
    :return: the nodes, best first; of equal ones that of the first list.
    """
    scores: dict[str, float] = {}
    nodes: dict[str, BaseNode] = {}
    for rows in lists:
        for rank, entry in enumerate(rows, 1):
            scores[entry.node_id] = scores.get(entry.node_id, 0.0) + 1 / (CONSTANT + rank)
            nodes.setdefault(entry.node_id, entry.node)
    best = sorted(scores, key=lambda node_id: -scores[node_id])[:limit]
    return [NodeWithScore(node=nodes[node_id], score=scores[node_id]) for node_id in best]


def _together(query: QueryBundle, parts: Sequence[Refinement], account: Account, limit: int) -> Refinement:
    before = fused([part.nodes_before for part in parts], limit)
    whole = Refinement.unmoved(np.asarray(parts[0].query), query.query_str, before)
    reasons = list(dict.fromkeys(part.reason for part in parts if part.reason))
    graded = [part for part in parts if part.refined]
    return replace(
        billed(whole, account),
        nodes=with_parts(fused([part.nodes for part in parts], limit), parts),
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
        reason=None if graded else "; ".join(reasons),
    )


def _texts(questions: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(text for question in questions if (text := question.sub_question.strip())))


def _beside(documents: Sequence[Any]) -> np.ndarray:
    """Put the parts' documents together; none where each part has rows of its own, as its tokens' matches are."""
    alike = len({np.shape(rows)[1:] for rows in documents}) == 1 and np.ndim(documents[0]) == 2
    return np.concatenate([np.asarray(rows) for rows in documents]) if alike else np.asarray(documents[0])[:0]
