"""Points and the nodes behind them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import torch
from llama_index.core.schema import BaseNode, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.ids import is_uuid, same_id
from llama_index_refine.images.sources import is_inline
from llama_index_refine.qdrant.vectors import Space, SparseVectors, Vectors

logger = logging.getLogger(__name__)

PointId = int | str | UUID
Points = Sequence[models.ScoredPoint | models.Record]

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
        # Whether nodes hold images, None while none has been read.
        self.images: bool | None = None

    def node(self, point: Any) -> BaseNode:
        """Read a point. See `nodes`."""
        return self.nodes([point])[0]

    def nodes(self, points: Points, all_odd: bool = True) -> list[BaseNode]:
        """Read points.

        :param points: points with their payloads.
        :param all_odd: whether all of them may be unreadable.
        :return: their nodes; one without text, with the payload for metadata, where there is none to be read.
        :raises ValueError: none of them can be read, so that it is not the points that are odd; it says what to do.
        """
        nodes: list[BaseNode] = []
        odd: list[tuple[Any, ValueError]] = []
        for point in points:
            plain: Any = point if point.vector is None else point.model_copy(update={"vector": None})
            try:
                (node,) = self._store.parse_to_query_result([plain]).nodes or []
                self.images = self.images or (type(node) is not TextNode and is_inline(node))
            except Exception as error:
                odd.append((point, error if type(error) is ValueError else self._unread(point, error)))
                metadata = {key: value for key, value in (point.payload or {}).items() if key not in _OWN_FIELDS}
                node = TextNode(id_=str(point.id), text="", metadata=deepcopy(metadata))
            nodes.append(node)
        if odd and len(odd) == len(points) and not all_odd:
            raise odd[0][1]
        if odd and not self._told:
            self._told = True
            point = odd[0][0]
            fields = ", ".join(sorted(point.payload or {})) or "none"
            logger.warning("Point %s has no text, and others may lack it too; it has the fields %s", point.id, fields)
        return nodes

    def _unread(self, point: Any, error: Exception) -> ValueError:
        fields = ", ".join(map(repr, sorted(point.payload or {}))) or "none"
        told = ValueError(
            f"LlamaIndex did not write all of collection {self._store.collection_name!r}, whose points have the "
            f"fields {fields}: use RefinedRetriever.from_collection with text_key"
        )
        told.__cause__ = error
        return told


class ReadNodes(Sequence[BaseNode]):
    """The nodes of points, each read from its payload when it is first looked at, which costs more than finding it.

    :param points: the points.
    :param reader: reads them.
    """

    def __init__(self, points: Points, reader: NodeReader) -> None:
        self._points = points
        self._reader = reader
        self._nodes: dict[int, BaseNode] = {}

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, place: Any) -> Any:
        if place not in self._nodes:
            self.at([place])
        return self._nodes[place]

    def at(self, places: Sequence[int]) -> list[BaseNode]:
        """Return the nodes at some places."""
        new = [place for place in places if place not in self._nodes]
        self._nodes |= zip(new, self._reader.nodes([self._points[place] for place in new]), strict=True)
        return [self._nodes[place] for place in places]


@dataclass(frozen=True)
class Found:
    """The points one search found, best first.

    :param ids: their ids.
    :param scores: (n,) Qdrant's scores.
    :param nodes: their nodes, as the store's own query gives them; empty where they were not brought.
    :param vectors: the vectors of those points that brought some by which they can be refined.
    :param placed: the places of those points, ascending.
    :param groups: the group of each, None where it is in none; as many as points wherever Qdrant brought these.
    """

    ids: list[PointId]
    scores: list[float]
    nodes: Sequence[BaseNode]
    vectors: Vectors
    placed: Sequence[int] = ()
    groups: Sequence[str | None] = ()

    @classmethod
    def nothing(cls) -> Found:
        """Return what a search found that found no point."""
        return cls([], [], [], Vectors.none())

    def at(self, places: Sequence[int]) -> Found:
        """Return the points at some places, with whatever is there of nodes and vectors."""
        row = {place: at for at, place in enumerate(self.placed)}
        placed = [at for at, place in enumerate(places) if place in row]
        nodes = self.nodes
        return Found(
            [self.ids[at] for at in places],
            [self.scores[at] for at in places],
            nodes.at(places) if isinstance(nodes, ReadNodes) else [nodes[at] for at in places if nodes],
            self.vectors.at([row[places[at]] for at in placed]),
            placed,
            [self.groups[at] for at in places] if self.groups else [],
        )

    def beside(self, other: Found) -> Found:
        """Return these points and then others; with nodes, where both have theirs."""
        both = len(self.nodes) == len(self.ids) and len(other.nodes) == len(other.ids)
        return Found(
            [*self.ids, *other.ids],
            [*self.scores, *other.scores],
            [*self.nodes, *other.nodes] if both else [],
            self.vectors.beside(other.vectors),
            [*self.placed, *(len(self.ids) + place for place in other.placed)],
            [*self.groups, *other.groups],
        )

    def with_vectors(self, limit: int | None = None) -> Found:
        """Return those of the first `limit` points, None for all, that have vectors."""
        return self.at([place for place in self.placed if limit is None or place < limit])


def scores_of(points: Points) -> list[float]:
    """Return the points' scores, 0 where they have none."""
    return [float(getattr(point, "score", 0.0)) for point in points]


