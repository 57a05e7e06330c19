"""Points and the nodes behind them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, overload
from uuid import UUID

import numpy as np
import torch
from llama_index.core.schema import BaseNode, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.ids import is_uuid, same_id
from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.vectors import SparseVectors, Vectors

logger = logging.getLogger(__name__)

PointId = int | str | UUID
Points = Sequence[models.ScoredPoint | models.Record]
Seen = dict[PointId, BaseNode]

# LlamaIndex's own fields of a payload, which hold the node and not what its author said of it.
_OWN_FIELDS = ("_node_content", "_node_type")


def points_of(node_id: str) -> list[PointId]:
    """Return the ids under which a node's point may be stored.

    :param node_id: the node's id; nodes of plain collections with numbers for ids carry them as text.
    :return: the number, or the UUID as Qdrant writes it and, as local mode may have kept it, as it was given; none
        where no point can have such an id.
    """
    if is_uuid(node_id):
        return list(dict.fromkeys([same_id(node_id), node_id]))
    number = int(node_id) if node_id.isascii() and node_id.isdecimal() else -1
    return [number] if 0 <= number < 2**64 else []


class NodeReader:
    """Reads points as nodes, as the store's own query does.

    :param store: the vector store.
    """

    def __init__(self, store: QdrantVectorStore) -> None:
        self._store = store
        self._told = False

    def node(self, point: Any) -> BaseNode:
        """Read a point.

        :param point: a point with its payload.
        :return: its node; one without text, with the payload for metadata, where there is none to be read.
        """
        try:
            return self._read(point)
        except ValueError:
            if not self._told:
                self._told = True
                fields = ", ".join(sorted(point.payload or {})) or "none"
                logger.warning("Point %s has no text, as others may; it has the fields %s", point.id, fields)
            metadata = {key: value for key, value in (point.payload or {}).items() if key not in _OWN_FIELDS}
            return TextNode(id_=str(point.id), text="", metadata=deepcopy(metadata))

    def check(self, points: Points, seen: Seen) -> None:
        """See that not all points are unreadable: then it is not the points that are odd.

        :param points: points with their payloads.
        :param seen: takes the node that was read on the way.
        :raises ValueError: none of them can be read; it says what to do.
        """
        first: ValueError | None = None
        for point in points:
            try:
                seen[point.id] = self._read(point)
                return
            except ValueError as error:
                first = first or error
        if first is not None:
            raise first

    def _read(self, point: Any) -> BaseNode:
        """Have the store read the payload, so that the node is that of its own query."""
        plain = point if point.vector is None else point.model_copy(update={"vector": None})
        try:
            (node,) = self._store.parse_to_query_result([plain]).nodes or []
        except Exception as error:
            if type(error) is ValueError:
                raise
            fields = ", ".join(map(repr, sorted(point.payload or {}))) or "none"
            raise ValueError(
                f"LlamaIndex did not write all of collection {self._store.collection_name!r}, whose points have the "
                f"fields {fields}: use RefinedRetriever.from_collection with text_key"
            ) from error
        return node


class ReadNodes(Sequence[BaseNode]):
    """The nodes of points, each read from its payload when it is first looked at, which costs more than finding it.

    :param points: the points.
    :param reader: reads them.
    :param seen: nodes read so far, by point, which several lists of the same points may share.
    """

    def __init__(self, points: Points, reader: NodeReader, seen: Seen | None = None) -> None:
        self._points = points
        self._reader = reader
        self._seen = {} if seen is None else seen

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[BaseNode]:
        return (self[place] for place in range(len(self._points)))

    @overload
    def __getitem__(self, at: int) -> BaseNode: ...
    @overload
    def __getitem__(self, at: slice) -> list[BaseNode]: ...
    def __getitem__(self, at: int | slice) -> BaseNode | list[BaseNode]:
        if isinstance(at, slice):
            return [self[place] for place in range(len(self))[at]]
        point = self._points[at]
        node = self._seen.get(point.id)
        if node is None:
            node = self._seen[point.id] = self._reader.node(point)
        return node


@dataclass(frozen=True)
class Found:
    """The points one search found, best first.

    :param ids: their ids.
    :param scores: (n,) Qdrant's scores.
    :param nodes: their nodes, as the store's own query gives them; empty where no payload was asked for.
    :param vectors: theirs; none where they were not asked for.
    """

    ids: list[PointId]
    scores: list[float]
    nodes: Sequence[BaseNode]
    vectors: Vectors

    @classmethod
    def nothing(cls) -> Found:
        """Return what a search found that found no point."""
        return cls([], [], [], Vectors.none())

    def beside(self, other: Found) -> Found:
        """Return these points and then those of another search that brought nodes and vectors, as this one did."""
        return Found(
            [*self.ids, *other.ids],
            [*self.scores, *other.scores],
            [*self.nodes, *other.nodes],
            self.vectors.beside(other.vectors),
        )

    def at(self, places: Sequence[int]) -> Found:
        """Return some of the points, of a search that brought nodes and vectors."""
        return Found(
            [self.ids[at] for at in places],
            [self.scores[at] for at in places],
            [self.nodes[at] for at in places],
            self.vectors.at(places),
        )


def scores_of(points: Points) -> list[float]:
    """Return the points' scores, 0 where they have none."""
    return [float(getattr(point, "score", 0.0)) for point in points]


