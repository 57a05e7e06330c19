"""Any LlamaIndex node postprocessor as a teacher."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.asking.loop import in_thread
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.combining import in_time
from llama_index_refine.locks import Lock

Scale = tuple[float, float] | Literal["logit", "rank"] | Callable[[float], float]

UNIT = (0.0, 1.0)

# By the names of classes, because most come in packages of their own. A subclass scores as its parent does.
_KNOWN: dict[str, Scale] = {
    "LLMRerank": (0.0, 10.0),
    "StructuredLLMRerank": (0.0, 10.0),
    "RankGPTRerank": "rank",
    "RankLLMRerank": "rank",
    "FlagEmbeddingReranker": "logit",
    "NVIDIARerank": "logit",
    **dict.fromkeys(
        "AWSBedrock AlibabaCloudAISearch Bedrock Cohere Contextual DashScope FlashRank Jina MixedbreadAI OpenVINO "
        "PineconeNative SiliconFlow VoyageAIRerank".replace(" ", "Rerank ").split(),
        UNIT,
    ),
}
_WITH_LLM = frozenset({"LLMRerank", "StructuredLLMRerank", "RankGPTRerank", "RankLLMRerank"})
_BY_ACTIVATION: dict[str, Scale] = {"Sigmoid": UNIT, "Identity": "logit"}
# As good as 0, and yet told from a 0 that a reranker gives: the smallest of all floats.
_NO_SCORE = 5e-324

logger = logging.getLogger(__name__)


class PostprocessorGrader(BaseGrader):
    """Grades with a reranker written for LlamaIndex: Cohere, Jina, FlashRank, RankGPT and the like.

    Its scores become grades, by the one scale that it scores on. Where it only orders, the ranks do, from 1 for the
    first in equal steps to 0 for the last: an order cannot say that nothing is relevant, so prefer rerankers with
    scores. Nodes that come later for the same query, as in a second round, are ordered together with those before, and
    graded between their neighbours. What it drops gets 0, what it leaves without a score among others gets None. A
    `top_n` is raised to the number of nodes, on a copy.

    What a reranker asks of an LLM is not counted, and the query's failures say so. Under a budget in calls or tokens it
    therefore grades nothing; a budget in seconds it keeps.

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
        self._name = type(postprocessor).__name__
        self._lock = Lock()

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.grade`."""
        if not nodes or self._may_not_be_asked():
            return Grades([None] * len(nodes))
        order, shown = self._shown(query, nodes)
        # Copies to work on, without a hint of their order in the scores.
        scored = [NodeWithScore(node=node.model_copy(), score=_NO_SCORE) for node in shown]
        ranked = self._for(shown).postprocess_nodes(scored, query_bundle=query)
        return self._grades(nodes, ranked, order)

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.agrade`. In a thread of its own, given up at the query's deadline."""
        return await in_time(in_thread(self.grade, query, nodes), self._name, len(nodes))

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`: the postprocessor's settings, prompts and LLM, and the scale."""
        return [
            self._postprocessor.class_name(),
            self._postprocessor,
            llms_of(self._postprocessor),
            "by its scores" if self._guessed else self._scale,
        ]

    def _may_not_be_asked(self) -> bool:
        """Say that its calls are not counted, where it asks an LLM. :return: whether the budget forbids it then."""
        if not asks_an_llm(self._postprocessor):
            return False
        account = current_account()
        limited = [name for name in ("calls", "tokens") if getattr(account.budget, name) is not None]
        if limited:
            kept = "give Budget(seconds=...), or a teacher that is counted"
            account.note(f"{self._name} asks its LLM by itself, so a budget in {limited[0]} cannot be kept: {kept}")
        else:
            account.note(f"the calls of {self._name}'s LLM are not counted")
        return bool(limited)

    def _shown(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> tuple[_Order, list[BaseNode]]:
        """Find what this query has had ordered before, and put the nodes behind it where only an order counts."""
        key = (id(self), query.query_str, query.image_path)
        order: _Order = current_account().kept.setdefault(key, _Order())
        new = {node.node_id for node in nodes}
        before = [node for node_id, node in order.nodes.items() if node_id not in new] if self._scale == "rank" else []
        return order, [*before, *nodes]

    def _for(self, nodes: Sequence[BaseNode]) -> BaseNodePostprocessor:
        top_n = getattr(self._postprocessor, "top_n", None)
        if isinstance(top_n, int) and top_n < len(nodes):
            return self._postprocessor.model_copy(update={"top_n": len(nodes)})
        return self._postprocessor

    def _grades(self, nodes: Sequence[BaseNode], ranked: Sequence[NodeWithScore], order: _Order) -> Grades:
        scores = {found.node.node_id: _score(found) for found in reversed(ranked)}
        given = [score for score in scores.values() if score is not None]
        scale = self._scale or self._decide(given, len(ranked))
        if self._guessed and scale == UNIT and any(not 0 <= score <= 1 for score in given):
            current_account().note(f'{self._name} does not score in [0, 1]: pass scale="logit"')
        if scale == "rank":
            return Grades(order.place(nodes, list(dict.fromkeys(found.node.node_id for found in ranked))))
        grades = {node_id: None if score is None else grade_on(scale, score) for node_id, score in scores.items()}
        return Grades(grades.get(node.node_id, 0.0) for node in nodes)

    def _decide(self, given: Collection[float], ranked: int) -> Scale:
        with self._lock:
            if self._scale is None and ranked:
                unit = all(0 <= score <= 1 for score in given)
                self._scale = "rank" if not given else UNIT if unit else "logit"
                logger.info('%s is taken to score on %r; pass scale="..." where it does not', self._name, self._scale)
            return self._scale or "rank"


class _Order:
    """What one query has had ordered so far, and the grades that came of it."""

    def __init__(self) -> None:
        self.nodes: dict[str, BaseNode] = {}
        self._grades: dict[str, float] = {}

    def place(self, nodes: Sequence[BaseNode], order: Sequence[str]) -> list[float]:
        """Grade nodes by their place in an order of all that was seen; what has a grade keeps it.

        Where nothing has one the grades go from 1 to 0 in equal steps. Others lie evenly between their neighbours'.
        """
        known = {at: self._grades[name] for at, name in enumerate(order) if name in self._grades}
        places, grades = zip(
            *({-1: 1.0, **known} if known else {0: 1.0, max(len(order) - 1, 1): 0.0}).items(), strict=True
        )
        self._grades |= dict(zip(order, np.interp(range(len(order)), places, grades).tolist(), strict=True))
        self.nodes |= {node.node_id: node for node in nodes}
        return [self._grades.get(node.node_id, 0.0) for node in nodes]


def _score(found: NodeWithScore) -> float | None:
    score = found.score
    return None if score is None or math.isnan(score) or score == _NO_SCORE else float(score)


def scale_of(postprocessor: BaseNodePostprocessor) -> Scale | None:
    """Say on which scale a reranker of LlamaIndex scores.

    :param postprocessor: the reranker.
    :return: its scale, by its class; for `SentenceTransformerRerank` by its model, of which some end in a sigmoid and
        some do not. None where it is not known.
    """
    for kind in type(postprocessor).__mro__:
        if kind.__name__ in _KNOWN:
            return _KNOWN[kind.__name__]
        if kind.__name__ == "SentenceTransformerRerank":
            model = getattr(postprocessor, "_model", None)
            # sentence-transformers called it so before its version 4.
            activation = getattr(model, "activation_fn", None) or getattr(model, "default_activation_function", None)
            return _BY_ACTIVATION.get(type(activation).__name__)
    return None


def llms_of(postprocessor: BaseNodePostprocessor) -> list[BaseLLM]:
    """Find the LLMs that a reranker holds, whatever it calls them."""
    held = {**vars(postprocessor), **(postprocessor.__pydantic_private__ or {})}
    return [value for _, value in sorted(held.items()) if isinstance(value, BaseLLM)]


def asks_an_llm(postprocessor: BaseNodePostprocessor) -> bool:
    """Whether a reranker asks an LLM by itself."""
    return bool(llms_of(postprocessor)) or any(kind.__name__ in _WITH_LLM for kind in type(postprocessor).__mro__)


def checked(scale: Scale) -> Scale:
    """Return a scale as it is. :raises ValueError: it is none."""
    if callable(scale) or scale in ("logit", "rank"):
        return scale
    if isinstance(scale, tuple) and len(scale) == 2:
        worst, best = scale
        if isinstance(worst, (int, float)) and isinstance(best, (int, float)) and -math.inf < worst < best < math.inf:
            return scale
    raise ValueError(
        f'scale must be (worst, best) with worst < best, "logit", "rank" or a function of a score; got {scale!r}'
    )


def grade_on(scale: Scale, score: float) -> float:
    """Turn a score into a grade, never a better one for a worse score.

    :param scale: what the score is on, but not "rank".
    :param score: the score, infinite ones too.
    :return: the grade in [0, 1].
    """
    if callable(scale):
        grade = scale(score)
    elif isinstance(scale, tuple):
        grade = (score - scale[0]) / (scale[1] - scale[0])
    else:
        grade = 1 / (1 + math.exp(-max(-500.0, min(500.0, score))))
    return min(1.0, max(0.0, grade))
