"""Let an LLM grade the first results, refine the query vector by the grades, and search Qdrant again.

The names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index_refine.graders.account import Budget as Budget
    from llama_index_refine.graders.base import BaseGrader as BaseGrader
    from llama_index_refine.graders.base import Grades as Grades
    from llama_index_refine.graders.llm import LLMGrader as LLMGrader
    from llama_index_refine.refinement import Refinement as Refinement
    from llama_index_refine.refiner import QueryRefiner as QueryRefiner
    from llama_index_refine.retriever import RefinedRetriever as RefinedRetriever

__version__ = "0.1.0"

_HOME = {
    "BaseGrader": "graders.base",
    "Budget": "graders.account",
    "Grades": "graders.base",
    "LLMGrader": "graders.llm",
    "QueryRefiner": "refiner",
    "RefinedRetriever": "retriever",
    "Refinement": "refinement",
}

__all__ = ["BaseGrader", "Budget", "Grades", "LLMGrader", "QueryRefiner", "RefinedRetriever", "Refinement"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
