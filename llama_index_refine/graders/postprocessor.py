"""Any LlamaIndex node postprocessor as a teacher."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from llama_index.core.postprocessor import LLMRerank
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.asking.blocking import in_thread
from llama_index_refine.graders.base import BaseGrader, Grades


class PostprocessorGrader(BaseGrader):
    """Grades with a reranker written for LlamaIndex: Cohere, Jina, FlashRank, RankGPT and the like.

    Its scores become grades. Where it only orders, the ranks do, from 1 for the first in equal steps to 0 for the last:
    an order cannot say that nothing is relevant, so prefer rerankers with scores. What it drops gets 0. A `top_n` is
    raised to the number of nodes, on a copy.

    :param postprocessor: the postprocessor.
    :param to_grade: maps a score to [0, 1]. None keeps scores in [0, 1] as they are, divides those of `LLMRerank` by
        10, and takes all others for logits, with 1 / (1 + exp(-score)).
    """

    def __init__(self, postprocessor: BaseNodePostprocessor, to_grade: Callable[[float], float] | None = None) -> None:
        self._postprocessor = postprocessor
        self._to_grade = to_grade or (_tenth if isinstance(postprocessor, LLMRerank) else None)
        self._scores_are_logits = False

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.grade`."""
        if not nodes:
            return Grades()
        return self._grades(nodes, self._for(nodes).postprocess_nodes(_scored(nodes), query_bundle=query))

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.agrade`. A postprocessor without a coroutine of its own runs in a thread."""
        if not nodes:
            return Grades()
        account = current_account()
        postprocessor = self._for(nodes)
        try:
            if type(postprocessor)._apostprocess_nodes is BaseNodePostprocessor._apostprocess_nodes:
                working = in_thread(self.grade, query, nodes)
                return await asyncio.wait_for(working, account.seconds_left())
            asked = postprocessor.apostprocess_nodes(_scored(nodes), query_bundle=query)
            return self._grades(nodes, await asyncio.wait_for(asked, account.seconds_left()))
        except asyncio.TimeoutError:
            account.note(f"{type(postprocessor).__name__} was still at work at the deadline")
            return Grades([None] * len(nodes))

    def fingerprint(self) -> str:
        """See `BaseGrader.fingerprint`. Of the postprocessor's settings, those that are names or numbers count."""
        settings = {
            name: value
            for name in type(self._postprocessor).model_fields
            if "key" not in name and isinstance(value := getattr(self._postprocessor, name), (str, int, float))
        }
        return f"{super().fingerprint()} {self._postprocessor.class_name()} {settings}"

    def _for(self, nodes: Sequence[BaseNode]) -> BaseNodePostprocessor:
        top_n = getattr(self._postprocessor, "top_n", None)
        if isinstance(top_n, int) and top_n < len(nodes):
            return self._postprocessor.model_copy(update={"top_n": len(nodes)})
        return self._postprocessor

    def _grades(self, nodes: Sequence[BaseNode], ranked: Sequence[NodeWithScore]) -> Grades:
        scores = {found.node.node_id: found.score for found in reversed(ranked)}
        if len({score or 0.0 for score in scores.values()}) > 1 or self._to_grade is not None:
            grades = {node_id: self._of_score(score) for node_id, score in scores.items()}
        else:
            order = list(dict.fromkeys(found.node.node_id for found in ranked))
            last = max(len(order) - 1, 1)
            grades = {node_id: 1 - rank / last for rank, node_id in enumerate(order)}
        return Grades(grades.get(node.node_id, 0.0) for node in nodes)

    def _of_score(self, score: float | None) -> float | None:
        if score is None or math.isnan(score):
            return None
        if self._to_grade is not None:
            return min(1.0, max(0.0, self._to_grade(score)))
        if not 0 <= score <= 1:
            self._scores_are_logits = True
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, score)))) if self._scores_are_logits else score


def _scored(nodes: Sequence[BaseNode]) -> list[NodeWithScore]:
    """Give a postprocessor copies to work on, without a hint of their order in the scores."""
    return [NodeWithScore(node=node.model_copy(), score=0.0) for node in nodes]


def _tenth(score: float) -> float:
    return score / 10
