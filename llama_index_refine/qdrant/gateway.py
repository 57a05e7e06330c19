"""What is known of one collection, and what is sent to it. Whoever follows a search need not open this."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models
from qdrant_client.local.async_qdrant_local import AsyncQdrantLocal
from qdrant_client.local.qdrant_local import QdrantLocal

from llama_index_refine.locks import Lock, OfEach
from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.clients import BATCH, Batch, CallOnce, QueryPoints
from llama_index_refine.qdrant.errors import refused
from llama_index_refine.qdrant.limits import PAGES, Limits, joined, read_limits
from llama_index_refine.qdrant.points import Found, PointId, Points, read_vectors
from llama_index_refine.qdrant.requests import Requests, SearchOptions, narrowed
from llama_index_refine.qdrant.vectors import Space, Wanted, read_space
from llama_index_refine.qdrant.views.dense import TOLERANCE, Query
from llama_index_refine.scheduling import perform

logger = logging.getLogger(__name__)

# How many points of the background are looked at again with each query.
LOOKED_AT = 5
# One entry for each filter; at 30 background vectors of 1024 dimensions, 30 MB in all.
ENTRIES = 256


@dataclass
class CollectionState:
    """What is known about one collection under some options. Each field is set at once, so threads may share it.

    :param space: the vector space, None while it is not known.
    :param described: when it was read.
    :param requests: what writes requests about it.
    :param limits: what strict mode allows.
    :param may_narrow: whether a search may be narrowed to some points, or leave some out.
    :param points: about how many points there are without the filter.
    :param background: the sample, None while there is none.
    :param counted: when its population was last compared with the collection's.
    :param told: what has been given up to keep to the limits, each of which is told once.
    :param doubted: when the scores last contradicted a description that turned out to hold.
    :param turn: which part of the background is to be looked at next.
    :param images: whether payloads hold images, so that they are fetched of those points only that are wanted; None
        while no node has been looked at.
    """

    space: Space | None = None
    described: float = 0.0
    requests: Requests = field(default_factory=Requests)
    limits: Limits = field(default_factory=Limits)
    may_narrow: bool = True
    points: int = 0
    background: Background | None = None
    counted: float = 0.0
    told: set[str] = field(default_factory=set)
    doubted: float = -math.inf
    turn: int = 0
    images: bool | None = None

    def learn(self, space: Space, options: SearchOptions, limits: Limits, points: int = 0) -> None:
        """Take in a description. A background from another space is dropped."""
        if space != self.space:
            self.background = None
        self.requests, self.limits, self.points = Requests(space, options, space.brought), limits, points
        self.may_narrow = limits.may_narrow(options.filter)
        self.space, self.described = space, time.monotonic()

    def forget(self) -> None:
        """Ask for everything again when it is next needed."""
        self.space, self.background = None, None


class States:
    """The latest few hundred states by client, shared by all retrievers on it.

    So a retriever may be made for each request or tenant, and finds what others have learnt.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._of_client: OfEach[OrderedDict[Hashable, CollectionState]] = OfEach(OrderedDict)

    def entry(self, client: Any, key: Hashable) -> CollectionState:
        """Return what is known about a collection; a new entry where nothing is.

        :param client: the client that reaches it.
        :param key: what sets it apart for this client: the collection's name, vector, filter, shard key, sample size.
        :return: the entry, which its users fill.
        """
        with self._lock:
            entries = self._of_client.of(client)
            state = entries.get(key)
            if state is None:
                state = entries[key] = CollectionState()
            entries.move_to_end(key)
            if len(entries) > ENTRIES:
                entries.popitem(last=False)
            return state


states = States()


