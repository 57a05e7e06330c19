"""Which of a collection's vectors are searched, and sparse vectors in one piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from llama_index.vector_stores.qdrant.base import DEFAULT_DENSE_VECTOR_NAME, DEFAULT_SPARSE_VECTOR_NAME
from numpy.typing import NDArray
from qdrant_client import models

from llama_index_refine.similarity import METRICS, Metric


@dataclass(frozen=True)
class Space:
    """The vector space that is searched.

    :param name: the vector's name, empty where it has none; None where no dense vector is searched.
    :param size: its dimension, 0 where there is none.
    :param metric: the distance.
    :param sparse: the name of the sparse vector that is searched, with it or alone; None for none.
    :param whole: whether Qdrant stores its numbers as integers from 0 to 255.
    :param multivector: whether each document is a matrix of such vectors, compared by MaxSim.
    :param prefetch: the dense vector whose nearest points alone are compared by MaxSim; None for all points.
    :param idf: whether Qdrant multiplies the sparse query by the terms' inverse document frequencies.
    """

    name: str | None
    size: int
    metric: Metric
    sparse: str | None = None
    whole: bool = False
    multivector: bool = False
    prefetch: Space | None = None
    idf: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the vectors by which documents are refined, empty for the one that has none."""
        own = [name for name in (self.name, self.sparse) if name is not None]
        return [*own, *(self.prefetch.names if self.prefetch else [])]

    @property
    def brought(self) -> list[str] | bool:
        """What a search brings back of them: all there is, where one has no name by which to ask for it."""
        return self.names if all(self.names) else True


@dataclass(frozen=True)
class Wanted:
    """Which vectors a retriever wants to search.

    :param name: the vector's name; LlamaIndex's default name stands for the only vector of its kind.
    :param sparse: the sparse vector's name, likewise; None where texts cannot be encoded for one.
    :param alone: whether the sparse vector is searched alone.
    :param both: whether both are.
    :param multivector: whether the vector is a multivector.
    :param prefetch: the dense vector whose nearest points are compared by it, None to compare all.
    """

    name: str
    sparse: str | None = None
    alone: bool = False
    both: bool = False
    multivector: bool = False
    prefetch: str | None = None


def read_space(info: models.CollectionInfo, collection: str, wanted: Wanted) -> Space:
    """Find the vectors to search in a collection's description.

    A sparse vector is searched alone where that is wanted, where `wanted.name` is its name, or where there is no other.

    :param info: the description.
    :param collection: the collection's name, for the errors.
    :param wanted: the vectors.
    :return: the space.
    :raises ValueError: no such vector, several of which none was named, or one that cannot be searched in this way.
    """
    params = info.config.params
    vectors = params.vectors or {}
    named = vectors if isinstance(vectors, dict) else {"": vectors}
    there = _Described(collection, named, params.sparse_vectors or {})
    only_sparse = wanted.name in there.sparse or (bool(there.sparse) and not named)
    if not wanted.both and not wanted.multivector and (wanted.alone or only_sparse):
        return there.words(wanted)
    space = there.space(wanted.name, "vector_name", wanted.multivector)
    if wanted.prefetch is not None:
        space = replace(space, prefetch=there.space(wanted.prefetch, "prefetch_vector_name", False))
    if wanted.both:
        words = there.words(wanted)
        space = replace(space, sparse=words.sparse, idf=words.idf)
    return space


