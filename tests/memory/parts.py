"""What the tests of the memory share: collections in two places, stores of two kinds, a teacher that tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from llama_index.core.schema import QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine import RefinedRetriever, RefinementMemory
from tests.places import SIZE, LabelGrader, Place, points, question

WHERE = ("memory", "edge")


class Teacher(LabelGrader):
    """Knows that a node is relevant to the query whose first word is its topic, and tells what it was shown."""

    def __init__(self, upside_down: bool = False) -> None:
        super().__init__()
        self.upside_down = upside_down

    def grade(self, query, nodes):
        grades = super().grade(QueryBundle(query.query_str.split()[0]), nodes)
        return [1 - grade for grade in grades] if self.upside_down else grades

    def fingerprint(self) -> str:
        return "labels"


class FileKVStore(BaseKVStore):
    """A key-value store in a folder, one file a record, that several processes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, key, collection):
        (self.folder / collection).mkdir(parents=True, exist_ok=True)
        return self.folder / collection / f"{key}.json"

    def put(self, key, val, collection="data"):
        self._file(key, collection).write_text(json.dumps(val))

    def get(self, key, collection="data"):
        file = self._file(key, collection)
        return json.loads(file.read_text()) if file.exists() else None

    def get_all(self, collection="data"):
        self._file("", collection)
        return {file.stem: json.loads(file.read_text()) for file in (self.folder / collection).glob("*.json")}

    def delete(self, key, collection="data"):
        self._file(key, collection).unlink(missing_ok=True)
        return True

    async def aput(self, key, val, collection="data"):
        self.put(key, val, collection)

    async def aget(self, key, collection="data"):
        return self.get(key, collection)

    async def aget_all(self, collection="data"):
        return self.get_all(collection)

    async def adelete(self, key, collection="data"):
        return self.delete(key, collection)


def filled(place: Place) -> str:
    name = place.create(models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    place.write(name, points())
    return name


def store_in(place: Place, kind: str):
    """A store for a memory: its own collection in the same place, or key and value."""
    if kind == "kv":
        return SimpleKVStore()
    place.made.append(f"{place.made[-1]}-memory")
    return QdrantVectorStore(client=place.client, collection_name=place.made[-1])


def retriever(place: Place, name: str, memory: RefinementMemory | None, teacher=None, **kwargs) -> RefinedRetriever:
    return RefinedRetriever.from_collection(
        place.client,
        name,
        text_key="meta.abstract",
        grader=teacher or Teacher(),
        memory=memory,
        **{"early_stop": False, **kwargs},
    )


def asked(topic: int, words: str = "", near: float = 0.0) -> QueryBundle:
    """A query; with words it is another one, `near` times the noise away."""
    vector = np.array(question(topic).embedding)
    noise = np.random.default_rng(sum(map(ord, words))).normal(size=SIZE)
    vector = vector + near * np.linalg.norm(vector) / np.linalg.norm(noise) * noise
    return QueryBundle(f"{topic} {words}".strip(), embedding=vector.tolist())


def ids(nodes) -> list[str]:
    return [entry.node.node_id for entry in nodes]


def everything(memory: RefinementMemory) -> list:
    """(scope, key, record) of all that a memory's store holds."""
    rows, teachers = memory._reading.run([lambda kept: kept.everything(), lambda kept: kept.everything("teachers")])
    return [*rows, *(row for row in teachers if row not in rows)]
