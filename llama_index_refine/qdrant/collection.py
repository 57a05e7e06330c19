"""What the library asks of a Qdrant collection: what is nearest to a query, and a sample of everything else."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from llama_index.core.schema import QueryBundle
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.ids import same_id
from llama_index_refine.qdrant.background import Background, drawn
from llama_index_refine.qdrant.encoding import Encoding, as_matrix, matrices_of, sparse_vectors_of
from llama_index_refine.qdrant.errors import in_a_sentence, refused, wants_another_filter
from llama_index_refine.qdrant.gateway import Gateway
from llama_index_refine.qdrant.points import (
    Found,
    NodeReader,
    PointId,
    Points,
    ReadNodes,
    diverse,
    group_of,
    read_vectors,
)
from llama_index_refine.qdrant.requests import Hybrid, SearchOptions, named
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.qdrant.views.boosted import BoostedQuery
from llama_index_refine.qdrant.views.dense import DenseQuery, Query
from llama_index_refine.qdrant.views.hybrid import HybridQuery
from llama_index_refine.qdrant.views.matrices import MatrixQuery
from llama_index_refine.qdrant.views.sparse import SparseQuery
from llama_index_refine.scheduling import Operation, perform
from llama_index_refine.similarity import similarity, similarity_of_score
from llama_index_refine.stores import PayloadVectorStore

logger = logging.getLogger(__name__)

# Points that are not graded bring their vectors too where these have no more numbers: five of 3,072 dimensions, to ten
# nodes of which five are graded. A search of its own, without them, takes a server as long.
FEW_NUMBERS = 16_000
# A ranking of which few points of a document count is read so many times as deep as they are many, as deep again where
# that is not enough, and in the end no deeper than this.
DEEPER, DEEPEST = 4, 64
# Of how many times as many points as are returned the returned ones are chosen, where they should differ.
CANDIDATES = 4
# Where more points than these should bring their vectors, few of them will be needed: they are brought afterwards.
LONG = 64
# The background is drawn anew when the number of points has changed by more than this share.
REFRESH_SHARE = 0.1


class QdrantCollection:
    """One collection, seen through a `QdrantVectorStore`: its clients and its way of reading payloads.

    :param store: the vector store.
    :param options: what restricts and steers every search.
    :param background_size: how many background vectors to keep.
    :param check_after: seconds after which the collection's description and size are asked for again.
    """

    def __init__(
        self,
        store: QdrantVectorStore,
        options: SearchOptions | None = None,
        background_size: int = 30,
        check_after: float = 60.0,
    ) -> None:
        self.store = store
        self.options = options or SearchOptions()
        # How many points are ranked for each that is returned.
        self.candidates = 1 if self.options.mmr_threshold is None else CANDIDATES
        self.background_size = background_size
        self.check_after = check_after
        # Payloads say what may be returned: points bring theirs, whatever becomes of their nodes.
        self._grouped = self.options.grouping.by is not None
        self._gateway = Gateway(store, self.options, background_size, check_after)
        self._reader = NodeReader(store)
        self._expects_images = isinstance(store, PayloadVectorStore) and store.image_field is not None
        self._sparse_encoding = Encoding(partial(sparse_vectors_of, store))
        matrices = self.options.multivector
        self._matrix_encoding = Encoding(partial(matrices_of, matrices.query_fn)) if matrices else None

    async def space(self) -> Space:
        """Return the vector's name, size and distance, read when first needed and again after a while.

        :return: the space.
        :raises ValueError: the collection has no such vector, or one that a single vector cannot search.
        """
        state = self._gateway.state
        if state.space is None or time.monotonic() - state.described > self.check_after:
            return await self._gateway.describe()
        return state.space

    async def query(self, bundle: QueryBundle, embedding: Operation) -> Query:
        """Return what is searched for, having embedded and encoded the query for each search.

        :param bundle: the query. Its own embedding is taken for the dense vector, (d,), or, where none is searched, for
            the matrix, (T, d).
        :param embedding: embeds queries that bring no embedding.
        :return: the query, with the options' score threshold.
        :raises ValueError: there is nothing to search for, or it does not fit the collection.
        """
        threshold, matrices = self.options.score_threshold, self.options.multivector
        embeds = (await self.space()).size > 0 if matrices is None else matrices.prefetch is not None
        vector = bundle.embedding
        if vector is None and embeds:
            vector = await perform("embed", embedding, bundle)
        began, space = time.monotonic(), await self.space()
        near = None
        if embeds:
            near = DenseQuery(np.asarray(vector, dtype=np.float32), None if matrices else threshold)
        query: Query
        if matrices is not None:
            matrix = await self._matrix(bundle, near is not None)
            query = MatrixQuery(matrix, near, matrices.prefetch_limit, threshold)
        elif near is not None and space.sparse is None:
            query = near
        else:
            if near is None and self.options.mmr_threshold is not None:
                raise ValueError(
                    "vector_store_query_mode='mmr' compares dense vectors, but this searches a sparse one: leave it out"
                )
            words = models.SparseVector(indices=[], values=[])
            # A query that is an image has no words.
            if bundle.query_str.strip():
                words = await perform("embed", self._sparse_encoding, bundle.query_str)
            how = self.options.hybrid or Hybrid()
            query = SparseQuery(words, threshold) if near is None else HybridQuery(near, words, how)
        if self.options.boost is not None:
            query = BoostedQuery(query, self.options.boost)
        if query.misfit(space):
            await self._fitting(query, began)
        return query

    async def search(
        self,
        query: Query,
        limit: int,
        *,
        vectors: int = 0,
        payload: bool = True,
        beside: Collection[PointId] = (),
        offset: int = 0,
        exact: bool = False,
    ) -> Found:
        """Find the nearest points, but of one document no more than the options say, unless every point counts.

        What is too much to bring for all points, `complete` brings for some. Where documents have many points, the
        ranking is read as deep as it takes, though not deeper than `DEEPEST` times as many points as are asked for.

        The first search for a query, which brings vectors of points whatever is known, tells whether the collection is
        still the one that is known. One that has been replaced in the meantime is described again, and searched again.

        :param query: what is searched for.
        :param limit: the most points.
        :param vectors: how many of the first points, those beside `beside`, bring their vectors: none where the list is
            long, or points are matrices and not the first that are seen.
        :param payload: whether points bring their nodes, as they do unless payloads hold images.
        :param beside: points that need not be found: they are left out, or come along beside `limit` others.
        :param offset: how many points come before the first.
        :param exact: whether every point counts, and the query is compared with each, so that pages fit together.
        :return: the points.
        :raises ValueError: the query does not fit what the collection is now; no point can be read as a node; or strict
            mode refuses the filter.
        """
        grouped = self._grouped and not exact
        known, depth = {*beside}, DEEPER * limit if grouped else limit
        while True:
            if vectors and not (beside or offset or exact):
                found = await self._first(query, depth, min(vectors, depth), payload)
            else:
                found = await self._later(query, depth, vectors, payload, beside, offset, exact)
            if not grouped:
                return found
            others = [at for at, point in enumerate(found.ids) if point not in known]
            kept = self.options.grouping.first([found.groups[at] for at in others])[:limit]
            if len(kept) == limit or len(others) < depth or depth >= DEEPEST * limit:
                break
            depth *= DEEPER
        there = [at for at, point in enumerate(found.ids) if point in known]
        found = found.at(sorted([*there, *(others[at] for at in kept)]))
        first = range(min(vectors + len(there), len(found.ids)) if vectors else 0)
        head, tail = found.at(first), found.at(range(len(first), len(found.ids)))
        return (await self.complete(head, vectors=True)).beside(tail)

    async def _later(
        self,
        query: Query,
        limit: int,
        vectors: int,
        payload: bool,
        beside: Collection[PointId],
        offset: int,
        exact: bool,
    ) -> Found:
        """Search a collection that a first search has found to be the one that is known. See `search`."""
        space, gateway = await self.space(), self._gateway
        may_narrow, most = gateway.state.may_narrow, gateway.state.limits.condition_max_size
        # Points beside are left out, or found. A filter changes what a fused ranking consists of, costs an index some
        # of what it finds far down, and in local mode costs more than what it leaves out.
        fits = limit <= 2 * len(beside) and len(beside) <= (most or len(beside))
        may_leave_out = fits and may_narrow and not query.ranks and not gateway.is_local
        # Where the scores of points are known only when they are found, they are wanted unless others are to be graded.
        leaves_out = may_leave_out and (vectors > 0 or (query.telling is query and query.threshold is None))
        without = sorted(beside, key=str) if leaves_out else []
        limit += len(beside) - len(without)
        vectors += (len(beside) - len(without)) if vectors else 0
        if may_narrow and (vectors > LONG or (vectors and space.multivector)):
            vectors, payload = 0, False
        payload = payload and not self._images
        if not payload and not exact:
            limit = gateway.worth(limit)
        brought = payload or (self._grouped and not exact)
        asked = gateway.state.requests.nearest(
            query, limit, payload=brought, vectors=vectors > 0, without=without, offset=offset, exact=exact
        )
        (points,) = await gateway.send("page" if exact else "search", asked)
        return self._read(points, space, payload)

    async def those(
        self, query: Query, ids: Sequence[PointId], *, vectors: bool = False, payload: bool = True
    ) -> Found:
        """Search some points only. Those that the search cannot score are listed after it.

        :param query: what is searched for.
        :param ids: the points; one may be asked for in several spellings.
        :param vectors: whether they bring their vectors.
        :param payload: whether they bring their nodes, as they are few also where payloads hold images.
        :return: those that are there, in this order, whatever their scores; none where strict mode allows no condition
            more.
        :raises ValueError: the query does not fit what the collection is now.
        """
        if not ids:
            return Found()
        space = await self.space()
        if not self._gateway.state.may_narrow:
            self._gateway.tell(
                "nodes with a judgement are left out if the search does not find them (filter_max_conditions)"
            )
            return Found()
        brought = payload or self._grouped
        points: list[Any] = []
        if query.finds_all:
            requests = self._gateway.state.requests

            def write(some: Sequence[PointId]) -> models.QueryRequest:
                return requests.nearest(query, len(some), payload=brought, vectors=vectors, among=some)

            points = await self._gateway.in_parts(ids, write)
        there = {same_id(point.id) for point in points}
        points += await self._listed([point for point in ids if same_id(point) not in there], brought, vectors)
        by_name = {same_id(point.id): point for point in points}
        names = dict.fromkeys(same_id(point) for point in ids)
        return self._read([by_name[name] for name in names if name in by_name], space, payload)

    async def complete(self, found: Found, vectors: bool = False) -> Found:
        """Bring what points came without.

        :param found: points of a search.
        :param vectors: whether they need their vectors.
        :return: the same with all their nodes; points that are gone, or outside the filter, by now are left out.
        :raises ValueError: no point can be read as a node.
        """
        bare, placed = not len(found.nodes), {*found.placed}
        lacking = [at for at in range(len(found.ids)) if bare or (vectors and at not in placed)]
        if not lacking or not self._gateway.state.may_narrow:
            return found
        space = await self.space()
        points = await self._listed([found.ids[at] for at in lacking], bare, vectors)
        there = {point.id: point for point in points}
        missed = {at for at in lacking if found.ids[at] not in there}
        found = found.at([at for at in range(len(found.ids)) if at not in missed])
        if bare:
            found = replace(found, nodes=self._reader.nodes([there[point] for point in found.ids], all_odd=False))
        if vectors:
            placed = {*found.placed}
            new = [at for at, point in enumerate(found.ids) if point in there and at not in placed]
            rows, places = read_vectors([there[found.ids[at]] for at in new], space)
            every = [*found.placed, *(new[at] for at in places)]
            order = np.argsort(every).tolist()
            found = replace(found, vectors=found.vectors.beside(rows).at(order), placed=[every[at] for at in order])
        return found

    async def diverse(
        self, ranking: list[tuple[PointId, float]], threshold: float, limit: int
    ) -> list[tuple[PointId, float]]:
        """Choose those points of a ranking that differ.

        Qdrant's own maximal marginal relevance knows nothing of grades, and would bring back what they put down.

        :param ranking: points, best first, with their scores.
        :param threshold: how much being near the query counts beside differing from other points, in [0, 1].
        :param limit: the most points.
        :return: those that are chosen, in the order in which they were.
        """
        if not ranking:
            return []
        if not self._gateway.state.may_narrow:
            self._gateway.tell(
                "nodes keep their ranking without mmr, whose vectors cannot be asked for (filter_max_conditions)"
            )
            return ranking[:limit]
        space = await self.space()
        points = await self._listed([point for point, _ in ranking], payload=False, vectors=True)
        vectors, placed = read_vectors(points, space)
        rows = {same_id(points[at].id): row for row, at in enumerate(placed)}
        there = [entry for entry in ranking if same_id(entry[0]) in rows]
        dense = vectors.dense[[rows[same_id(point)] for point, _ in there]]
        overlap = np.array([similarity(row, dense, space.metric).tolist() for row in dense])
        relevance = similarity_of_score(torch.tensor([score for _, score in there]), space.metric).numpy()
        return [there[at] for at in diverse(relevance, overlap, threshold, limit)]

    async def background(self) -> Background:
        """Return the background sample, drawn when first needed and again when the collection has changed enough.

        :return: the sample.
        """
        space = await self.space()
        state = self._gateway.state
        kept = state.background
        if kept is not None and time.monotonic() - state.counted < self.check_after:
            return kept
        population = await self._gateway.count("background")
        if kept is not None and abs(population - kept.population) <= REFRESH_SHARE * population:
            state.counted = time.monotonic()
            return kept
        points, words = await drawn(self._gateway, space, self.background_size, population)
        state.counted = time.monotonic()
        # Of many queries that have waited for one sample, all share what the first made of it.
        if (there := state.background) is None or there is kept:
            vectors, placed = read_vectors(points, space)
            ids = [points[at].id for at in placed]
            there = state.background = Background(vectors, ids, max(population, len(placed)), words)
        return there

    async def population(self) -> int:
        """Count the points that the filter admits."""
        # Until the collection is described, requests know no filter.
        await self.space()
        return await self._gateway.count("count", exact=True)

    async def gone(self, ids: Sequence[PointId]) -> set[PointId]:
        """Say which points are not in the collection any more, whatever the filter and the score threshold.

        :param ids: the points.
        :return: those that are gone; none where that cannot be asked.
        """
        if not ids:
            return set()
        try:
            there = await self._gateway.retrieve("fetch", ids)
        except Exception as error:
            told = "Missing points are taken to exist, because Qdrant cannot be asked for them: %s"
            logger.warning(told, in_a_sentence(error))
            return set()
        names = {same_id(point.id) for point in there}
        return {point for point in ids if same_id(point) not in names}

    async def _matrix(self, bundle: QueryBundle, prefetched: bool) -> Any:
        """Return a query's matrix, made of its text unless it brings one, and not the vector that is searched ahead."""
        if bundle.embedding is not None and not prefetched:
            return as_matrix("the query's embedding", bundle.embedding)
        texts = [text for text in bundle.embedding_strs if text.strip()]
        if not texts:
            instead = "" if prefetched else ": give the query its matrix as embedding"
            raise ValueError(f"the query has no text for multivector_query_fn{instead}")
        assert self._matrix_encoding is not None
        return await perform("embed", self._matrix_encoding, texts)

    async def _fitting(self, query: Query, began: float) -> Space:
        """Return the space, having read it again where the query does not fit what was known at a time."""
        space = await self.space()
        if query.misfit(space) and self._gateway.state.described < began:
            space = await self._gateway.describe()
        if reason := query.misfit(space):
            raise ValueError(reason)
        return space

    async def _first(self, query: Query, limit: int, vectors: int, payload: bool) -> Found:
        """Search, and once more where the collection turns out to be another one."""
        space, state = await self.space(), self._gateway.state
        before, described = (space, state.limits), state.described
        found = refusal = None
        try:
            found, holds = await self._searched(space, query, limit, vectors, payload)
            if holds:
                return found
        except Exception as error:
            if not refused(error):
                raise
            refusal = error
        # Another query may have read a newer description by now.
        if state.space is None or state.described <= described:
            await self._gateway.describe()
        same = (state.space, state.limits) == before
        if refusal is not None and same:
            if advice := wants_another_filter(refusal):
                raise ValueError(f"strict mode of the collection refuses the filters: {advice}") from refusal
            if self.options.boost is not None:
                raise ValueError(f"boost cannot be computed: {in_a_sentence(refusal)}") from refusal
            raise refusal
        state.background, state.doubted = None, time.monotonic()
        if found is None or not same:
            found, _ = await self._searched(await self._fitting(query, described), query, limit, vectors, payload)
        return found

    async def _searched(
        self, space: Space, query: Query, limit: int, vectors: int, payload: bool
    ) -> tuple[Found, bool]:
        """Search, and say whether what comes back agrees with what is known."""
        gateway = self._gateway
        requests, payload = gateway.state.requests, payload and not self._images
        light = not space.multivector and space.sparse is None
        apart = limit > vectors and not (light and (limit - vectors) * space.size <= FEW_NUMBERS)
        brought = payload or self._grouped
        asked = [requests.nearest(query, vectors if apart else limit, limit, payload=brought, vectors=True)]
        if apart:
            asked.append(requests.nearest(query, limit, payload=brought))
        probe = gateway.probe()
        if probe and not gateway.is_local:
            asked.append(requests.probe(query, probe.ids))
        answers: list[Any] = await gateway.send("search", *asked)
        points = answers[0]
        if apart:
            # What is as near may come in another order. Those with vectors stay in front of it.
            everyone = {point.id: point for point in [*answers[0], *answers[1]]} | {p.id: p for p in answers[0]}
            # Scores are distances under Euclid, but those that two searches are fused to.
            sign = 1 if space.metric == "euclid" and not query.fuses else -1
            points = sorted(everyone.values(), key=lambda point: sign * point.score)[:limit]
        found = self._read(points, space, payload)
        if payload:
            found = replace(found, nodes=self._reader.nodes(points, all_odd=False))
        return found, await gateway.holds(space, query, probe, found, answers[-1])

    async def _listed(self, ids: Sequence[PointId], payload: bool, vectors: bool) -> list[Any]:
        """Return those of some points that are there and inside the filter."""
        requests = self._gateway.state.requests
        return await self._gateway.in_parts(ids, lambda some: requests.listed(len(some), named(some), payload, vectors))

    def _read(self, points: Points, space: Space, payload: bool) -> Found:
        """Read points, as far as they have been brought with nodes and vectors."""
        nodes = ReadNodes(points, self._reader) if payload else []
        vectors, placed = read_vectors(points, space)
        scores = [float(getattr(point, "score", 0.0)) for point in points]
        by = self.options.grouping.by
        groups = [None if by is None else group_of(point, by) for point in points]
        return Found([point.id for point in points], scores, nodes, vectors, placed, groups)

    @property
    def _images(self) -> bool:
        """Whether nodes are brought of those only that are wanted: payloads hold images, as far as any have been read.

        Where points cannot be asked for by their ids, a search brings all that it may have to show.
        """
        state = self._gateway.state
        if self._reader.images is not None:
            state.images = bool(state.images) or self._reader.images
        return state.may_narrow and (self._expects_images if state.images is None else state.images)
