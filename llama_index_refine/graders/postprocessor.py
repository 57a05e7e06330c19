"""Any LlamaIndex node postprocessor as a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.scoring import UNIT, Scale, Scoring

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


class PostprocessorGrader(BaseGrader):
    """Grades with a reranker written for LlamaIndex: Cohere, Jina, FlashRank, RankGPT and the like.

    Its scores become grades, by one scale. If it gives no scores, ranks become grades, in equal steps from 1 for the
    first to 0 for the last. An order cannot say that nothing is relevant, so prefer rerankers with scores. Nodes of a
    later round are ordered together with the earlier ones of the query, and graded between their neighbours. A node
    that it drops gets 0. A node without a score, when others have one, gets None. A `top_n` is raised to the number of
    nodes, on a copy.

    The LLM calls of a reranker are not counted, and the query's failures say so. So with a budget in calls or tokens it
    grades nothing; it keeps a budget in seconds.

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
        self._name = type(postprocessor).__name__
        self._scoring = Scoring(self._name, scale_of(postprocessor) if scale is None else scale)

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.grade`."""
        if not nodes or self._may_not_be_asked():
            return Grades([None] * len(nodes))
        # Copies to work on, without a hint of their order in the scores.
        shown = self._scoring.shown(query, nodes)
        scored = [NodeWithScore(node=node.model_copy(), score=_NO_SCORE) for node in shown]
        scores: dict[str, float | None] = {}
        for found in self._for(shown).postprocess_nodes(scored, query_bundle=query):
            missing = found.score is None or math.isnan(found.score) or found.score == _NO_SCORE
            scores.setdefault(found.node.node_id, None if missing else found.score)
        return self._scoring.grades(query, nodes, scores)

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`: the postprocessor's settings, prompts and LLM, and the scale."""
        return [
            self._postprocessor.class_name(),
            self._postprocessor,
            llms_of(self._postprocessor),
            self._scoring.decides(),
        ]

    def _may_not_be_asked(self) -> bool:
        """Say that its calls are not counted, where it asks an LLM. :return: whether the budget forbids it then."""
        if not asks_an_llm(self._postprocessor):
            return False
        account = current_account()
        limited = [name for name in ("calls", "tokens") if getattr(account.budget, name) is not None]
        if limited:
            kept = "give Budget(seconds=...), or a teacher whose calls are counted"
            account.note(f"{self._name} asks its LLM by itself, so a budget in {limited[0]} cannot be kept: {kept}")
        else:
            account.note(f"the calls of {self._name}'s LLM are not counted")
        return bool(limited)

    def _for(self, nodes: Sequence[BaseNode]) -> BaseNodePostprocessor:
        top_n = getattr(self._postprocessor, "top_n", None)
        if isinstance(top_n, int) and top_n < len(nodes):
            return self._postprocessor.model_copy(update={"top_n": len(nodes)})
        return self._postprocessor


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
