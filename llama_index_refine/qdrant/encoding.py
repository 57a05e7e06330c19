"""What texts are encoded as, beside dense vectors: the sparse query of hybrid mode, and matrices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.qdrant.requests import MatrixEncoder


@dataclass(frozen=True, eq=False)
class Encoding:
    """Encodes texts, several queries' in one go. Where that fails each is encoded alone, so that it fails alone.

    :param encode: returns what each item is encoded as.
    """

    encode: Callable[[Sequence[Any]], Sequence[Any]]

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return what each item is encoded as, or the exception."""
        try:
            return self.encode(items)
        except Exception as error:
            return [error] if len(items) == 1 else [self.run([item])[0] for item in items]

    async def arun(self, items: Sequence[Any]) -> Sequence[Any]:
        """Encode in a worker thread: the function is blocking and may be a model."""
        return await asyncio.to_thread(self.run, items)


def sparse_vectors_of(store: QdrantVectorStore, texts: Sequence[str]) -> list[models.SparseVector]:
    """Make sparse vectors of texts, with the store's function."""
    function = store._sparse_query_fn
    assert function is not None
    indices, values = function(list(texts))
    if len(indices) != len(texts):
        raise ValueError(f"sparse_query_fn must return a vector for each of {len(texts)} texts, got {len(indices)}")
    return [
        models.SparseVector(indices=[int(at) for at in row], values=[float(value) for value in worth])
        for row, worth in zip(indices, values, strict=True)
    ]


def matrices_of(function: MatrixEncoder, items: Sequence[Sequence[str]]) -> list[Any]:
    """Make matrices, with a vector a token.

    :param function: makes a matrix of each text.
    :param items: the texts of each query.
    :return: (T, d) for each, the tokens of all its texts; the exception for one that is no matrix.
    """
    texts = [text for item in items for text in item]
    made = function(texts)
    if not hasattr(made, "__len__") or len(made) != len(texts):
        many = len(made) if hasattr(made, "__len__") else type(made).__name__
        raise ValueError(f"multivector_query_fn must return a matrix for each of {len(texts)} texts, got {many}")
    rest = iter(made)
    return [_stacked([next(rest) for _ in item]) for item in items]


def as_matrix(name: str, given: Any) -> np.ndarray:
    """Read a query's matrix.

    :param name: what it is, for the error.
    :param given: a list of lists, or an array.
    :return: (T, d) float32.
    :raises ValueError: it is no matrix, empty, or holds what is not finite.
    """
    try:
        matrix = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a matrix of numbers, one vector per token: {error}") from error
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"{name} must be a matrix, (T, d) with one vector per token, got the shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return matrix


def _stacked(matrices: Sequence[Any]) -> Any:
    try:
        return np.concatenate([as_matrix("what multivector_query_fn returns for a text", one) for one in matrices])
    except ValueError as error:
        return error
