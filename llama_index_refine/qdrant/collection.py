"""What the library asks of a Qdrant collection: nodes, vectors of graded documents, background vectors."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llama_index.core.schema import BaseNode, QueryBundle
from llama_index.vector_stores.qdrant import QdrantVectorStore

from llama_index_refine.qdrant.asking import Asking
from llama_index_refine.qdrant.background import Background, draw, together
from llama_index_refine.qdrant.connection import Connection
from llama_index_refine.qdrant.errors import refused, wants_another_filter
from llama_index_refine.qdrant.options import SearchOptions
from llama_index_refine.qdrant.points import (
    Found,
    NodeReader,
    PointId,
    Points,
    ReadNodes,
    Seen,
    scores_of,
    sparse_of,
    with_vectors,
)
from llama_index_refine.qdrant.probing import Probing
from llama_index_refine.qdrant.queries import Queries, named
from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.vectors import Vectors
from llama_index_refine.qdrant.views.base import Query
from llama_index_refine.qdrant.words import SAMPLE, Words
from llama_index_refine.steps import Steps
from llama_index_refine.stores import PayloadVectorStore

# How many matrices the background has: they are large, and more of them hardly change what is found.
FEW = 15
# Points that are not graded bring their vectors too where these have no more numbers: five of 3,072 dimensions, to ten
# nodes of which five are graded. A search of its own, without them, takes a server as long.
FEW_NUMBERS = 16_000


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
        self._asks = Asking(store, self.options)
        self._reader = NodeReader(store)
        self._connection = Connection(store, self.options, background_size)
        self._probing = Probing(self._connection, check_after)
        self._expects_images = isinstance(store, PayloadVectorStore) and store.image_field is not None

    def space(self) -> Steps[Space]:
        """Return the vector's name, size and distance, read when first needed and again after a while.

        :return: the space.
        :raises ValueError: the collection has no such vector, or one that a single vector cannot search.
        """
        known = self._connection.known
        if known.space is None or time.monotonic() - known.described > self.check_after:
            return (yield from self._connection.describe())
        return known.space

    def space_for(self, query: Query) -> Steps[Space]:
        """Return the space, having read it again where the query does not fit what is known.

        :param query: what is searched for.
        :return: the space.
        :raises ValueError: the query does not fit the collection.
        """
        began = time.monotonic()
        space = yield from self.space()
        if query.misfit(space) and self._connection.known.described < began:
            space = yield from self._connection.describe()
        if reason := query.misfit(space):
            raise ValueError(reason)
        return space

    def embeds(self) -> Steps[bool]:
        """Say whether a dense vector is searched, so that the query has to be embedded."""
        return self._asks.embeds((yield from self.space()))

    def query(self, embedding: Any, bundle: QueryBundle) -> Steps[Query]:
        """Return what is searched for. See `Asking.query`.

        :raises ValueError: the query does not fit the collection.
        """
        query = yield from self._asks.query(embedding, bundle, (yield from self.space()))
        yield from self.space_for(query)
        return query

    @property
    def inline(self) -> bool:
        """Whether payloads hold images: rankings then come without, and `nodes_of` brings the nodes that are wanted."""
        known = self._connection.known.inline
        return (self._expects_images if known is None else known) and self.can_fetch

    def meets(self, inline: bool) -> None:
        """Learn from nodes whether payloads hold images: they do from the first on that does."""
        known = self._connection.known
        known.inline = bool(known.inline) or inline

    @property
    def can_fetch(self) -> bool:
        """Whether points can be asked for by their ids, through the filter."""
        return self._connection.known.limits.may_narrow(self.options.filter)

    def search(self, query: Query, limit: int, at_hand: Collection[PointId] = ()) -> Steps[Found]:
        """Find the nearest points, without vectors, and with their nodes unless payloads hold images.

        :param query: what is searched for.
        :param limit: the most points.
        :param at_hand: points that need not be found: they come beside so many others, or are left out.
        :return: the points.
        """
        if self.inline:
            return (yield from self.rank(query, limit + len(at_hand)))
        queries, without = (yield from self._asking()), self._left_out(query, at_hand)
        depth = limit + len(at_hand) - len(without)
        (points,) = yield from self._connection.queries("search", queries.nearest(query, depth, depth, without=without))
        return self._listed(points)

    def nodes_of(
        self, ids: Sequence[PointId], query: Query, sources: Sequence[Found]
    ) -> Steps[dict[PointId, BaseNode]]:
        """Return the nodes of points that searches have found.

        :param ids: the points.
        :param query: what found them.
        :param sources: what has been found, the first that has a point's node counting.
        :return: the nodes by point. Those that no source has are fetched; points that are gone by now are left out.
        """
        nodes: dict[PointId, BaseNode] = {}
        for source in sources:
            place = {point: at for at, point in enumerate(source.ids)} if len(source.nodes) else {}
            nodes |= {point: source.nodes[place[point]] for point in ids if point in place and point not in nodes}
        missing = [point for point in ids if point not in nodes]
        if missing:
            queries = yield from self._asking()
            points = yield from self._among(missing, queries, query, len(missing))
            nodes |= {point.id: self._reader.node(point) for point in points}
        return nodes

    def search_next(self, query: Query, limit: int, seen: Collection[PointId]) -> Steps[Found]:
        """Find the nearest points that have not been seen, with their nodes and vectors.

        :param query: what is searched for.
        :param limit: the most points.
        :param seen: those that have been.
        :return: the points that have a vector.
        """
        queries, without = (yield from self._asking()), self._left_out(query, seen)
        depth = limit + len(seen) - len(without)
        request = queries.nearest(query, depth, depth, with_vector=True, without=without)
        (points,) = yield from self._connection.queries("search", request)
        return self._with_vectors([point for point in points if point.id not in seen][:limit], queries.space)

    def search_first(self, query: Query, limit: int, vectors: int) -> Steps[tuple[Found, Found]]:
        """Find the nearest points, and in the same request the first few of them with their vectors.

        What comes back tells whether the collection is still the one that is known. One that has been replaced in the
        meantime is described again, and searched again where that has changed.

        :param query: what is searched for.
        :param limit: the most points.
        :param vectors: how many to bring with their vectors.
        :return: the points, with vectors if these are short, and the first of them that have one with it.
        :raises ValueError: the query does not fit what the collection is now; no point can be read as a node; or strict
            mode refuses the filter.
        """
        known = self._connection.known
        space, limits, described = (yield from self.space()), known.limits, known.described
        try:
            listed, shown, holds = yield from self._searched(space, query, limit, vectors)
        except Exception as error:
            if not refused(error):
                raise
            now = yield from self._described_after(described)
            if now == space and known.limits == limits:
                if advice := wants_another_filter(error):
                    raise ValueError(f"strict mode of the collection refuses the filters: {advice}") from error
                raise
            holds = False
        else:
            now = space if holds else (yield from self._described_after(described))
        if not holds:
            known.background, known.doubted = None, time.monotonic()
        if now != space or known.limits != limits:
            now = yield from self.space_for(query)
            listed, shown, _ = yield from self._searched(now, query, limit, vectors)
        return listed, shown

    def rank(self, query: Query, limit: int) -> Steps[Found]:
        """Find the nearest points: ids and scores only.

        :param query: what is searched for.
        :param limit: the most points.
        :return: the points, without nodes and vectors.
        """
        queries = yield from self._asking()
        deepest = self._connection.known.limits.deepest
        if deepest is not None and deepest < limit:
            limit = deepest
            self._connection.tell(f"later rounds choose among the first {deepest} nodes (max_query_limit)")
        request = queries.nearest(query, limit, limit, with_payload=False)
        (points,) = yield from self._connection.queries("search", request)
        return _ranked(points)

    def page(self, query: Query, offset: int, limit: int, with_payload: bool = False) -> Steps[Found]:
        """List the points by their similarity, a page at a time, by comparing the query with every one of them.

        :param query: what is searched for.
        :param offset: how many points come before the page.
        :param limit: the most points on it.
        :param with_payload: whether they bring their nodes.
        :return: the points, without vectors; fewer than `limit` on the last page.
        """
        queries = yield from self._asking()
        (points,) = yield from self._connection.queries("page", queries.page(query, offset, limit, with_payload))
        if with_payload:
            return self._listed(points)
        return _ranked(points)

    def population(self) -> Steps[int]:
        """Count the points that the filter admits."""
        return (yield from self._connection.count("count", exact=True))

    def fetch(self, ids: Sequence[PointId], query: Query, limit: int) -> Steps[Found]:
        """Fetch points with nodes and vectors, as far as a search for `query` may find them.

        It is that search, narrowed to these points: filter, shard key and score threshold hold as in any other. Points
        that are outside, gone by now, or without a vector are left out.

        :param ids: the points.
        :param query: what is searched for.
        :param limit: the most points, the nearest being taken.
        :return: the points that are there, in the order asked for; none where there are limits to what can be asked.
        """
        queries = yield from self._asking()
        if not self.can_fetch:
            self._connection.tell("judged nodes that no search finds are left out (filter_max_conditions)")
            return self._with_vectors([], queries.space)
        points = yield from self._among(ids, queries, query, limit, with_vector=True)
        place = {point: at for at, point in enumerate(ids)}
        return self._with_vectors(sorted(points, key=lambda point: place.get(point.id, len(place))), queries.space)

    def background(self) -> Steps[Background]:
        """Return the background sample, drawn when first needed and again when the collection has changed enough.

        :return: the sample.
        """
        space = yield from self.space()
        known = self._connection.known
        kept = known.background
        if kept is not None and time.monotonic() - known.counted < self.check_after:
            return kept
        population = yield from self._connection.count("background")
        if kept is not None and abs(population - kept.population) <= self.refresh_share * population:
            known.counted = time.monotonic()
            return kept
        drawn, words = yield from self._drawn(space, population)
        points, vectors = with_vectors(drawn, space)
        background = Background(vectors, [point.id for point in points], max(population, len(points)), words)
        known.counted = time.monotonic()
        # Many queries may have waited for one sample. They share what the first made of it.
        if known.background is None or not known.background.same_as(background):
            known.background = background
        return known.background

    def _drawn(self, space: Space, population: int) -> Steps[tuple[Points, Words | None]]:
        """Draw a sample, and where sparse vectors are searched a larger one of these.

        Matrices are fetched of those points only that are chosen, and they are few.
        """
        known, ask, options = self._connection.known, self._connection.sample, self._connection.options
        some = known.limits.condition_max_size
        bare = space.multivector and self.can_fetch
        size = min(self.background_size, FEW, some or FEW) if space.multivector else self.background_size
        queries, there = Queries(space, options, bare), known.points
        draws = [partial(draw, queries=queries, size=size, population=population, points=there, most_ids=some)]
        if space.sparse is not None:
            # Qdrant counts terms in all documents, whatever the filter.
            all_words = Queries(space, replace(options, filter=None), brings=[space.sparse])
            draws.append(partial(draw, queries=all_words, size=SAMPLE, population=there, points=there, most_ids=some))
        drawn, *wider = yield from together(ask, *draws)
        words = Words(sparse_of(wider[0], space), there) if wider else None
        if not bare or not drawn:
            return drawn, words
        whole = replace(queries, bare=False).listed(len(drawn), named([point.id for point in drawn]))
        found = yield from ask(whole)
        return (found[0] if found else []), words

    def _described_after(self, described: float) -> Steps[Space]:
        """Return a description that is newer than that time: another query may have read one by now."""
        known = self._connection.known
        if known.space is not None and known.described > described:
            return known.space
        return (yield from self._connection.describe())

    def _searched(self, space: Space, query: Query, limit: int, vectors: int) -> Steps[tuple[Found, Found, bool]]:
        """Search, and say whether what comes back agrees with what is known."""
        queries = Queries(space, self._connection.options)
        most = max(limit, vectors)
        light = not (space.multivector or space.sparse is not None or self.inline)
        apart = limit > vectors and not (light and (limit - vectors) * space.size <= FEW_NUMBERS)
        requests = [queries.nearest(query, vectors if apart else most, most, with_vector=True)]
        if apart:
            requests.append(queries.nearest(query, limit, limit, with_payload=not self.inline))
        probe = self._probing.choose()
        if probe and not self._connection.is_local:
            requests.append(queries.probe(query, probe.ids))
        found = yield from self._connection.queries("search", *requests)
        seen: Seen = {}
        bare = apart and self.inline
        self._reader.check(found[1] if apart and not bare else found[0], seen)
        shown = self._with_vectors(found[0][:vectors], space, seen)
        listed = self._listed(found[1] if apart else found[0][:limit], seen)
        if light and not apart:
            # Where all came with their vectors, how near they are to another query can be told without asking again.
            brought = shown.vectors.beside(with_vectors(found[0][vectors:], space)[1])
            if len(brought) == len(found[0]):
                listed = replace(listed, vectors=brought.at(range(len(listed.ids))))
        if bare:
            nodes = yield from self.nodes_of(listed.ids, query, [self._listed(found[0], seen)])
            there = [(point, score) for point, score in zip(listed.ids, listed.scores, strict=True) if point in nodes]
            whole = [nodes[point] for point, _ in there]
            listed = Found([point for point, _ in there], [score for _, score in there], whole, Vectors.none())
        holds = yield from self._probing.holds(space, query, probe, shown, found[-1])
        return listed, shown, holds

    def _left_out(self, query: Query, points: Collection[PointId]) -> list[PointId]:
        """Return the points if a search had better leave them out, none if it had better find them."""
        # A filter changes what a fused ranking consists of, and in local mode costs more than what it leaves out.
        some = self._connection.known.limits.condition_max_size
        filtered = not query.ranks and self.can_fetch and not self._connection.is_local
        return sorted(points, key=str) if filtered and len(points) <= (some or len(points)) else []

    def _among(
        self, ids: Sequence[PointId], queries: Queries, query: Query, limit: int, with_vector: bool = False
    ) -> Steps[Points]:
        """Search some points only, as many at a time as a condition may name."""
        if not ids:
            return []
        some = self._connection.known.limits.condition_max_size or len(ids)
        parts = [ids[start : start + some] for start in range(0, len(ids), some)]
        requests = [
            queries.nearest(query, min(limit, len(part)), len(part), with_vector=with_vector, among=part)
            if query.finds_all
            else queries.listed(len(part), named(part), with_payload=True)
            for part in parts
        ]
        found = yield from self._connection.queries("fetch", *requests)
        points = [point for some in found for point in some]
        sign = -1 if query.larger_is_nearer(queries.space) else 1
        return sorted(points, key=lambda point: sign * getattr(point, "score", 0.0))[:limit]

    def _asking(self) -> Steps[Queries]:
        space = yield from self.space()
        return Queries(space, self._connection.options)

    def _listed(self, points: Points, seen: Seen | None = None) -> Found:
        nodes = ReadNodes(points, self._reader, seen)
        return Found([point.id for point in points], scores_of(points), nodes, Vectors.none())

    def _with_vectors(self, points: Points, space: Space, seen: Seen | None = None) -> Found:
        points, vectors = with_vectors(points, space)
        return Found([point.id for point in points], scores_of(points), ReadNodes(points, self._reader, seen), vectors)


def _ranked(points: Points) -> Found:
    """Return points that came without payload and vectors."""
    return Found([point.id for point in points], scores_of(points), [], Vectors.none())
