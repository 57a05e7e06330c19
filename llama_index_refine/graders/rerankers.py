"""The scales that rerankers score on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Literal

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor

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


def likely_scale(scores: Collection[float]) -> Scale:
    """Tell the scale of an unknown reranker by its first scores: [0, 1] where all lie there, else logits."""
    return UNIT if all(0 <= score <= 1 for score in scores) else "logit"


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