def read_vectors(points: Points, space: Space) -> tuple[Vectors, list[int]]:
    """Read what points have stored.

    :param points: points with their vectors, as far as they brought any.
    :param space: what is searched.
    :return: the vectors of those that have what it takes to refine by them, and their places.
    """
    stage = space.prefetch if space.multivector else space
    dense = _dense(points, stage)
    matrices = [_matrix(rows, space) for rows in _stored(points, space.name)] if space.multivector else []
    words = _sparse(points, space) if space.sparse is not None else []
    # Of two vectors the sparse one may be missing: a text of stop words has none.
    needed: Sequence[Any] = matrices if space.multivector else dense if space.size else words
    placed = [at for at in range(len(points)) if dense[at] is not None and needed[at] is not None]
    rows = np.array([dense[at] for at in placed], dtype=np.float32).reshape(len(placed), stage.size if stage else 0)
    sparse = _stacked([words[at] for at in placed]) if space.sparse is not None else None
    return Vectors(
        torch.from_numpy(rows), tuple(torch.from_numpy(needed[at]) for at in placed if matrices), sparse
    ), placed


def sparse_of(points: Points, space: Space) -> SparseVectors:
    """Return the sparse vectors of points; an empty one where there is none."""
    return _stacked(_sparse(points, space))


def _stored(points: Points, name: str | None) -> list[Any]:
    return [point.vector.get(name) if isinstance(point.vector, dict) else point.vector for point in points]  # type: ignore[arg-type]


def _dense(points: Points, space: Space | None) -> list[Any]:
    """Return the points' dense vectors, None where there is none that has a direction; empty ones of no such space."""
    if space is None or space.name is None:
        return [[]] * len(points)
    rows, size, lengths = _stored(points, space.name), space.size, space.metric != "cosine"
    return [row if isinstance(row, list) and len(row) == size and (lengths or any(row)) else None for row in rows]


def _matrix(rows: Any, space: Space) -> np.ndarray | None:
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == space.size for row in rows):
        return None
    matrix = np.array(rows, dtype=np.float32)
    return matrix if len(matrix) and (matrix.any() or space.metric != "cosine") else None


def _sparse(points: Points, space: Space) -> list[models.SparseVector | None]:
    return [one if isinstance(one, models.SparseVector) else None for one in _stored(points, space.sparse)]


def _stacked(vectors: Sequence[models.SparseVector | None]) -> SparseVectors:
    return SparseVectors.of([one or models.SparseVector(indices=[], values=[]) for one in vectors])
