"""What the library asks of a Qdrant collection: nodes, vectors of graded documents, background vectors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
import torch
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models
from torch import Tensor

from llama_index_refine.clients import Batch, CountPoints, DescribeCollection, FetchPoints, QueryPoints
from llama_index_refine.geometry import Metric
from llama_index_refine.steps import Step, Steps

PointId = int | str | UUID
Array = np.ndarray | Tensor

METRIC_OF: dict[models.Distance, Metric] = {
    models.Distance.COSINE: "cosine",
    models.Distance.DOT: "dot",
    models.Distance.EUCLID: "euclid",
}


@dataclass(frozen=True)
class SearchOptions:
    """What restricts and steers every search of one retriever, in Qdrant's words.

    :param filters: LlamaIndex metadata filters.
    :param qdrant_filter: a raw Qdrant filter, instead of the other filters.
    :param node_ids: search these points only.
    :param doc_ids: search the nodes of these documents only.
    :param score_threshold: drop results that score worse.
    :param search_params: hnsw_ef, exact search, quantisation, ...
    :param shard_key: search these shards only.
    :param consistency: how many replicas must agree.
    :param timeout: seconds that Qdrant may take for one request.
    """

    filters: MetadataFilters | None = None
    qdrant_filter: models.Filter | None = None
    node_ids: Sequence[str] | None = None
    doc_ids: Sequence[str] | None = None
    score_threshold: float | None = None
    search_params: models.SearchParams | None = None
    shard_key: Any = None
    consistency: Any = None
    timeout: int | None = None


@dataclass(frozen=True)
class Space:
    """The vector space that is searched.

    :param name: the vector's name, empty where it has none.
    :param size: its dimension.
    :param metric: the distance.
    """

    name: str
    size: int
    metric: Metric


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
    nodes: list[BaseNode]
    vectors: Tensor


@dataclass(frozen=True)
class Background:
    """A random sample of the documents that a filter admits.

    :param vectors: (N, d) float32.
    :param ids: their points.
    :param population: how many documents the filter admits.
    """

    vectors: Tensor
    ids: list[PointId]
    population: int


@dataclass
class _Kept:
    """A background sample and when its size was last compared with the collection's."""

    background: Background
    checked: float = field(default_factory=time.monotonic)