class Gateway:
    """Sends a retriever's requests to Qdrant, within what the collection's strict mode allows.

    :param store: the vector store, which holds the clients.
    :param options: what restricts and steers every search.
    :param background_size: how many background vectors are kept.
    :param check_after: seconds to go by before scores are wondered at again.
    """

    def __init__(
        self, store: QdrantVectorStore, options: SearchOptions, background_size: int, check_after: float
    ) -> None:
        self._store = store
        self._options = options
        self._check_after = check_after
        client, matrices = store._client or store._aclient, options.multivector
        # In local mode a call costs nothing, and a filter looks at every point, in Python.
        self.is_local = isinstance(getattr(client, "_client", None), QdrantLocal | AsyncQdrantLocal)
        self._wanted = Wanted(
            store.dense_vector_name,
            store.sparse_vector_name if getattr(store, "_sparse_query_fn", None) is not None else None,
            alone=options.sparse_alone,
            both=options.hybrid is not None,
            multivector=matrices is not None,
            prefetch=matrices.prefetch if matrices else None,
        )
        restrictions = options.filter.model_dump_json() if options.filter else None
        steering = repr((options.search_params, options.shard_key, options.timeout, options.consistency))
        key = (store.collection_name, self._wanted, restrictions, steering, background_size)
        # What is known of the collection, which all retrievers on this client share.
        self.state = states.entry(client, key)
        self._query_points = QueryPoints(store)
        self._call_once = CallOnce(store)

    async def describe(self) -> Space:
        """Read the collection's description.

        :return: the space that is searched.
        :raises ValueError: there is none that one vector can search.
        """
        info = await perform("describe", self._call_once, ("get_collection", {}))
        options, limits = self._options, read_limits(info)
        space = read_space(info, self._store.collection_name, self._wanted)
        kept, given_up = limits.keep(options)
        self.state.learn(space, kept, limits, info.points_count or 0)
        for sentence in given_up:
            self.tell(sentence)
        return space

    async def send(self, stage: str, *requests: models.QueryRequest, sampling: bool = False) -> list[Points]:
        """Send queries together.

        :param stage: where the time is booked.
        :param requests: the queries.
        :param sampling: whether they are for a sample, which each replica draws otherwise, and which has another way
            where Qdrant refuses it.
        :return: the points of each.
        """
        if self.is_local:
            # Local mode approximates nothing, and warns of being asked not to. What the user asks for, it is asked for.
            for request in requests:
                request.params = self._options.search_params
        limits = self.state.limits
        # Few collections have limits; elsewhere every query is one page.
        pages = [[request] for request in requests] if limits == Limits() else [*map(limits.paged, requests)]
        batch = Batch(
            [page for some in pages for page in some],
            None if sampling else self._options.consistency,
            self.state.requests.options.timeout,
            # A request of more searches than are allowed in a minute is refused for good.
            min(filter(None, [limits.search_max_batchsize, limits.read_rate_limit, BATCH])),
        )
        try:
            rest = iter(await perform(stage, self._query_points, batch))
        except Exception as error:
            # The collection may be another one by now.
            if refused(error) and not sampling:
                self.state.forget()
            raise
        answers: list[list[Points]] = [list(islice(rest, len(some))) for some in pages]
        return [found[0] if len(found) == 1 else joined(found) for found in answers]

    async def sample(self, *requests: models.QueryRequest) -> list[Points] | None:
        """Send queries for a sample.

        :param requests: the queries.
        :return: the points of each, None where Qdrant refuses them.
        """
        try:
            return await self.send("background", *requests, sampling=True)
        except Exception as error:
            if refused(error):
                return None
            raise

    async def in_parts(
        self, ids: Sequence[PointId], write: Callable[[Sequence[PointId]], models.QueryRequest]
    ) -> list[Any]:
        """Ask for points, as many at a time as a condition may name.

        :param ids: the points.
        :param write: writes the query for some of them.
        :return: those that were found.
        """
        if not ids:
            return []
        most = self.state.limits.condition_max_size or len(ids)
        asked = [write(ids[start : start + most]) for start in range(0, len(ids), most)]
        return [point for points in await self.send("fetch", *asked) for point in points]

    def everyone(self) -> Requests:
        """Return what writes requests about all that a search may find: points may lack the vector that is searched."""
        known, requests = self.state, self.state.requests
        space, options = requests.space, requests.options
        name = space.sparse if space.name is None else space.name
        if not name or not known.may_narrow:
            return requests
        condition = models.HasVectorCondition(has_vector=name)
        return replace(requests, options=replace(options, filter=narrowed(options.filter, condition)))

    def worth(self, limit: int) -> int:
        """Return how deep a ranking is asked for that should reach down to a limit."""
        most = self.state.limits.max_query_limit
        if most is None or PAGES * most >= limit:
            return limit
        self.tell(f"later rounds choose among the first {PAGES * most} nodes (max_query_limit)")
        return PAGES * most

    async def retrieve(self, stage: str, ids: Sequence[PointId], vectors: list[str] | bool = False) -> Points:
        """Fetch points by id, whatever the filter says.

        :param stage: where the time is booked.
        :param ids: the points.
        :param vectors: the vectors to bring, True for all.
        :return: those that are there.
        """
        options = self.state.requests.options
        arguments: dict[str, Any] = {"ids": list(ids), "with_payload": False, "with_vectors": vectors}
        arguments |= {"consistency": options.consistency, "timeout": options.timeout}
        points: Points = await perform(stage, self._call_once, ("retrieve", arguments))
        return points

    async def count(self, stage: str, exact: bool = False) -> int:
        """Count the points that a search may find.

        :param stage: where the time is booked.
        :param exact: whether an estimate will not do; it has to where strict mode allows nothing else.
        :return: how many there are.
        """
        options = self.everyone().options
        arguments: dict[str, Any] = {"count_filter": options.filter, "shard_key_selector": options.shard_key}
        arguments["exact"] = exact and self.state.limits.search_allow_exact is not False
        arguments["timeout"] = options.timeout
        result = await perform(stage, self._call_once, ("count", arguments))
        return int(result.count)

    def probe(self) -> Background | None:
        """Choose what of the background is looked at again with a search, None for nothing.

        :return: some of it, in turn, so that all of it is looked at by and by.
        """
        state, kept = self.state, self.state.background
        if kept is None or not kept.ids:
            return None
        if not state.may_narrow:
            self.tell(
                "a collection that is rebuilt with another model may go unnoticed while its size stays the same "
                "(filter_max_conditions)"
            )
            return None
        count = min(LOOKED_AT, state.limits.condition_max_size or LOOKED_AT)
        first = state.turn * count % len(kept.ids)
        state.turn += 1
        few = range(len(kept.ids))[first : first + count]
        return Background(kept.vectors.at(few), [kept.ids[at] for at in few], kept.population)

    async def holds(self, space: Space, query: Query, probe: Background | None, found: Found, probed: Points) -> bool:
        """Say whether what a search brought agrees with what is known.

        :param space: what was searched.
        :param query: what for.
        :param probe: what of the background was looked at again, None for nothing.
        :param found: the points found, with their vectors.
        :param probed: what is there of the probe, where the search's request brought it.
        """
        if probe and not self.is_local and query.telling is not None:
            return probe.unchanged(probed, query.telling, space)
        if probe:
            if self.is_local:
                probed = await self.retrieve("background", probe.ids, self.state.requests.brings)
            vectors, placed = read_vectors(probed, space)
            row = {probed[place].id: at for at, place in enumerate(placed)}
            if row.keys() != set(probe.ids):
                return False
            if not vectors.at([row[point] for point in probe.ids]).near(probe.vectors, TOLERANCE):
                return False
        # Scores by compressed vectors are never quite right: no need to wonder at each query.
        wonder = time.monotonic() - self.state.doubted > self._check_after
        return not wonder or query.agrees(found.vectors, [found.scores[at] for at in found.placed], space)

    def tell(self, given_up: str) -> None:
        """Say once what is given up to keep to the collection's limits.

        :param given_up: a sentence with the limit's name.
        """
        told = self.state.told
        if given_up not in told:
            told.add(given_up)
            logger.warning("In collection %r, strict mode: %s", self._store.collection_name, given_up)
