"""A small real index: sixty short texts on six subjects, embedded by their words, in a Qdrant in memory.

A query's own words find texts of several subjects, and only the teacher knows which subject is meant, so that
refining has something to gain.
"""

from __future__ import annotations

import re
import uuid
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, NodeRelationship, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

from llama_index_refine import BaseGrader

SIZE = 48
QUERY = "how does the animal sleep at night"
SUBJECTS = {
    "cats": "cat kitten whiskers purr fur",
    "dogs": "dog puppy leash bark tail",
    "owls": "owl wings hunt feather perch",
    "hotels": "hotel room pillow reception guest",
    "trains": "train rail carriage station platform",
    "stars": "star telescope sky planet orbit",
}
DOINGS = [
    "sleep at night", "sleep in the day", "eat in the morning", "move in the dark", "wait at night",
    "rest after lunch", "sleep in winter", "work at night", "turn in the wind", "stay awake",
]  # fmt: skip


@lru_cache(maxsize=4096)
def word_vector(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=SIZE)


class WordEmbedding(BaseEmbedding):
    """The mean of one random vector for each word."""

    def _embed(self, text: str) -> list[float]:
        words = re.findall(r"\w+", text.lower())
        return np.mean([word_vector(word) for word in words], axis=0).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)


class SubjectGrader(BaseGrader):
    """Knows what is meant: nodes on one subject."""

    def __init__(self, subject: str = "owls") -> None:
        self.subject = subject

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Sequence[float | None]:
        words = set(SUBJECTS[self.subject].split())
        return [0.95 if words & set(node.get_content().split()) else 0.05 for node in nodes]


class BrokenGrader(BaseGrader):
    """A teacher that fails."""

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Sequence[float | None]:
        raise RuntimeError("the teacher is out")


def node_id(name: str) -> str:
    """A point id that Qdrant takes."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def make_nodes() -> list[TextNode]:
    """Sixty nodes with everything a node can carry: metadata, keys kept from prompts, relationships, places."""
    nodes = []
    for subject, words in SUBJECTS.items():
        first, second, third, fourth, fifth = words.split()
        for at, doing in enumerate(DOINGS):
            text = f"the {first} with {(second, third, fourth, fifth)[at % 4]} would {doing}"
            node = TextNode(
                id_=node_id(f"{subject} {at}"),
                text=text,
                metadata={"subject": subject, "page": at, "secret": f"kept {at}", "tags": ["a", subject]},
                excluded_llm_metadata_keys=["secret"],
                excluded_embed_metadata_keys=["page", "secret", "subject", "tags"],
                metadata_template="{key} = {value}",
                text_template="{metadata_str}\n\n{content}",
                start_char_idx=100 * at,
                end_char_idx=100 * at + len(text),
            )
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(
                node_id=f"document-{subject}", metadata={"title": f"All about {subject}"}, hash="abc"
            )
            if at:
                node.relationships[NodeRelationship.PREVIOUS] = RelatedNodeInfo(node_id=nodes[-1].node_id)
            nodes.append(node)
    return nodes


def make_store(name: str = "small", aclient: AsyncQdrantClient | None = None) -> QdrantVectorStore:
    """A store in memory."""
    return QdrantVectorStore(name, client=QdrantClient(":memory:"), aclient=aclient)


def make_index(nodes: Sequence[BaseNode] | None = None, **arguments: Any) -> VectorStoreIndex:
    """An index over a store in memory."""
    storage = StorageContext.from_defaults(vector_store=make_store())
    given = make_nodes() if nodes is None else list(nodes)
    return VectorStoreIndex(given, storage_context=storage, embed_model=WordEmbedding(), **arguments)
