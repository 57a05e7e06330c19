"""A data set made ready to measure on: vectors, and a Qdrant collection that holds them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from llama_index_refine.evaluation.cache import cached_vectors
from llama_index_refine.evaluation.datasets import Dataset, Query
from llama_index_refine.evaluation.embeddings import embed_documents, embed_queries, files_of, unit
from llama_index_refine.evaluation.teachers import LabelledQuery, node_id

Floats = NDArray[np.float32]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Corpus:
    """A data set, its vectors and the queries that are measured.

    :param embedding: the name of the embedding.
    :param document_vectors: (n, d) of length 1.
    :param query_vectors: (m, d) of length 1, a row for each of `queries`.
    :param embed_model: what made them, None where they were read from a file.
    """

    dataset: Dataset
    embedding: str
    queries: Sequence[Query]
    document_vectors: Floats
    query_vectors: Floats
    embed_model: BaseEmbedding | None = None
    _groups: dict[str | None, tuple[NDArray[np.intp], Floats]] = field(default_factory=dict)

    def searched(self, query: Query) -> tuple[NDArray[np.intp], Floats]:
        """Rows and vectors of the documents in the query's group, its excluded document among them."""
        if query.group not in self._groups:
            rows = self.dataset.pool(Query("", "", query.group))
            whole = len(rows) == len(self.document_vectors)
            self._groups[query.group] = rows, self.document_vectors if whole else self.document_vectors[rows]
        return self._groups[query.group]

    def bundle(self, row: int) -> LabelledQuery:
        """The query in this row as a retriever takes it, with its embedding."""
        query = self.queries[row]
        return LabelledQuery(query.text, embedding=self.query_vectors[row].tolist(), query_id=query.id)

    @cached_property
    def vectors_digest(self) -> str:
        """Tells the vectors from others."""
        found = hashlib.sha256()
        for vectors in (self.document_vectors, self.query_vectors):
            found.update(vectors.tobytes())
        return found.hexdigest()

    @cached_property
    def nodes(self) -> list[TextNode]:
        """One node for each document, without embedding. Only their text is for an LLM to see."""
        return [
            TextNode(
                id_=node_id(document.id),
                text=document.text,
                metadata={"document": document.id, "group": list(document.groups)},
                excluded_llm_metadata_keys=["document", "group"],
                excluded_embed_metadata_keys=["document", "group"],
            )
            for document in self.dataset.documents
        ]

    def store(self) -> QdrantVectorStore:
        """Write all documents into a Qdrant collection in memory."""
        store = QdrantVectorStore(collection_name=self.dataset.name, client=QdrantClient(":memory:"), batch_size=1024)
        pairs = zip(self.nodes, self.document_vectors, strict=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Payload indexes have no effect", UserWarning)
            warnings.filterwarnings("ignore", "Local mode is not recommended", UserWarning)
            store.add([node.model_copy(update={"embedding": vector.tolist()}) for node, vector in pairs])
        return store


@contextmanager
def same_samples(seed: int = 0) -> Iterator[None]:
    """Let Qdrant's local mode draw the same random points in every run: it takes them from numpy's global generator.

    :param seed: another one for other points.
    """
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def filters_of(query: Query) -> MetadataFilters | None:
    """The query's group and excluded document as metadata filters; None where it searches everything."""
    filters: list[MetadataFilter | MetadataFilters] = []
    if query.group is not None:
        filters.append(MetadataFilter(key="group", value=query.group))
    if query.exclude is not None:
        filters.append(MetadataFilter(key="document", value=query.exclude, operator=FilterOperator.NE))
    return MetadataFilters(filters=filters) if filters else None


def read_vectors(dataset: Dataset, embedding: str, rows: Sequence[int]) -> Corpus:
    """Take a data set's precomputed vectors.

    :param embedding: one of the data set's `vectors`.
    :param rows: the queries to measure.
    :raises ValueError: the file does not fit the data set.
    """
    path = dataset.vectors[embedding]
    with np.load(path, allow_pickle=False) as arrays:
        if missing := {"corpus", "queries"} - set(arrays.files):
            raise ValueError(f"{path} has no array {sorted(missing)}")
        documents, queries = arrays["corpus"], arrays["queries"]
    for name, found, wanted in (("corpus", documents, dataset.documents), ("queries", queries, dataset.queries)):
        if found.ndim != 2 or len(found) != len(wanted):
            raise ValueError(f"{path}: {name} has shape {found.shape}, but the data set has {len(wanted)} of them")
    chosen = [dataset.queries[row] for row in rows]
    return Corpus(dataset, embedding, chosen, unit(documents), unit(queries[list(rows)]))


def embed(
    dataset: Dataset,
    embedding: str,
    embed_model: BaseEmbedding,
    rows: Sequence[int],
    cache: Path,
    advance: Advance = lambda done: None,
) -> Corpus:
    """Embed a data set, or take what is cached.

    :param embedding: what to call the embedding.
    :param rows: the queries to measure.
    :param cache: the cache folder.
    :param advance: called with the number of texts done.
    """
    queries = [dataset.queries[row] for row in rows]
    server = getattr(embed_model, "api_base", None)
    identity = f"{type(embed_model).__name__}|{embed_model.model_name}|{server}|{files_of(embed_model.model_name)}"
    documents = cached_vectors(
        cache,
        f"{identity}|document",
        [document.text for document in dataset.documents],
        lambda texts: embed_documents(embed_model, texts),
        advance,
    )
    asked = cached_vectors(
        cache, f"{identity}|query", [q.text for q in queries], lambda texts: embed_queries(embed_model, texts), advance
    )
    return Corpus(dataset, embedding, queries, unit(documents), unit(asked), embed_model)
