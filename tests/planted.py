"""A small collection with planted topics, in a real Qdrant, and teachers that know them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llama_index.core.schema import BaseNode, QueryBundle, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from llama_index_refine import BaseGrader

TOPICS, PER_TOPIC, SIZE = 8, 40, 32


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def point_id(row: int) -> str:
    return f"00000000-0000-4000-8000-{row:012d}"


class Planted:
    """Documents scattered around topics; a query points to its topic, but not well.

    With another `fresh`, other documents are on the same topics.
    """

    def __init__(self, seed: int = 0, fresh: int = 0) -> None:
        rng = np.random.default_rng(seed)
        topics = unit(rng.normal(size=(TOPICS, SIZE)))
        self.labels = np.repeat(np.arange(TOPICS), PER_TOPIC)
        scatter = rng.normal(size=(len(self.labels), SIZE))
        self.queries = unit(topics + 0.25 * rng.normal(size=(TOPICS, SIZE)))
        if fresh:
            scatter = np.random.default_rng([seed, fresh]).normal(size=scatter.shape)
        self.vectors = unit(topics[self.labels] + 0.22 * scatter)

    def nodes(self) -> list[TextNode]:
        return [
            TextNode(
                id_=point_id(row),
                text=f"document {row} on topic {label}",
                metadata={"topic": int(label), "row": row, "half": row % 2},
                embedding=vector.tolist(),
            )
            for row, (label, vector) in enumerate(zip(self.labels, self.vectors, strict=True))
        ]

    def store(self, client: QdrantClient | None = None, name: str = "planted", **kwargs) -> QdrantVectorStore:
        store = QdrantVectorStore(collection_name=name, client=client or QdrantClient(":memory:"), **kwargs)
        store.add(self.nodes())
        return store

    def query(self, topic: int) -> QueryBundle:
        return QueryBundle(f"topic {topic}", embedding=self.queries[topic].tolist())

    def precision(self, nodes: Sequence, topic: int) -> float:
        return float(np.mean([entry.node.metadata["topic"] == topic for entry in nodes]))


class TopicGrader(BaseGrader):
    """Grades by the planted topic, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        self.shown.append([node.node_id for node in nodes])
        topic = int(query.query_str.split()[-1])
        return [float(node.metadata["topic"] == topic) for node in nodes]


class AnswerGrader(BaseGrader):
    """Answers whatever it is told to, however many nodes there are."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]):
        return self.answer(nodes)
