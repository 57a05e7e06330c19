"""Points and the nodes behind them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, overload
from uuid import UUID

from llama_index.core.schema import BaseNode, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.ids import is_uuid, same_id

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
        plain = point.model_copy(update={"vector": None})
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

    @overload
    def __getitem__(self, at: int) -> BaseNode: ...
    @overload
    def __getitem__(self, at: slice) -> list[BaseNode]: ...
    def __getitem__(self, at: int | slice) -> BaseNode | list[BaseNode]:
        if isinstance(at, slice):
            return [self[place] for place in range(len(self))[at]]
        point = self._points[at]
        if point.id not in self._seen:
            self._seen[point.id] = self._reader.node(point)
        return self._seen[point.id]
