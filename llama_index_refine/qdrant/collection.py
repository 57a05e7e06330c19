"""What the library asks of a Qdrant collection: nodes, vectors of graded documents, background vectors."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llama_index.core.schema import BaseNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models
from torch import Tensor

from llama_index_refine.qdrant.clients import (
    Batch,
    CountPoints,
    DescribeCollection,
    QueryPoints,
    SamplePoints,
    refused,
)
from llama_index_refine.qdrant.encoding import SparseEncoding
from llama_index_refine.qdrant.known import Background, Known, shelf
from llama_index_refine.qdrant.options import SearchOptions
from llama_index_refine.qdrant.points import NodeReader, PointId, Points, ReadNodes, Seen, points_of
from llama_index_refine.qdrant.space import Space, read_space
from llama_index_refine.steps import Operation, Step, Steps

__all__ = ["Background", "Found", "PointId", "QdrantCollection", "SearchOptions", "Space", "points_of"]

Array = np.ndarray | Tensor


@dataclass(frozen=True)
class Found:
    """The points one search found, best first.

    :param ids: their ids.
    :param scores: (n,) Qdrant's scores.
    :param nodes: their nodes, as the store's own query gives them; empty where no payload was asked for.
    :param vectors: (n, d) float32; (0, 0) where they were not asked for.
    """

    ids: list[PointId]
    scores: list[float]
    nodes: Sequence[BaseNode]
    vectors: Tensor


class QdrantCollection:
    """One collection, seen through a `QdrantVectorStore`: its clients and its way of reading payloads.

    :param store: the vector store.
    :param options: what restricts and steers every search.
    :param background_size: how many background vectors to keep.
    :param check_after: seconds after which the collection's description and size are asked for again.
    :param refresh_share: the background is drawn anew when the size has changed by more than this share.
    """

    def __init__(
        self,
        store: QdrantVectorStore,
        options: SearchOptions | None = None,
        background_size: int = 30,
        check_after: float = 60.0,
        refresh_share: float = 0.1,
    ) -> None:
        self.store = store
        self.options = options or SearchOptions()
        self.background_size = background_size
        self.check_after = check_after
        self.refresh_share = refresh_share
        self._encoding = SparseEncoding(store)
        self._reader = NodeReader(store)
        self._query_points = QueryPoints(store)
        self._sample_points = SamplePoints(store)
        self._count_points = CountPoints(store)
        self._describe = DescribeCollection(store)

    def space(self) -> Steps[Space]:
        """Return the vector's name, size and distance, read when first needed and again after a while.

        :return: the space.
        :raises ValueError: the collection has no such vector, or one that a single vector cannot search.
        """
        known = self._known()
        if known.space is None or time.monotonic() - known.described > self.check_after:
            info = yield from self._ask("describe", self._describe, None)
            sparse = self.store.sparse_vector_name if self.options.hybrid else None
            space = read_space(info, self.store.collection_name, self.store.dense_vector_name, sparse)
            if self.options.hybrid and self.options.hybrid.fusion == "dbsf" and space.metric == "euclid":
                raise ValueError("fusion='dbsf' adds up scores, and Euclid's are distances: use 'rrf'")
            known.learn(space)
            return space
        return known.space

    def words(self, query_str: str) -> Steps[dict[str, models.SparseVector]]:
        """Encode the query's text for the sparse search of hybrid mode.

        :param query_str: the text.
        :return: what every search for this query takes beside the vector; empty where the dense search is alone.
        """
        if self.options.hybrid is None:
            return {}
        sparse = yield Step("embed", self._encoding, query_str)
        return {"sparse": sparse}

    def search(self, vector: Array, limit: int, sparse: models.SparseVector | None = None) -> Steps[Found]:
        """Find the nearest points, with their nodes and without vectors.

        :param vector: (d,) the query.
        :param limit: the most points.
        :param sparse: the query of the sparse search that takes part, None for none.
        :return: the points.
        """
        request = yield from self._nearest(vector, limit, limit, sparse)
        (response,) = yield from self._queries("search", request)
        return self._listed(response.points)

    def search_with_vectors(
        self, vector: Array, limit: int, vectors: int, sparse: models.SparseVector | None = None
    ) -> Steps[tuple[Found, Found]]:
        """Find the nearest points, and in the same request the first few of them with their vectors.

        :param vector: (d,) the query.
        :param limit: the most points.
        :param vectors: how many to bring with their vectors.
        :param sparse: the query of the sparse search that takes part, None for none.
        :return: the points without vectors, and the first of them that have one with it.
        :raises ValueError: none of the points can be read as a node.
        """
        space = yield from self.space()
        first = yield from self._nearest(vector, vectors, max(limit, vectors), sparse, with_vector=True)
        seen: Seen = {}
        if limit <= vectors:
            (response,) = yield from self._queries("search", first)
            self._reader.check(response.points, seen)
            return self._listed(response.points[:limit], seen), self._with_vectors(response.points, space, seen)
        all_of_them = yield from self._nearest(vector, limit, limit, sparse)
        listed, graded = yield from self._queries("search", all_of_them, first)
        self._reader.check(listed.points, seen)
        return self._listed(listed.points, seen), self._with_vectors(graded.points, space, seen)

    def rank(self, vector: Array, limit: int, sparse: models.SparseVector | None = None) -> Steps[Found]:
        """Find the nearest points: ids and scores only.

        :param vector: (d,) the query.
        :param limit: the most points.
        :param sparse: the query of the sparse search that takes part, None for none.
        :return: the points, without nodes and vectors.
        """
        request = yield from self._nearest(vector, limit, limit, sparse, with_payload=False)
        (response,) = yield from self._queries("search", request)
        points = response.points
        return Found([point.id for point in points], _scores(points), [], torch.empty(0, 0))

    def fetch(
        self,
        ids: Sequence[PointId],
        vector: Array,
        limit: int,
        sparse: models.SparseVector | None = None,
    ) -> Steps[Found]:
        """Fetch points with nodes and vectors, as far as a search for `vector` may find them.

        It is that search, narrowed to these points: filter, shard key and score threshold hold as in any other. Points
        that are outside, gone by now, or without a vector are left out.

        :param ids: the points.
        :param vector: (d,) the query.
        :param limit: the most points, the nearest being taken.
        :param sparse: the query of the sparse search that takes part, None for none.
        :return: the points that are there, in the order asked for.
        """
        space = yield from self.space()
        request = yield from self._nearest(vector, min(limit, len(ids)), len(ids), sparse, with_vector=True, among=ids)
        (response,) = yield from self._queries("fetch", request)
        place = {point: at for at, point in enumerate(ids)}
        points = sorted(response.points, key=lambda point: place.get(point.id, len(place)))
        return self._with_vectors(points, space)

    def background(self) -> Steps[Background]:
        """Return the background sample, drawn when first needed and again when the collection has changed enough.

        :return: the sample.
        """
        space = yield from self.space()
        known, options = self._known(), self.options
        kept = known.background
        if kept is not None and time.monotonic() - known.counted < self.check_after:
            return kept
        count = {"count_filter": options.filter, "exact": False, "shard_key_selector": options.shard_key}
        population = yield from self._ask("background", self._count_points, count | self._patience())
        if kept is not None and abs(population - kept.population) <= self.refresh_share * population:
            known.counted = time.monotonic()
            return kept
        sample = models.SampleQuery(sample=models.Sample.RANDOM)
        request = self._request(space, self.background_size, with_payload=False, with_vector=True, query=sample)
        request.filter = options.filter
        batch = Batch([request], options.consistency, options.timeout)
        responses = yield from self._ask("background", self._sample_points, batch)
        if known.sampled is responses and known.background is not None:
            # Many queries waited for one sample. They share what the first made of it.
            return known.background
        points, vectors = _vectors(responses[0].points, space)
        background = Background(vectors, [point.id for point in points], max(population, len(points)))
        known.background, known.counted, known.sampled = background, time.monotonic(), responses
        return background

    def _known(self) -> Known:
        store, options = self.store, self.options
        key = (
            store.collection_name,
            store.dense_vector_name,
            store.sparse_vector_name if options.hybrid else None,
            options.filter.model_dump_json() if options.filter else None,
            repr(options.shard_key),
            self.background_size,
        )
        return shelf.entry(store._client or store._aclient, key)

    def _ask(self, stage: str, operation: Operation, item: Any) -> Generator[Step, Any, Any]:
        """Take one step to Qdrant. A refusal may mean that the collection is another one by now."""
        try:
            answer = yield Step(stage, operation, item)
        except Exception as error:
            if refused(error):
                self._known().forget()
            raise
        return answer

    def _queries(self, stage: str, *requests: models.QueryRequest) -> Generator[Step, Any, Any]:
        batch = Batch(list(requests), self.options.consistency, self.options.timeout)
        return (yield from self._ask(stage, self._query_points, batch))

    def _patience(self) -> dict[str, Any]:
        return {"timeout": self.options.timeout} if self.options.timeout is not None else {}

    def _nearest(
        self,
        vector: Array,
        limit: int,
        depth: int,
        sparse: models.SparseVector | None,
        with_payload: bool = True,
        with_vector: bool = False,
        among: Sequence[PointId] | None = None,
    ) -> Steps[models.QueryRequest]:
        """Ask for the nearest points; with a sparse query, for the first of two rankings of `depth` points fused."""
        space = yield from self.space()
        options = self.options
        admitted = options.filter if among is None else _narrowed(options.filter, among)
        dense: dict[str, Any] = {
            "query": space.query(vector),
            "using": space.name or None,
            "filter": admitted,
            "params": options.search_params,
            "score_threshold": options.score_threshold,
        }
        if sparse is None or options.hybrid is None:
            return self._request(space, limit, with_payload, with_vector, **dense)
        dense_ranking = models.Prefetch(**dense, limit=depth)
        if not sparse.indices:
            fused = models.FusionQuery(fusion=models.Fusion.RRF)
            return self._request(space, limit, with_payload, with_vector, prefetch=[dense_ranking], query=fused)
        words = models.Prefetch(
            query=sparse,
            using=space.sparse,
            filter=admitted,
            params=options.search_params,
            limit=options.hybrid.sparse_top_k or depth,
        )
        prefetch = [dense_ranking, words]
        return self._request(space, limit, with_payload, with_vector, prefetch=prefetch, query=options.hybrid.query())

    def _request(
        self, space: Space, limit: int, with_payload: bool, with_vector: bool, **query: Any
    ) -> models.QueryRequest:
        return models.QueryRequest(
            limit=limit,
            with_payload=with_payload,
            with_vector=([space.name] if space.name else True) if with_vector else False,
            shard_key=self.options.shard_key,
            **query,
        )

    def _listed(self, points: Points, seen: Seen | None = None) -> Found:
        nodes = ReadNodes(points, self._reader, seen)
        return Found([point.id for point in points], _scores(points), nodes, torch.empty(0, 0))

    def _with_vectors(self, points: Points, space: Space, seen: Seen | None = None) -> Found:
        points, vectors = _vectors(points, space)
        return Found([point.id for point in points], _scores(points), ReadNodes(points, self._reader, seen), vectors)


def _narrowed(admitted: models.Filter | None, ids: Sequence[PointId]) -> models.Filter:
    named = models.HasIdCondition(has_id=list(ids))
    return models.Filter(must=[named] if admitted is None else [named, admitted])


def _scores(points: Points) -> list[float]:
    return [float(getattr(point, "score", 0.0)) for point in points]


def _vectors(points: Points, space: Space) -> tuple[Points, Tensor]:
    """Return the points that have a vector to refine by, and their vectors."""
    rows = [_dense(point.vector, space) for point in points]
    kept = [(point, row) for point, row in zip(points, rows, strict=True) if row is not None]
    if not kept:
        return [], torch.empty(0, space.size)
    return [point for point, _ in kept], torch.from_numpy(np.array([row for _, row in kept], dtype=np.float32))


def _dense(vector: Any, space: Space) -> list[float] | None:
    if isinstance(vector, dict):
        vector = vector.get(space.name)
    if not isinstance(vector, list) or len(vector) != space.size:
        return None
    # A zero vector has no direction.
    return vector if any(vector) or space.metric != "cosine" else None