def with_vectors(points: Points, space: Space) -> tuple[Points, Vectors]:
    """Return the points that have what it takes to refine by them, and their vectors."""
    if space.multivector:
        return _with_matrices(points, space)
    rows = [_dense(point.vector, space) for point in points]
    words = [_sparse(point.vector, space) for point in points]
    # Of two vectors the sparse one may be missing: a text of stop words has none.
    places = [at for at in range(len(points)) if rows[at] is not None and (space.size or words[at] is not None)]
    dense = np.array([rows[at] for at in places], dtype=np.float32).reshape(len(places), space.size)
    sparse = None
    if space.sparse is not None:
        sparse = _together([words[at] for at in places])
    return [points[at] for at in places], Vectors(torch.from_numpy(dense), sparse=sparse)


def _with_matrices(points: Points, space: Space) -> tuple[Points, Vectors]:
    """Return the points that have a multivector, and a dense vector too where that chooses them."""
    stage = space.prefetch
    rows = [(_matrix(point.vector, space), _dense(point.vector, stage) if stage else []) for point in points]
    kept = [at for at, (matrix, dense) in enumerate(rows) if matrix is not None and dense is not None]
    dense = np.array([rows[at][1] for at in kept], dtype=np.float32).reshape(len(kept), stage.size if stage else 0)
    matrices = tuple(torch.from_numpy(matrix) for at in kept if (matrix := rows[at][0]) is not None)
    return [points[at] for at in kept], Vectors(torch.from_numpy(dense), matrices)


def _matrix(vector: Any, space: Space) -> np.ndarray | None:
    if isinstance(vector, dict):
        vector = vector.get(space.name)
    if not isinstance(vector, list) or not all(isinstance(row, list) and len(row) == space.size for row in vector):
        return None
    matrix = np.array(vector, dtype=np.float32)
    return matrix if len(matrix) and (matrix.any() or space.metric != "cosine") else None


def _dense(vector: Any, space: Space) -> list[float] | None:
    if space.name is None:
        return []
    if isinstance(vector, dict):
        vector = vector.get(space.name)
    if not isinstance(vector, list) or len(vector) != space.size:
        return None
    # A zero vector has no direction.
    return vector if any(vector) or space.metric != "cosine" else None


def sparse_of(points: Points, space: Space) -> SparseVectors:
    """Return the sparse vectors of points; an empty one where there is none."""
    return _together([_sparse(point.vector, space) for point in points])


def _together(vectors: Sequence[models.SparseVector | None]) -> SparseVectors:
    return SparseVectors.of([one or models.SparseVector(indices=[], values=[]) for one in vectors])


def _sparse(vector: Any, space: Space) -> models.SparseVector | None:
    found = vector.get(space.sparse) if isinstance(vector, dict) and space.sparse is not None else None
    return found if isinstance(found, models.SparseVector) else None
