"""What the library asks of a Qdrant collection: nodes, vectors of graded documents, background vectors."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from llama_index.core.schema import BaseNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models
from qdrant_client.local.qdrant_local import QdrantLocal
from torch import Tensor

from llama_index_refine.qdrant.background import Background, agree, draw
from llama_index_refine.qdrant.clients import (
    Batch,
    CountPoints,
    DescribeCollection,
    QueryPoints,
    SamplePoints,
)
from llama_index_refine.qdrant.encoding import SparseEncoding
from llama_index_refine.qdrant.errors import refused
from llama_index_refine.qdrant.known import Known, shelf
from llama_index_refine.qdrant.options import SearchOptions
from llama_index_refine.qdrant.points import (
    Found,
    NodeReader,
    PointId,
    Points,
    ReadNodes,
    Seen,
    scores_of,
    with_vectors,
)
from llama_index_refine.qdrant.queries import Queries
from llama_index_refine.qdrant.space import Space, read_space
from llama_index_refine.steps import Operation, Step, Steps

Array = np.ndarray | Tensor


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
            return (yield from self._described())
        return known.space

    def space_for(self, vector: Array) -> Steps[Space]:
        """Return the space, having read it again where the vector does not fit what is known.

        :param vector: (d,) a query.
        :return: the space.
        :raises ValueError: the vector does not fit the collection.
        """
        began = time.monotonic()
        space = yield from self.space()
        if len(vector) != space.size and self._known().described < began:
            space = yield from self._described()
        if tuple(vector.shape) != (space.size,):
            raise ValueError(
                f"the query's embedding has {len(vector)} dimensions, the vector {space.name!r} of the collection has "
                f"{space.size}: set embed_model to the model that embedded the collection"
            )
        return space

    def words(self, query_str: str) -> Steps[dict[str, models.SparseVector]]:
        """Encode the query's text for the sparse search of hybrid mode.

        :param query_str: the text.
        :return: what every search for this query takes beside the vector; empty where the dense search is alone.
        """
        if self.options.hybrid is None:
            return {}
        if not query_str.strip():
            # A query that is an image has no words.
            return {"sparse": models.SparseVector(indices=[], values=[])}
        sparse = yield Step("embed", self._encoding, query_str)
        return {"sparse": sparse}

    @property
    def inline(self) -> bool:
        """Whether payloads hold images: rankings then come without, and `nodes_of` brings the nodes that are wanted."""
        return self._known().inline

    @inline.setter
    def inline(self, inline: bool) -> None:
        self._known().inline = inline

    def search(self, vector: Array, limit: int, sparse: models.SparseVector | None = None) -> Steps[Found]:
        """Find the nearest points, without vectors, and with their nodes unless payloads hold images.

        :param vector: (d,) the query.
        :param limit: the most points.
        :param sparse: the query of the sparse search that takes part, None for none.
        :return: the points.
        """
        if self.inline:
            return (yield from self.rank(vector, limit, sparse))
        queries = yield from self._asking()
        (points,) = yield from self._queries("search", queries.nearest(vector, limit, limit, sparse))
        return self._listed(points)

    def nodes_of(
        self,
        ids: Sequence[PointId],
        vector: Array,
        sources: Sequence[Found],
        sparse: models.SparseVector | None = None,
    ) -> Steps[dict[PointId, BaseNode]]:
        """Return the nodes of points that searches have found.

        :param ids: the points.
        :param vector: (d,) the query that found them.
        :param sources: what has been found, the first that has a point's node counting.
        :param sparse: the query of the sparse search that took part, None for none.
        :return: the nodes by point. Those that no source has are fetched; points that are gone by now are left out.
        """
        nodes: dict[PointId, BaseNode] = {}
        for source in sources:
            place = {point: at for at, point in enumerate(source.ids)} if len(source.nodes) else {}
            nodes |= {point: source.nodes[place[point]] for point in ids if point in place and point not in nodes}
        missing = [point for point in ids if point not in nodes]
        if missing:
            queries = yield from self._asking()
            request = queries.nearest(vector, len(missing), len(missing), sparse, among=missing)
            (points,) = yield from self._queries("fetch", request)
            nodes |= {point.id: self._reader.node(point) for point in points}
        return nodes

    def search_first(
        self, vector: Array, limit: int, vectors: int, sparse: models.SparseVector | None = None
    ) -> Steps[tuple[Found, Found]]:
        """Find the nearest points, and in the same request the first few of them with their vectors.

        What comes back tells whether the collection is still the one that is known. One that has been replaced in the
        meantime is described again, and searched again where that has changed.

        :param vector: (d,) the query.
        :param limit: the most points.
        :param vectors: how many to bring with their vectors.
        :param sparse: the query of the sparse search that takes part, None for none.
        :return: the points without vectors, and the first of them that have one with it.
        :raises ValueError: the query does not fit what the collection is now; or no point can be read as a node.
        """
        known = self._known()
        space, described = (yield from self.space()), known.described
        try:
            listed, shown, holds = yield from self._searched(known, space, vector, limit, vectors, sparse)
        except Exception as error:
            if not refused(error):
                raise
            now = yield from self._described_after(described)
            if now == space:
                raise
            holds = False
        else:
            now = space if holds else (yield from self._described_after(described))
        if not holds:
            known.background, known.doubted = None, time.monotonic()
        if now != space:
            now = yield from self.space_for(vector)
            listed, shown, _ = yield from self._searched(known, now, vector, limit, vectors, sparse)
        return listed, shown

    def rank(self, vector: Array, limit: int, sparse: models.SparseVector | None = None) -> Steps[Found]:
        """Find the nearest points: ids and scores only.

        :param vector: (d,) the query.
        :param limit: the most points.
        :param sparse: the query of the sparse search that takes part, None for none.
        :return: the points, without nodes and vectors.
        """
        queries = yield from self._asking()
        request = queries.nearest(vector, limit, limit, sparse, with_payload=False)
        (points,) = yield from self._queries("search", request)
        return Found([point.id for point in points], scores_of(points), [], torch.empty(0, 0))

    def page(self, vector: Array, offset: int, limit: int, with_payload: bool = False) -> Steps[Found]:
        """List the points by their similarity, a page at a time, by comparing the query with every one of them.

        :param vector: (d,) the query.
        :param offset: how many points come before the page.
        :param limit: the most points on it.
        :param with_payload: whether they bring their nodes.
        :return: the points, without vectors; fewer than `limit` on the last page.
        """
        queries = yield from self._asking()
        (points,) = yield from self._queries("page", queries.page(vector, offset, limit, with_payload))
        if with_payload:
            return self._listed(points)
        return Found([point.id for point in points], scores_of(points), [], torch.empty(0, 0))

    def population(self) -> Steps[int]:
        """Count the points that the filter admits."""
        options = self.options
        count = {"count_filter": options.filter, "exact": True, "shard_key_selector": options.shard_key}
        number: int = yield from self._ask("count", self._count_points, count | self._patience())
        return number

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
        queries = yield from self._asking()
        request = queries.nearest(vector, min(limit, len(ids)), len(ids), sparse, with_vector=True, among=ids)
        (found,) = yield from self._queries("fetch", request)
        place = {point: at for at, point in enumerate(ids)}
        points = sorted(found, key=lambda point: place.get(point.id, len(place)))
        return self._with_vectors(points, queries.space)

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
        queries = Queries(space, options)
        drawn = yield from draw(self._sample, queries, self.background_size, population, known.points)
        points, vectors = with_vectors(drawn, space)
        background = Background(vectors, [point.id for point in points], max(population, len(points)))
        known.counted = time.monotonic()
        # Many queries may have waited for one sample. They share what the first made of it.
        if known.background is None or not known.background.same_as(background):
            known.background = background
        return known.background

    def _described(self) -> Steps[Space]:
        info = yield from self._ask("describe", self._describe, None)
        sparse = self.store.sparse_vector_name if self.options.hybrid else None
        space = read_space(info, self.store.collection_name, self.store.dense_vector_name, sparse)
        if self.options.hybrid and self.options.hybrid.fusion == "dbsf" and space.metric == "euclid":
            raise ValueError("fusion='dbsf' adds up scores, and Euclid's are distances: use 'rrf'")
        self._known().learn(space, info.points_count or 0)
        return space

    def _described_after(self, described: float) -> Steps[Space]:
        """Return a description that is newer than that time: another query may have read one by now."""
        known = self._known()
        if known.space is not None and known.described > described:
            return known.space
        return (yield from self._described())

    def _searched(
        self,
        known: Known,
        space: Space,
        vector: Array,
        limit: int,
        vectors: int,
        sparse: models.SparseVector | None,
    ) -> Steps[tuple[Found, Found, bool]]:
        """Search, and say whether what comes back agrees with what is known."""
        queries = Queries(space, self.options)
        requests = [queries.nearest(vector, vectors, max(limit, vectors), sparse, with_vector=True)]
        if limit > vectors:
            requests.append(queries.nearest(vector, limit, limit, sparse, with_payload=not known.inline))
        probe = known.background.a_few(known.turn) if known.background and known.background.ids else None
        if probe:
            known.turn += 1
            requests.append(queries.scores(vector, probe.ids))
        found = yield from self._queries("search", *requests)
        seen: Seen = {}
        bare = limit > vectors and known.inline
        self._reader.check(found[1] if limit > vectors and not bare else found[0], seen)
        shown = self._with_vectors(found[0], space, seen)
        listed = self._listed(found[1] if limit > vectors else found[0][:limit], seen)
        if bare:
            nodes = yield from self.nodes_of(listed.ids, vector, [self._listed(found[0], seen)], sparse)
            there = [(point, score) for point, score in zip(listed.ids, listed.scores, strict=True) if point in nodes]
            whole = [nodes[point] for point, _ in there]
            listed = Found([point for point, _ in there], [score for _, score in there], whole, torch.empty(0, 0))
        query = torch.tensor(space.query(vector))
        if probe:
            return listed, shown, probe.unchanged(found[-1], query, space.metric)
        # Scores by compressed vectors are never quite right: no need to wonder at each query.
        wonder = sparse is None and time.monotonic() - known.doubted > self.check_after
        return listed, shown, not wonder or agree(shown.vectors, shown.scores, query, space.metric)

    def _asking(self) -> Steps[Queries]:
        space = yield from self.space()
        return Queries(space, self.options)

    def _sample(self, *requests: models.QueryRequest) -> Generator[Step, Any, list[Points] | None]:
        batch = Batch(list(requests), self.options.consistency, self.options.timeout)
        try:
            responses = yield Step("background", self._sample_points, batch)
        except Exception as error:
            if refused(error):
                return None
            raise
        return list(responses)

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

    def _queries(self, stage: str, *requests: models.QueryRequest) -> Generator[Step, Any, list[Points]]:
        if isinstance(getattr(self.store._client, "_client", None), QdrantLocal):
            # Local mode approximates nothing, and warns of being asked not to. What the user asks for, it is asked for.
            own = self.options.search_params
            requests = tuple(request.model_copy(update={"params": own}) for request in requests)
        batch = Batch(list(requests), self.options.consistency, self.options.timeout)
        responses = yield from self._ask(stage, self._query_points, batch)
        return [response.points for response in responses]

    def _patience(self) -> dict[str, Any]:
        return {"timeout": self.options.timeout} if self.options.timeout is not None else {}

    def _listed(self, points: Points, seen: Seen | None = None) -> Found:
        nodes = ReadNodes(points, self._reader, seen)
        return Found([point.id for point in points], scores_of(points), nodes, torch.empty(0, 0))

    def _with_vectors(self, points: Points, space: Space, seen: Seen | None = None) -> Found:
        points, vectors = with_vectors(points, space)
        return Found([point.id for point in points], scores_of(points), ReadNodes(points, self._reader, seen), vectors)
