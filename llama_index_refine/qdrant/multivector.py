"""How documents that are matrices are searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MatrixEncoder = Callable[[list[str]], Sequence[Any]]

# How many of the points that a dense vector finds nearest are compared by MaxSim, where nobody says.
PREFETCH = 100


@dataclass(frozen=True)
class Multivector:
    """How documents that are matrices are searched.

    :param query_fn: makes of each text a matrix, with a vector a token.
    :param prefetch: the dense vector whose nearest points are compared by MaxSim; None to compare the query with all.
    :param prefetch_limit: how many these are, at least.
    """

    query_fn: MatrixEncoder
    prefetch: str | None = None
    prefetch_limit: int = PREFETCH


def read_multivector(
    query_fn: MatrixEncoder | None, prefetch: str | None, hybrid: bool, limit: int | None
) -> Multivector | None:
    """Say how documents that are matrices are searched.

    :param query_fn: makes of each text a matrix.
    :param prefetch: the dense vector whose nearest points are compared by MaxSim.
    :param hybrid: whether a sparse search takes part.
    :param limit: how many points these are, at least; None where nobody says.
    :return: how, or None where they are vectors.
    :raises ValueError: an argument out of range, or one that would have no effect.
    """
    if query_fn is None and prefetch is not None:
        raise ValueError("prefetch_vector_name has no effect without multivector_query_fn")
    if prefetch is None and limit is not None:
        raise ValueError("prefetch_limit has no effect without prefetch_vector_name")
    if query_fn is None:
        return None
    if not callable(query_fn):
        raise ValueError(f"multivector_query_fn must be a function of a list of texts, got {type(query_fn).__name__}")
    if hybrid:
        raise ValueError("multivector_query_fn compares by MaxSim alone: leave out vector_store_query_mode='hybrid'")
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise ValueError(f"prefetch_limit must be at least 1, got {limit!r}")
    return Multivector(query_fn, prefetch, limit or PREFETCH)