class QdrantCollection:
    """One collection, seen through a `QdrantVectorStore`: its name, vector name, filters and parsing.

    :param store: the vector store.
    :param options: what restricts and steers every search.
    :param background_size: how many background vectors to keep.
    :param check_after: seconds after which the collection's size is asked for again.
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
        self._space: Space | None = None
        self._kept: _Kept | None = None
        self._query_points = QueryPoints(store)
        self._fetch_points = FetchPoints(store)
        self._count_points = CountPoints(store)
        self._describe = DescribeCollection(store)

    def space(self) -> Steps[Space]:
        """Read the vector's name, size and distance, once.

        :return: the space.
        :raises ValueError: the collection has no such vector, or one that a single vector cannot search.
        """
        if self._space is None:
            info = yield Step("describe", self._describe, None)
            self._space = _space(info, self.store.dense_vector_name, self.store.collection_name)
        return self._space

    def search(self, vector: Array, limit: int) -> Steps[Found]:
        """Find the nearest points, with their nodes and without vectors.

        :param vector: (d,) the query.
        :param limit: the most points.
        :return: the points.
        """
        (response,) = yield self._queries("search", self._nearest(vector, limit))
        return self._found(response)

    def search_with_vectors(self, vector: Array, limit: int, vectors: int) -> Steps[tuple[Found, Found]]:
        """Find the nearest points, and in the same request the first few of them with their vectors.

        :param vector: (d,) the query.
        :param limit: the most points.
        :param vectors: how many to bring with their vectors.
        :return: the points without vectors, and the first of them with vectors.
        """
        first = self._nearest(vector, vectors, with_vector=True)
        if limit <= vectors:
            (response,) = yield self._queries("search", first)
            found = self._found(response)
            return Found(found.ids[:limit], found.scores[:limit], found.nodes[:limit], torch.empty(0, 0)), found
        listed, graded = yield self._queries("search", self._nearest(vector, limit), first)
        return self._found(listed), self._found(graded)

    def rank(self, vector: Array, limit: int) -> Steps[Found]:
        """Find the nearest points: ids and scores only.

        :param vector: (d,) the query.
        :param limit: the most points.
        :return: the points, without nodes and vectors.
        """
        (response,) = yield self._queries("search", self._nearest(vector, limit, with_payload=False))
        return self._found(response)

    def fetch(self, ids: Sequence[PointId]) -> Steps[Found]:
        """Fetch points with nodes and vectors. Those deleted in the meantime are left out.

        :param ids: the points.
        :return: the points that are there, in the order asked for, without scores.
        """
        options = self.options
        item = {
            "ids": list(ids),
            "with_payload": True,
            "with_vectors": self._with_vector(),
            "consistency": options.consistency,
            "timeout": options.timeout,
            "shard_key_selector": options.shard_key,
        }
        records = yield Step("fetch", self._fetch_points, item)
        place = {point_id: at for at, point_id in enumerate(ids)}
        return self._parsed(sorted(records, key=lambda record: place[record.id]))

    def background(self) -> Steps[Background]:
        """Return the background sample, drawn when first needed and again when the collection has changed enough.

        :return: the sample.
        """
        kept = self._kept
        if kept is not None and time.monotonic() - kept.checked < self.check_after:
            return kept.background
        count = {"count_filter": self._filter(), "exact": False, "shard_key_selector": self.options.shard_key}
        population = yield Step("background", self._count_points, count)
        if kept is not None and abs(population - kept.background.population) <= self.refresh_share * population:
            kept.checked = time.monotonic()
            return kept.background
        sample = models.SampleQuery(sample=models.Sample.RANDOM)
        request = self._request(sample, self.background_size, with_payload=False, with_vector=True)
        (response,) = yield self._queries("background", request)
        found = self._found(response)
        background = Background(found.vectors, found.ids, max(population, len(found.ids)))
        self._kept = _Kept(background)
        return background

    def _queries(self, stage: str, *requests: models.QueryRequest) -> Step:
        return Step(stage, self._query_points, Batch(list(requests), self.options.consistency, self.options.timeout))

    def _nearest(
        self, vector: Array, limit: int, with_payload: bool = True, with_vector: bool = False
    ) -> models.QueryRequest:
        request = self._request(vector.tolist(), limit, with_payload, with_vector)
        request.score_threshold = self.options.score_threshold
        request.params = self.options.search_params
        return request

    def _request(self, query: Any, limit: int, with_payload: bool, with_vector: bool) -> models.QueryRequest:
        return models.QueryRequest(
            query=query,
            using=self.store.dense_vector_name or None,
            limit=limit,
            filter=self._filter(),
            with_payload=with_payload,
            with_vector=self._with_vector() if with_vector else False,
            shard_key=self.options.shard_key,
        )

    def _with_vector(self) -> list[str] | bool:
        return [self.store.dense_vector_name] if self.store.dense_vector_name else True

    def _filter(self) -> models.Filter | None:
        if self.options.qdrant_filter is not None:
            return self.options.qdrant_filter
        options = self.options
        query = VectorStoreQuery(
            filters=options.filters,
            node_ids=list(options.node_ids) if options.node_ids else None,
            doc_ids=list(options.doc_ids) if options.doc_ids else None,
        )
        built: models.Filter | None = self.store._build_query_filter(query)
        return built

    def _found(self, response: models.QueryResponse) -> Found:
        return self._parsed(response.points)

    def _parsed(self, points: Sequence[models.ScoredPoint | models.Record]) -> Found:
        """Take the vectors out and have the store parse the rest, so that nodes are those of its own query."""
        vectors = [_dense(point.vector, self.store.dense_vector_name) for point in points]
        if any(vector is not None for vector in vectors):
            lost = [point.id for point, vector in zip(points, vectors, strict=True) if vector is None]
            if lost:
                points = [point for point in points if point.id not in lost]
                vectors = [vector for vector in vectors if vector is not None]
            stacked = torch.tensor(vectors, dtype=torch.float32)
        else:
            stacked = torch.empty(0, 0)
        plain = [point.model_copy(update={"vector": None}) for point in points]
        nodes = list(self.store.parse_to_query_result(plain).nodes or []) if plain and plain[0].payload else []
        scores = [float(getattr(point, "score", 0.0)) for point in points]
        return Found([point.id for point in points], scores, nodes, stacked)


def _dense(vector: Any, name: str) -> list[float] | None:
    if isinstance(vector, dict):
        vector = vector.get(name)
    return vector if isinstance(vector, list) and vector and not isinstance(vector[0], list) else None


def _space(info: models.CollectionInfo, name: str, collection: str) -> Space:
    vectors = info.config.params.vectors
    named = vectors if isinstance(vectors, dict) else {"": vectors}
    params = named.get(name)
    if params is None:
        there = ", ".join(repr(key) for key in named) or "none"
        raise ValueError(f"collection {collection!r} has no vector {name!r}; it has {there}: set dense_vector_name")
    if params.multivector_config is not None:
        raise ValueError(f"vector {name!r} of {collection!r} is a multivector; refining needs one vector per point")
    if params.distance not in METRIC_OF:
        raise ValueError(
            f"distance {params.distance.value} of {collection!r} cannot be refined: use Cosine, Dot or Euclid"
        )
    return Space(name, params.size, METRIC_OF[params.distance])