@dataclass(frozen=True)
class _Described:
    """What a collection has.

    :param collection: its name.
    :param named: its vectors by name, empty for the one that has none.
    :param sparse: its sparse vectors by name.
    """

    collection: str
    named: Mapping[str, models.VectorParams]
    sparse: Mapping[str, models.SparseVectorParams]

    def words(self, wanted: Wanted) -> Space:
        """Describe a sparse vector. :raises ValueError: it is not there, or cannot be searched."""
        if wanted.sparse is None:
            raise ValueError(
                f"collection {self.collection!r} has the vectors {self._labels}: to search by a sparse one, give "
                "sparse_query_fn"
            )
        name = wanted.name if wanted.name in self.sparse else wanted.sparse
        default = name == DEFAULT_SPARSE_VECTOR_NAME
        if default and len(self.sparse) == 1:
            (name,) = self.sparse
        if name not in self.sparse:
            what = f"there is no sparse {name!r}; set sparse_vector_name"
            if default:
                what = "name one with sparse_vector_name" if self.sparse else "none of them is sparse"
            raise ValueError(f"collection {self.collection!r} has the vectors {self._labels}: {what}")
        return Space(None, 0, "dot", name, idf=self.sparse[name].modifier == models.Modifier.IDF)

    def space(self, wanted: str, argument: str, multivector: bool) -> Space:
        """Describe one vector. :raises ValueError: it is not there, or of another kind."""
        alike = [name for name, params in self.named.items() if _is_multivector(params) == multivector]
        default = wanted == DEFAULT_DENSE_VECTOR_NAME
        name = alike[0] if default and len(alike) == 1 else wanted
        if name not in self.named:
            what = f"there is no {wanted!r}; set {argument}"
            if default:
                none = "there is no multivector" if multivector else "each of them is a multivector or sparse"
                what = f"name one with {argument}" if alike else none
            raise ValueError(f"collection {self.collection!r} has the vectors {self._labels}: {what}")
        params = self.named[name]
        if _is_multivector(params) and not multivector:
            what = "give multivector_query_fn to search it" if argument == "vector_name" else "only a dense one chooses"
            raise ValueError(
                f"vector {name!r} of collection {self.collection!r} is a multivector: {what}, or set {argument}; there "
                f"are {self._labels}"
            )
        if multivector and not _is_multivector(params):
            raise ValueError(
                f"multivector_query_fn is given, and {name!r} of collection {self.collection!r} has one vector per "
                f"point: leave it out, or set vector_name; there are {self._labels}"
            )
        distance = params.distance.value.lower()
        if distance not in METRICS:
            raise ValueError(
                f"collection {self.collection!r} uses {params.distance.value} distance, which cannot be "
                "refined: use Cosine, Dot or Euclid"
            )
        whole = params.datatype == models.Datatype.UINT8
        return Space(name, params.size, distance, whole=whole, multivector=multivector)

    @property
    def _labels(self) -> str:
        """What there is, with what searches it where that is not a vector."""
        multi = " (a multivector, for multivector_query_fn)"
        kinds = {name: multi if _is_multivector(params) else "" for name, params in self.named.items()}
        kinds |= dict.fromkeys(self.sparse, " (sparse, for sparse_query_fn)")
        return ", ".join(f"{name!r}{kinds[name]}" for name in sorted(kinds)) or "none"


def _is_multivector(params: models.VectorParams) -> bool:
    """Say whether a point has several of these vectors, compared by MaxSim, which is the only way Qdrant knows."""
    return params.multivector_config is not None


@dataclass(frozen=True)
class SparseVectors:
    """n sparse vectors, one after the other.

    :param terms: (m,) the indices of all of them.
    :param values: (m,) float32, their values.
    :param ends: (n,) where each one ends.
    """

    terms: NDArray[np.int64]
    values: NDArray[np.float32]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, vectors: Sequence[models.SparseVector]) -> SparseVectors:
        """Take them as Qdrant gives them."""
        return cls(
            np.fromiter(chain.from_iterable(one.indices for one in vectors), dtype=np.int64),
            np.fromiter(chain.from_iterable(one.values for one in vectors), dtype=np.float32),
            np.cumsum([len(one.indices) for one in vectors], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def rows(self) -> NDArray[np.int64]:
        """(m,) the vector that each index belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.ends, prepend=0))

    def at(self, places: Sequence[int]) -> SparseVectors:
        """Return some of them."""
        starts = np.r_[0, self.ends][:-1]
        spans = [np.arange(starts[at], self.ends[at]) for at in places]
        taken = np.concatenate([*spans, np.empty(0, dtype=np.int64)])
        return SparseVectors(self.terms[taken], self.values[taken], np.cumsum([len(one) for one in spans], dtype=int))

    def beside(self, other: SparseVectors) -> SparseVectors:
        """Return these and then others."""
        begin = self.ends[-1] if len(self) else 0
        return SparseVectors(
            np.r_[self.terms, other.terms], np.r_[self.values, other.values], np.r_[self.ends, other.ends + begin]
        )

    def near(self, others: SparseVectors, tolerance: float) -> bool:
        """Say whether they have the terms of others, and values that are off by no more than a share of the largest."""
        if not (np.array_equal(self.ends, others.ends) and np.array_equal(self.terms, others.terms)):
            return False
        return bool(np.all(np.abs(self.values - others.values) <= tolerance * np.abs(others.values).max(initial=0)))
