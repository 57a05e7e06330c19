"""The sample, a Qdrant collection that holds it, and a retriever on that."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from llama_index.core.schema import BaseNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from llama_index_refine.demo.labels import SampleLabels
from llama_index_refine.evaluation.corpus import Corpus
from llama_index_refine.evaluation.datasets import Dataset, load_folder
from llama_index_refine.evaluation.embeddings import SentenceTransformerEmbedding, embed_queries, unit
from llama_index_refine.evaluation.teachers import node_id
from llama_index_refine.retriever import RefinedRetriever

COLLECTION = "banking77-sample"

_BATCH = 64


def load_sample(about: str = "") -> Dataset:
    """Read the sample: messages of a bank's customers, queries that name their intents, and which message has which.

    :param about: keep only the intents with this word in their name, such as "card", and their messages.
    :raises ValueError: no intent has it.
    """
    whole = load_folder(Path(__file__).parent / "banking77")
    queries = [query for query in whole.queries if about.casefold() in query.text.casefold()]
    if not queries:
        raise ValueError(f"about={about!r}: no intent of the sample has that in its name; try 'card'")
    kept = {document for query in queries for document in whole.qrels[query.id]}
    documents = [document for document in whole.documents if document.id in kept]
    return replace(whole, documents=documents, queries=queries)


def open_sample(
    about: str = "", path: Path | None = None, advance: Callable[[int, int], None] = lambda done, total: None
) -> RefinedRetriever:
    """Open a retriever on the sample, with its human labels as the teacher, and the model that the extra brings.

    The labels know the sample's own queries only: the names of the intents, as `load_sample` has them.

    :param about: keep only the intents with this word in their name, such as "card", and their messages.
    :param path: a folder to keep the collection in; None for memory.
    :param advance: called with the number of documents that have become ready, and that of all.
    :return: the retriever.
    :raises ImportError: the extra demo is missing.
    :raises ValueError: no intent has that word, or the path is a file.
    """
    dataset = load_sample(about)
    model = SentenceTransformerEmbedding(embed_batch_size=_BATCH)
    _, store = index(dataset, [0], model, open_client(path), lambda done: advance(done, len(dataset.documents)))
    return RefinedRetriever(store, model, SampleLabels(dataset))


def open_client(path: Path | None) -> QdrantClient:
    """Open Qdrant's local mode.

    :param path: a folder, None for memory.
    :raises ValueError: the path is a file.
    :raises RuntimeError: another process has opened the folder.
    """
    if path is None:
        return QdrantClient(":memory:")
    if path.is_file():
        raise ValueError(f"--path {path} is a file; give a folder")
    return QdrantClient(path=str(path))


def index(
    dataset: Dataset,
    rows: Sequence[int],
    model: SentenceTransformerEmbedding,
    client: QdrantClient,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[Corpus, QdrantVectorStore]:
    """Embed the documents that the collection lacks and write them there.

    :param dataset: the sample.
    :param rows: the queries to measure.
    :param model: the embedding model.
    :param client: where the collection is, or will be.
    :param advance: called with the number of documents that are ready.
    :return: the sample with its vectors, and the collection.
    """
    known = _stored(client)
    missing = [document for document in dataset.documents if node_id(document.id) not in known]
    missing.sort(key=lambda document: len(document.text))  # Batches of one length need no padding.
    advance(len(dataset.documents) - len(missing))
    for start in range(0, len(missing), _BATCH):
        part = missing[start : start + _BATCH]
        vectors = model.get_text_embedding_batch([document.text for document in part])
        known.update((node_id(document.id), vector) for document, vector in zip(part, vectors, strict=True))
        advance(len(part))
    documents = np.array([known[node_id(document.id)] for document in dataset.documents])
    queries = [dataset.queries[row] for row in rows]
    asked = embed_queries(model, [query.text for query in queries])
    corpus = Corpus(dataset, model.model_name, queries, unit(documents), unit(asked), model)
    store = QdrantVectorStore(collection_name=COLLECTION, client=client, batch_size=512)
    added = {node_id(document.id) for document in missing}
    new: list[BaseNode] = [
        node.model_copy(update={"embedding": known[node.node_id]}) for node in corpus.nodes if node.node_id in added
    ]
    if new:
        with warnings.catch_warnings():
            # LlamaIndex makes them for document ids, and Qdrant's local mode needs none.
            warnings.filterwarnings("ignore", "Payload indexes have no effect")
            store.add(new)
    return corpus, store


def _stored(client: QdrantClient) -> dict[str, list[float]]:
    """Node id to vector of what the collection holds."""
    if not client.collection_exists(COLLECTION):
        return {}
    size = client.count(COLLECTION).count
    points, _ = client.scroll(COLLECTION, limit=max(size, 1), with_payload=False, with_vectors=True)
    vectors = {str(point.id): point.vector for point in points}
    return {name: next(iter(v.values())) if isinstance(v, dict) else v for name, v in vectors.items()}  # type: ignore
