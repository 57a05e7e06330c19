"""Which of a collection's vectors is searched, and how far things are from each other in it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from llama_index.vector_stores.qdrant.base import DEFAULT_DENSE_VECTOR_NAME, DEFAULT_SPARSE_VECTOR_NAME
from qdrant_client import models
from torch import Tensor

from llama_index_refine.similarity import Metric

METRIC_OF: dict[models.Distance, Metric] = {
    models.Distance.COSINE: "cosine",
    models.Distance.DOT: "dot",
    models.Distance.EUCLID: "euclid",
}


@dataclass(frozen=True)
class Space:
    """The vector space that is searched.

    :param name: the vector's name, empty where it has none.
    :param size: its dimension.
    :param metric: the distance.
    :param sparse: the name of the sparse vector that is searched with it, None for none.
    :param whole: whether Qdrant stores its numbers as integers from 0 to 255.
    """

    name: str
    size: int
    metric: Metric
    sparse: str | None = None
    whole: bool = False

    def query(self, vector: np.ndarray | Tensor) -> list[float]:
        """Write a query vector as Qdrant reads it.

        :param vector: (d,) in the collection's space.
        :return: its numbers; rounded where Qdrant would otherwise cut off what is behind the point.
        """
        numbers = np.asarray(vector)
        values: list[float] = (numbers.round().clip(0, 255) if self.whole else numbers).tolist()
        return values


def read_space(info: models.CollectionInfo, collection: str, wanted: str, sparse: str | None = None) -> Space:
    """Find the vector to search in a collection's description.

    :param info: the description.
    :param collection: the collection's name, for the errors.
    :param wanted: the vector's name; LlamaIndex's default name stands for the only vector there is.
    :param sparse: the sparse vector's name; None where none is searched.
    :return: the space.
    :raises ValueError: no such vector, several of which none was named, or one that cannot be searched by one vector.
    """
    vectors = info.config.params.vectors or {}
    named = vectors if isinstance(vectors, dict) else {"": vectors}
    name = _choose(wanted, DEFAULT_DENSE_VECTOR_NAME, named, f"collection {collection!r}", "vector_name")
    params = named[name]
    if params.multivector_config is not None:
        raise ValueError(
            f"vector {name!r} of collection {collection!r} is a multivector; refining needs one vector a point"
        )
    if params.distance not in METRIC_OF:
        raise ValueError(
            f"collection {collection!r} measures {params.distance.value} distance, which cannot be refined: only "
            "Cosine, Dot and Euclid can"
        )
    if sparse is not None:
        there = info.config.params.sparse_vectors or {}
        whose = f"collection {collection!r} has, of sparse vectors,"
        sparse = _choose(sparse, DEFAULT_SPARSE_VECTOR_NAME, there, whose, "sparse_vector_name")
    return Space(name, params.size, METRIC_OF[params.distance], sparse, params.datatype == models.Datatype.UINT8)


def _choose(wanted: str, default: str, there: Collection[str], whose: str, argument: str) -> str:
    if wanted in there:
        return wanted
    if wanted == default and len(there) == 1:
        return next(iter(there))
    names = ", ".join(repr(name) for name in sorted(there)) or "none"
    has = "" if whose.endswith(",") else " has the vectors"
    ask = f"name one with {argument}" if wanted == default else f"there is no {wanted!r}; set {argument}"
    raise ValueError(f"{whose}{has} {names}: {ask}")
