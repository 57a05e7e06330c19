"""What a query's first search is for."""

from __future__ import annotations

from typing import Any

import numpy as np
from llama_index.core.schema import QueryBundle
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.qdrant.encoding import MatrixEncoding, SparseEncoding, as_matrix
from llama_index_refine.qdrant.multivector import Multivector
from llama_index_refine.qdrant.options import Hybrid, SearchOptions
from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.views.base import Query, Row
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.qdrant.views.hybrid import HybridQuery
from llama_index_refine.qdrant.views.matrices import MatrixQuery
from llama_index_refine.qdrant.views.sparse import SparseQuery
from llama_index_refine.steps import Step, Steps


class Asking:
    """Puts queries into what is searched for, encoding their texts for the searches that are not dense.

    :param store: the vector store, which makes the sparse vectors.
    :param options: what takes part in a search.
    """

    def __init__(self, store: QdrantVectorStore, options: SearchOptions) -> None:
        self._options = options
        self._words = SparseEncoding(store)
        self._matrices = MatrixEncoding(options.multivector.query_fn) if options.multivector else None

    def embeds(self, space: Space) -> bool:
        """Say whether a dense vector is searched, so that the query has to be embedded."""
        multivector = self._options.multivector
        return space.size > 0 if multivector is None else multivector.prefetch is not None

    def query(self, embedding: Any, bundle: QueryBundle, space: Space) -> Steps[Query]:
        """Return what is searched for.

        :param embedding: the query's embedding, (d,); where no dense vector is searched, the matrix that the query
            brings, (T, d), or None.
        :param bundle: the query.
        :param space: what is searched.
        :return: the query.
        :raises ValueError: there is nothing to search for.
        """
        near = DenseQuery(_vector(embedding)) if self.embeds(space) else None
        if self._options.multivector is not None:
            return (yield from self._compared(self._options.multivector, near, embedding, bundle))
        if near is not None and space.sparse is None:
            return near
        words = models.SparseVector(indices=[], values=[])
        # A query that is an image has no words.
        if bundle.query_str.strip():
            words = yield Step("embed", self._words, bundle.query_str)
        return SparseQuery(words) if near is None else HybridQuery(near, words, self._options.hybrid or Hybrid())

    def _compared(
        self, how: Multivector, near: DenseQuery | None, embedding: Any, bundle: QueryBundle
    ) -> Steps[MatrixQuery]:
        """Search for the query's matrix, made of its text unless it brings one."""
        if near is None and embedding is not None:
            return MatrixQuery(as_matrix("the query's embedding", embedding))
        texts = [text for text in bundle.embedding_strs if text.strip()]
        if not texts:
            instead = "" if near else ": give the query its matrix as embedding"
            raise ValueError(f"the query has no text, which is what multivector_query_fn takes{instead}")
        assert self._matrices is not None
        matrix: Row = yield Step("embed", self._matrices, texts)
        return MatrixQuery(matrix, near, how.prefetch_limit)


def _vector(embedding: Any) -> Row:
    """Read a dense query. :raises ValueError: it is no vector, or holds what is not finite."""
    vector = np.asarray(embedding, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError(f"the query's embedding must be one vector, (d,), got the shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError("the query's embedding holds NaN or infinity")
    return vector
