"""Points: the nodes behind them, their vectors, and which of a ranking are returned."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
import torch
from llama_index.core.schema import BaseNode, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models
from qdrant_client.local.payload_value_extractor import value_by_key
from torch import Tensor

from llama_index_refine.ids import is_uuid, same_id
from llama_index_refine.images.sources import is_inline
from llama_index_refine.qdrant.vectors import Space, SparseVectors

logger = logging.getLogger(__name__)

PointId = int | str | UUID
Points = Sequence[models.ScoredPoint | models.Record]

NO_WORDS = models.SparseVector(indices=[], values=[])
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


@dataclass(eq=False)
class ReadNodes(Sequence[BaseNode]):
    """The nodes of points, each read from its payload when it is first looked at, which costs more than finding it.

    :param points: the points.
    :param reader: reads them.
    """

    points: Points
    reader: NodeReader
    _nodes: dict[int, BaseNode] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, place: Any) -> Any:
        if place not in self._nodes:
            self.at([place])
        return self._nodes[place]

    def at(self, places: Sequence[int]) -> list[BaseNode]:
        """Return the nodes at some places."""
        new = [place for place in places if place not in self._nodes]
        self._nodes |= zip(new, self.reader.nodes([self.points[place] for place in new]), strict=True)
        return [self._nodes[place] for place in places]


@dataclass(frozen=True)
class Vectors:
    """What n points have stored under the vectors that are searched. A `View` makes rows of it.

    :param dense: (n, d) float32, (n, 0) where no dense vector is searched; of no points where nobody says.
    :param matrices: n multivectors, (n_i, d) float32 each; none where no multivector is searched.
    :param sparse: their sparse vectors, None where none is searched.
    """

    dense: Tensor = field(default_factory=partial(torch.empty, 0, 0))
    matrices: tuple[Tensor, ...] = ()
    sparse: SparseVectors | None = None

    def at(self, places: Sequence[int]) -> Vectors:
        """Return those of some of the points."""
        # In numpy, which reads a list of places many times faster than torch.
        dense = torch.from_numpy(self.dense.numpy()[list(places)] if len(places) else self.dense.numpy()[:0])
        matrices = tuple(self.matrices[at] for at in places) if self.matrices else ()
        return Vectors(dense, matrices, self.sparse and self.sparse.at(places))

    def beside(self, other: Vectors) -> Vectors:
        """Return these and then those of other points."""
        some = [vectors for vectors in (self, other) if len(vectors.dense)]
        if len(some) < 2:
            return (some or [self])[0]
        sparse = self.sparse.beside(other.sparse) if self.sparse and other.sparse else None
        return Vectors(torch.cat([self.dense, other.dense]), (*self.matrices, *other.matrices), sparse)

    def near(self, others: Vectors, tolerance: float) -> bool:
        """Say whether the points still have the vectors that they had.

        :param others: theirs before, in the same order.
        :param tolerance: how far each may be off, as a share of its length.
        """
        if len(self.matrices) != len(others.matrices) or (self.sparse is None) != (others.sparse is None):
            return False
        if self.sparse and others.sparse and not self.sparse.near(others.sparse, tolerance):
            return False
        for now, before in zip((self.dense, *self.matrices), (others.dense, *others.matrices), strict=True):
            if now.shape != before.shape:
                return False
            if not ((now - before).norm(dim=-1) <= tolerance * before.norm(dim=-1)).all():
                return False
        return True


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

    ids: list[PointId] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    nodes: Sequence[BaseNode] = ()
    vectors: Vectors = field(default_factory=Vectors)
    placed: Sequence[int] = ()
    groups: Sequence[str | None] = ()

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


def read_vectors(points: Points, space: Space) -> tuple[Vectors, list[int]]:
    """Read what points have stored.

    :param points: points with their vectors, as far as they brought any.
    :param space: what is searched.
    :return: the vectors of those that have what it takes to refine by them, and their places.
    """
    stage = space.prefetch if space.multivector else space
    size, metric = (stage.size, stage.metric) if stage else (0, space.metric)
    dense: list[Any] = []
    matrices: list[Tensor] = []
    words: list[models.SparseVector] = []
    placed: list[int] = []
    for at, point in enumerate(points):
        stored: Any = point.vector if isinstance(point.vector, dict) else {"": point.vector}
        row = stored.get(stage.name) if stage and size else []
        # No document is near one that has no direction.
        if not isinstance(row, list) or len(row) != size or (size and metric == "cosine" and not any(row)):
            continue
        matrix = _matrix(stored.get(space.name), space) if space.multivector else None
        word = stored.get(space.sparse)
        # Of two vectors the sparse one may be missing: a text of stop words has none.
        if (space.multivector and matrix is None) or not (space.size or isinstance(word, models.SparseVector)):
            continue
        placed.append(at)
        dense.append(row)
        if matrix is not None:
            matrices.append(torch.from_numpy(matrix))
        words.append(word if isinstance(word, models.SparseVector) else NO_WORDS)
    rows = torch.from_numpy(np.array(dense, dtype=np.float32).reshape(len(placed), size))
    return Vectors(rows, tuple(matrices), SparseVectors.of(words) if space.sparse is not None else None), placed


def sparse_of(points: Points, space: Space) -> SparseVectors:
    """Return the sparse vectors of points; an empty one where there is none."""
    stored = [point.vector.get(space.sparse or "") if isinstance(point.vector, dict) else None for point in points]
    return SparseVectors.of([one if isinstance(one, models.SparseVector) else NO_WORDS for one in stored])


def _matrix(rows: Any, space: Space) -> np.ndarray | None:
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == space.size for row in rows):
        return None
    matrix = np.array(rows, dtype=np.float32)
    return matrix if len(matrix) and (matrix.any() or space.metric != "cosine") else None


@dataclass(frozen=True)
class Grouping:
    """How many points of one group a ranking may hold.

    :param by: the payload field whose value names a point's group, "a.b" for b inside a; None for no groups.
    :param size: the most points of a group, at least 1.
    """

    by: str | None = None
    size: int = 1

    def first(self, groups: Sequence[str | None]) -> list[int]:
        """Return the places of a ranking that stay: the first points of each group, and all that belong to none."""
        seen: Counter[str | None] = Counter()
        kept = []
        for place, group in enumerate(groups):
            seen[group] += 1
            if group is None or seen[group] <= self.size:
                kept.append(place)
        return kept


def group_of(point: Any, by: str) -> str | None:
    """Say to which group a point belongs, None to none: it lacks the field, or came without its payload."""
    value = value_by_key(point.payload or {}, by)
    return None if value is None else repr(value)


def diverse(relevance: np.ndarray, overlap: np.ndarray, threshold: float, limit: int) -> list[int]:
    """Choose by maximal marginal relevance (Carbonell and Goldstein 1998).

    The next is always the one with the greatest t r - (1 - t) s, with r its own relevance and s the greatest similarity
    to what has been chosen.

    :param relevance: (n,) how near each one is to the query.
    :param overlap: (n, n) how near they are to each other, on the same scale.
    :param threshold: t, in [0, 1]: 1 goes by relevance alone, 0 by difference alone.
    :param limit: the most to choose.
    :return: places, in the order in which they were chosen.
    """
    chosen: list[int] = []
    left, nearest = np.ones(len(relevance), dtype=bool), np.zeros(len(relevance))
    for _ in range(min(limit, len(relevance))):
        # The first is the most relevant, however little that counts.
        value = threshold * relevance - (1 - threshold) * nearest if chosen else relevance
        chosen.append(int(np.where(left, value, -np.inf).argmax()))
        left[chosen[-1]] = False
        nearest = overlap[:, chosen].max(-1)
    return chosen
