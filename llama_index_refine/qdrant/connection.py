"""What is sent to one collection, and what is known of it."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from typing import Any

from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models
from qdrant_client.local.async_qdrant_local import AsyncQdrantLocal
from qdrant_client.local.qdrant_local import QdrantLocal

from llama_index_refine.qdrant.clients import (
    BATCH,
    Batch,
    CountPoints,
    DescribeCollection,
    QueryPoints,
    RetrievePoints,
    SamplePoints,
)
from llama_index_refine.qdrant.errors import refused
from llama_index_refine.qdrant.known import Known, shelf
from llama_index_refine.qdrant.limits import joined, read_limits
from llama_index_refine.qdrant.options import SearchOptions
from llama_index_refine.qdrant.points import PointId, Points
from llama_index_refine.qdrant.space import Space, Wanted, read_space
from llama_index_refine.steps import Operation, Step, Steps

logger = logging.getLogger(__name__)


class Connection:
    """Sends a retriever's queries to Qdrant, within what the collection's strict mode allows.

    :param store: the vector store, which holds the clients.
    :param options: what restricts and steers every search.
    :param sample: what, beside the collection and the options, sets apart what is known of it.
    """

    def __init__(self, store: QdrantVectorStore, options: SearchOptions, sample: int) -> None:
        self._store = store
        self._options = options
        self._restrictions = (
            (options.multivector is not None, options.multivector and options.multivector.prefetch),
            options.filter.model_dump_json() if options.filter else None,
            repr(options.shard_key),
            sample,
        )
        self._query_points = QueryPoints(store)
        self._sample_points = SamplePoints(store)
        self._retrieve_points = RetrievePoints(store)
        self._count_points = CountPoints(store)
        self._describe = DescribeCollection(store)

    @property
    def known(self) -> Known:
        """What is known of the collection, shared by all retrievers on this client."""
        store, options = self._store, self._options
        key = (
            store.collection_name,
            wanted_of(store, options),
            *self._restrictions,
        )
        return shelf.entry(store._client or store._aclient, key)

    @property
    def options(self) -> SearchOptions:
        """What restricts and steers searches, as far as the collection allows it."""
        return self.known.limits.keep(self._options)

    def describe(self) -> Steps[Space]:
        """Read the collection's description.

        :return: the space that is searched.
        :raises ValueError: there is none that one vector can search.
        """
        info = yield from self._ask("describe", self._describe, None)
        options, store = self._options, self._store
        space = read_space(info, store.collection_name, wanted_of(store, options), options.multivector)
        if options.hybrid and options.hybrid.fusion == "dbsf" and space.metric == "euclid":
            raise ValueError("fusion='dbsf' adds up scores, and Euclid's are distances: use 'rrf'")
        limits = read_limits(info)
        self.known.learn(space, info.points_count or 0, limits)
        for sentence in limits.given_up(options):
            self.tell(sentence)
        return space

    def queries(self, stage: str, *requests: models.QueryRequest) -> Generator[Step, Any, list[Points]]:
        """Send queries together.

        :param stage: where the time is booked.
        :param requests: the queries.
        :return: the points of each.
        """
        if self.is_local:
            # Local mode approximates nothing, and warns of being asked not to. What the user asks for, it is asked for.
            own = self._options.search_params
            requests = tuple(request.model_copy(update={"params": own}) for request in requests)
        pages = self._paged(requests)
        responses = yield from self._ask(stage, self._query_points, self._batch(pages))
        return _joined(pages, [response.points for response in responses])

    def sample(self, *requests: models.QueryRequest) -> Generator[Step, Any, list[Points] | None]:
        """Send queries for a sample, on behalf of all who wait for it.

        :param requests: the queries.
        :return: the points of each, None where Qdrant refuses them.
        """
        pages = self._paged(requests)
        try:
            responses = yield Step("background", self._sample_points, self._batch(pages))
        except Exception as error:
            if refused(error):
                return None
            raise
        return _joined(pages, responses)

    @property
    def is_local(self) -> bool:
        """Whether this is local mode, where a call costs nothing and a filter looks at every point, in Python."""
        client = self._store._client or self._store._aclient
        return isinstance(getattr(client, "_client", None), QdrantLocal | AsyncQdrantLocal)

    def retrieve(self, ids: Sequence[PointId], names: Sequence[str]) -> Generator[Step, Any, Points]:
        """Fetch points with their vectors by id, whatever the filter says.

        :param ids: the points.
        :param names: the vectors to bring, empty for the only one where it has no name.
        :return: those that are there.
        """
        arguments = {"ids": list(ids), "with_payload": False, "with_vectors": [*names] if any(names) else True}
        points: Points = yield from self._ask("background", self._retrieve_points, arguments)
        return points

    def count(self, stage: str, exact: bool = False) -> Steps[int]:
        """Count the points that the filter admits.

        :param stage: where the time is booked.
        :param exact: whether an estimate will not do; it has to where strict mode allows nothing else.
        :return: how many there are.
        """
        options = self.options
        arguments: dict[str, Any] = {
            "count_filter": options.filter,
            "exact": exact and self.known.limits.search_allow_exact is not False,
            "shard_key_selector": options.shard_key,
        }
        if options.timeout is not None:
            arguments["timeout"] = options.timeout
        count: int = yield from self._ask(stage, self._count_points, arguments)
        return count

    def tell(self, given_up: str) -> None:
        """Say once what is given up to keep to the collection's limits.

        :param given_up: a sentence with the limit's name.
        """
        told = self.known.told
        if given_up not in told:
            told.add(given_up)
            logger.warning("In collection %r, strict mode: %s", self._store.collection_name, given_up)

    def _paged(self, requests: Sequence[models.QueryRequest]) -> list[list[models.QueryRequest]]:
        limits = self.known.limits
        return [limits.paged(request) for request in requests]

    def _batch(self, pages: list[list[models.QueryRequest]]) -> Batch:
        options, most = self.options, self.known.limits.batch
        requests = [page for some in pages for page in some]
        return Batch(requests, options.consistency, options.timeout, min(most or BATCH, BATCH))

    def _ask(self, stage: str, operation: Operation, item: Any) -> Generator[Step, Any, Any]:
        """Take one step to Qdrant. A refusal may mean that the collection is another one by now."""
        try:
            answer = yield Step(stage, operation, item)
        except Exception as error:
            if refused(error):
                self.known.forget()
            raise
        return answer


def wanted_of(store: QdrantVectorStore, options: SearchOptions) -> Wanted:
    """Say which vectors a retriever wants to search: those that its store names, as far as it can encode for them."""
    sparse = store.sparse_vector_name if getattr(store, "_sparse_query_fn", None) is not None else None
    return Wanted(store.dense_vector_name, sparse, options.sparse_alone, options.hybrid is not None)


def _joined(pages: list[list[models.QueryRequest]], found: Sequence[Points]) -> list[Points]:
    rest = iter(found)
    return [joined([next(rest) for _ in some]) for some in pages]
