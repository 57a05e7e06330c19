"""Let an LLM grade the first results, refine the query vector by the grades, and search Qdrant again.

The names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index_refine.calibration import Calibration as Calibration
    from llama_index_refine.calibration import propose as propose
    from llama_index_refine.classifier import RefinedClassifier as RefinedClassifier
    from llama_index_refine.graders.account import Budget as Budget
    from llama_index_refine.graders.asking.calls import CallOptions as CallOptions
    from llama_index_refine.graders.base import BaseGrader as BaseGrader
    from llama_index_refine.graders.base import GraderError as GraderError
    from llama_index_refine.graders.base import Grades as Grades
    from llama_index_refine.graders.cache import CachedGrader as CachedGrader
    from llama_index_refine.graders.cross_encoder import CrossEncoderGrader as CrossEncoderGrader
    from llama_index_refine.graders.ensembles import AverageGrader as AverageGrader
    from llama_index_refine.graders.ensembles import CascadeGrader as CascadeGrader
    from llama_index_refine.graders.ensembles import SelfConsistencyGrader as SelfConsistencyGrader
    from llama_index_refine.graders.feedback import FeedbackGrader as FeedbackGrader
    from llama_index_refine.graders.listwise import ListwiseGrader as ListwiseGrader
    from llama_index_refine.graders.llm import LLMGrader as LLMGrader
    from llama_index_refine.graders.llm import ScaleGrader as ScaleGrader
    from llama_index_refine.graders.openai import OpenAIGrader as OpenAIGrader
    from llama_index_refine.graders.postprocessor import PostprocessorGrader as PostprocessorGrader
    from llama_index_refine.graders.rerank import RerankGrader as RerankGrader
    from llama_index_refine.memory.memory import RefinementMemory as RefinementMemory
    from llama_index_refine.refinement import Refinement as Refinement
    from llama_index_refine.refining.refiner import QueryRefiner as QueryRefiner
    from llama_index_refine.refining.trust import Reliability as Reliability
    from llama_index_refine.retrieval.queries import QueryWithExamples as QueryWithExamples
    from llama_index_refine.retriever import RefinedRetriever as RefinedRetriever
    from llama_index_refine.selection import Selection as Selection

__version__ = "0.2.0"

_HOME = {
    "AverageGrader": "graders.ensembles",
    "BaseGrader": "graders.base",
    "Budget": "graders.account",
    "CachedGrader": "graders.cache",
    "CallOptions": "graders.asking.calls",
    "Calibration": "calibration",
    "CascadeGrader": "graders.ensembles",
    "CrossEncoderGrader": "graders.cross_encoder",
    "FeedbackGrader": "graders.feedback",
    "GraderError": "graders.base",
    "Grades": "graders.base",
    "LLMGrader": "graders.llm",
    "ListwiseGrader": "graders.listwise",
    "OpenAIGrader": "graders.openai",
    "PostprocessorGrader": "graders.postprocessor",
    "QueryRefiner": "refining.refiner",
    "QueryWithExamples": "retrieval.queries",
    "RefinedClassifier": "classifier",
    "RefinedRetriever": "retriever",
    "Refinement": "refinement",
    "RefinementMemory": "memory.memory",
    "Reliability": "refining.trust",
    "RerankGrader": "graders.rerank",
    "ScaleGrader": "graders.llm",
    "Selection": "selection",
    "SelfConsistencyGrader": "graders.ensembles",
    "propose": "calibration",
}

__all__ = [
    "AverageGrader",
    "BaseGrader",
    "Budget",
    "CachedGrader",
    "Calibration",
    "CallOptions",
    "CascadeGrader",
    "CrossEncoderGrader",
    "FeedbackGrader",
    "GraderError",
    "Grades",
    "LLMGrader",
    "ListwiseGrader",
    "OpenAIGrader",
    "PostprocessorGrader",
    "QueryRefiner",
    "QueryWithExamples",
    "RefinedClassifier",
    "RefinedRetriever",
    "Refinement",
    "RefinementMemory",
    "Reliability",
    "RerankGrader",
    "ScaleGrader",
    "Selection",
    "SelfConsistencyGrader",
    "propose",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
