"""What a retriever may be made with, and asked for."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index.vector_stores.qdrant import QdrantVectorStore

from llama_index_refine.graders.account import Budget
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.memory.memory import RefinementMemory
from llama_index_refine.qdrant.requests import Multivector
from llama_index_refine.refining.base import BaseRefiner
from llama_index_refine.retrieval.remembering import NO_MEMORY

# Grades beyond those that refine the query, as a multiple of them: where no target is set, and where one is.
MORE, MORE_FOR_TARGET = 1, 4
_LEAST = {"similarity_top_k": 1, "feedback_top_k": 2, "rounds": 1, "background_size": 0}


def check_numbers(**counts: Any) -> None:
    """See that numbers are whole, and in their range.

    :param counts: similarity_top_k, feedback_top_k, rounds and background_size.
    :raises ValueError: one is not.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if value < _LEAST[name]:
            raise ValueError(f"{name} must be at least {_LEAST[name]}, got {value}")


def check_values(trust: Any, answerable: Any, on_error: Any, score: Any) -> None:
    """See that what is a share lies in [0, 1], and that words are among those that mean something.

    :param trust: how far to follow the teacher, where that is a number.
    :param answerable: the least probability that something answers, None for any.
    :param on_error: what happens where something fails.
    :param score: what the nodes' scores are.
    :raises ValueError: one is not.
    """
    number = isinstance(answerable, (int, float)) and not isinstance(answerable, bool)
    if answerable is not None and not (number and 0 <= answerable <= 1):
        raise ValueError(f"answerable must be a probability in [0, 1] or None, got {answerable!r}")
    if isinstance(trust, (int, float)) and not 0 <= trust <= 1:
        raise ValueError(f"trust must be in [0, 1], got {trust}")
    if on_error not in ("fallback", "raise"):
        raise ValueError(f"on_error must be 'fallback' or 'raise', got {on_error!r}")
    if score not in ("similarity", "probability"):
        raise ValueError(f"score must be 'similarity' or 'probability', got {score!r}")


def budget_of(budget: Any) -> Budget:
    """Read what grading one query may cost.

    :param budget: a `Budget`, the most LLM calls, or None for no limit.
    :return: the budget.
    :raises ValueError: something else, or a number below 1.
    """
    if budget is None or isinstance(budget, Budget):
        return budget or Budget()
    if isinstance(budget, bool) or not isinstance(budget, int):
        raise ValueError(f"budget must be a Budget, a number of calls or None, got {type(budget).__name__}")
    if budget < 1:
        raise ValueError(f"budget must be at least 1 call, got {budget}")
    return Budget(calls=budget)


def check_parts(vector_store: Any, grader: Any, memory: Any) -> None:
    """See that parts are of the kind that belongs there. :raises ValueError: one is not."""
    if grader is not None and not isinstance(grader, BaseGrader):
        raise ValueError(f"grader must be a BaseGrader, got {type(grader).__name__}; for an LLM, LLMGrader(llm)")
    if memory is not None and not isinstance(memory, RefinementMemory):
        raise ValueError(f"memory must be a RefinementMemory, got {type(memory).__name__}: RefinementMemory(store)")
    if not isinstance(vector_store, QdrantVectorStore):
        raise ValueError(f"vector_store must be a QdrantVectorStore, got {type(vector_store).__name__}")


def check_together(
    mode: VectorStoreQueryMode,
    multivector: Multivector | None,
    score: str,
    memory: RefinementMemory | None,
    refiner: BaseRefiner | None,
) -> None:
    """See that arguments do not exclude each other.

    :param mode: LlamaIndex's query mode.
    :param multivector: how documents that are matrices are searched.
    :param score: what the nodes' scores are.
    :param memory: what past queries have taught.
    :param refiner: how the query moves.
    :raises ValueError: two of them do.
    """
    if score == "probability" and mode == VectorStoreQueryMode.MMR:
        raise ValueError(
            "score='probability' sorts nodes by probability, and vector_store_query_mode='mmr' does not: leave one "
            "of them out"
        )
    if score == "probability" and mode != VectorStoreQueryMode.DEFAULT:
        raise ValueError(
            "score='probability' needs the similarity of every document, but a search in "
            f"vector_store_query_mode={mode.value!r} finds some"
        )
    alone = mode == VectorStoreQueryMode.SPARSE
    if alone and memory is not None:
        raise ValueError(NO_MEMORY)
    if alone and multivector is not None:
        raise ValueError("multivector_query_fn compares by MaxSim only: leave out vector_store_query_mode='sparse'")
    if multivector is None:
        return
    if score == "probability":
        raise ValueError("score='probability' reads the whole ranking, which takes too long with multivector_query_fn")
    if memory is not None:
        raise ValueError(
            "memory compares queries by one vector, but multivector_query_fn makes a matrix: leave one of them out"
        )
    if refiner is not None and not refiner.takes_matrices:
        raise ValueError(f"refiner is a {type(refiner).__name__}, which cannot refine matrices: leave it out")


@dataclass(frozen=True)
class Target:
    """What is asked of a selection.

    :param precision: the least share of the selected that is relevant, None for no such target.
    :param recall: the least share of the relevant that is selected, None for no such target.
    :param confidence: the probability that a certificate is right.
    :param budget: the most documents to grade, or what grading may cost; None for a default.
    :param about: who says what is relevant: the teacher, or people.
    :raises ValueError: a target outside (0, 1), or two; recall about people.
    """

    precision: float | None = None
    recall: float | None = None
    confidence: float = 0.9
    budget: int | Budget | None = None
    about: Literal["teacher", "people"] = "teacher"

    def __post_init__(self) -> None:
        if self.about not in ("teacher", "people"):
            raise ValueError(f"about must be 'teacher' or 'people', got {self.about!r}")
        for name in ("precision", "recall", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.precision is not None and self.recall is not None:
            raise ValueError("precision and recall are both given: set one to guarantee, and the other is maximised")
        if self.recall is not None and self.about == "people":
            raise ValueError(
                "recall cannot be certified with about='people': the teacher's few false yeses among all that is not "
                "selected outnumber what it misses. Ask for a precision, or for recall about the teacher"
            )

    def documents(self, feedback_top_k: int) -> int:
        """Return the most documents to grade.

        :param feedback_top_k: how many of them refine the query.
        :raises ValueError: a budget that leaves nothing to cut by.
        """
        aimed = self.precision is not None or self.recall is not None
        if self.budget is None or isinstance(self.budget, Budget):
            return feedback_top_k * (1 + (MORE_FOR_TARGET if aimed else MORE))
        if isinstance(self.budget, bool) or not isinstance(self.budget, int):
            raise ValueError(f"budget must be a Budget, a number of documents or None, got {self.budget!r}")
        if self.budget < feedback_top_k + aimed:
            least = "more than" if aimed else "at least"
            raise ValueError(
                f"budget must be {least} feedback_top_k, {feedback_top_k}, because refining the query takes that "
                f"many; got {self.budget}"
            )
        return self.budget
