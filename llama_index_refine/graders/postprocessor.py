"""Any LlamaIndex node postprocessor as a teacher."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Sequence

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.asking.blocking import in_thread
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.rerankers import UNIT, Scale, checked, grade_on, likely_scale, scale_of
from llama_index_refine.locks import Lock

# As good as 0, and yet told from a 0 that a reranker gives: the smallest of all floats.
_NO_SCORE = 5e-324

logger = logging.getLogger(__name__)


class PostprocessorGrader(BaseGrader):
    """Grades with a reranker written for LlamaIndex: Cohere, Jina, FlashRank, RankGPT and the like.

    Its scores become grades, by the one scale that it scores on. Where it only orders, the ranks do, from 1 for the
    first in equal steps to 0 for the last: an order cannot say that nothing is relevant, so prefer rerankers with
    scores. What it drops gets 0, what it leaves without a score among others gets None. A `top_n` is raised to the
    number of nodes, on a copy.

    :param postprocessor: the postprocessor.
    :param scale: what its scores are on: (worst, best), such as (0, 1) or (0, 10), for even steps between them; "logit"
        for 1 / (1 + exp(-score)); "rank" for its order alone; or a function from a score to [0, 1]. None for what is
        known of its class: (0, 10) for `LLMRerank` and `StructuredLLMRerank`, "rank" for RankGPT and RankLLM, "logit"
        for FlagEmbedding and NVIDIA, that of the model for `SentenceTransformerRerank`, (0, 1) for Cohere, Jina, Voyage
        and other services. A class that is not known is decided on by the first scores it gives, for good: (0, 1) where
        all lie there, else "logit", and "rank" where it gives none.
    :raises ValueError: another scale.
    """

    def __init__(self, postprocessor: BaseNodePostprocessor, scale: Scale | None = None) -> None:
        self._postprocessor = postprocessor
        self._scale = scale_of(postprocessor) if scale is None else checked(scale)
        self._guessed = self._scale is None
        self._lock = Lock()

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
        scale = "own" if callable(self._scale) else "by its scores" if self._guessed else self._scale
        return f"{super().fingerprint()} {self._postprocessor.class_name()} {settings} {scale}"

    def _for(self, nodes: Sequence[BaseNode]) -> BaseNodePostprocessor:
        top_n = getattr(self._postprocessor, "top_n", None)
        if isinstance(top_n, int) and top_n < len(nodes):
            return self._postprocessor.model_copy(update={"top_n": len(nodes)})
        return self._postprocessor

    def _grades(self, nodes: Sequence[BaseNode], ranked: Sequence[NodeWithScore]) -> Grades:
        scores = {found.node.node_id: _score(found) for found in reversed(ranked)}
        given = [score for score in scores.values() if score is not None]
        scale = self._scale or self._decide(given, len(ranked))
        if self._guessed and scale == UNIT and any(not 0 <= score <= 1 for score in given):
            current_account().note(f'{type(self._postprocessor).__name__} does not score in [0, 1]: pass scale="logit"')
        if scale == "rank":
            order = list(dict.fromkeys(found.node.node_id for found in ranked))
            last = max(len(order) - 1, 1)
            grades: dict[str, float | None] = {node_id: 1 - rank / last for rank, node_id in enumerate(order)}
        else:
            grades = {node_id: None if score is None else grade_on(scale, score) for node_id, score in scores.items()}
        return Grades(grades.get(node.node_id, 0.0) for node in nodes)

    def _decide(self, given: Collection[float], ranked: int) -> Scale:
        with self._lock:
            if self._scale is None and ranked:
                self._scale = likely_scale(given) if given else "rank"
                name = type(self._postprocessor).__name__
                logger.info('%s is taken to score on %r; pass scale="..." where it does not', name, self._scale)
            return self._scale or "rank"


def _score(found: NodeWithScore) -> float | None:
    score = found.score
    return None if score is None or math.isnan(score) or score == _NO_SCORE else float(score)


def _scored(nodes: Sequence[BaseNode]) -> list[NodeWithScore]:
    """Give a postprocessor copies to work on, without a hint of their order in the scores."""
    return [NodeWithScore(node=node.model_copy(), score=_NO_SCORE) for node in nodes]
