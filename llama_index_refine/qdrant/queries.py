"""What is asked about one vector space, in Qdrant's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import models

from llama_index_refine.qdrant.options import SearchOptions
from llama_index_refine.qdrant.points import PointId
from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.views.base import Query


@dataclass(frozen=True)
class Queries:
    """Writes queries that a retriever's options restrict and steer.

    :param space: the vector space.
    :param options: what restricts and steers them.
    :param bare: whether points that are listed or sampled come without their vectors.
    :param brings: which vectors come back where any do; None for those that are searched.
    """

    space: Space
    options: SearchOptions
    bare: bool = False
    brings: list[str] | None = None

    def nearest(
        self,
        query: Query,
        limit: int,
        depth: int,
        with_payload: bool = True,
        with_vector: bool = False,
        among: Sequence[PointId] | None = None,
        without: Sequence[PointId] = (),
    ) -> models.QueryRequest:
        """Ask for the nearest points.

        :param query: what is searched for.
        :param limit: the most points.
        :param depth: how deep rankings are that become one.
        :param with_payload: whether the points bring their payload.
        :param with_vector: whether they bring their vectors.
        :param among: search these points only, None for all.
        :param without: leave these points out.
        :return: the query.
        """
        options = self.options
        admitted = options.filter if among is None else narrowed(options.filter, named(among))
        if without:
            admitted = models.Filter(must=[admitted] if admitted else None, must_not=[named(without)])
        restricted = {
            "filter": admitted,
            "params": options.search_params,
            "score_threshold": options.score_threshold,
        }
        return self._request(limit, with_payload, with_vector, **query.fields(self.space, restricted, depth))

    def page(self, query: Query, offset: int, limit: int, with_payload: bool = False) -> models.QueryRequest:
        """Ask for a page of the whole ranking, whose pages fit together because nothing is approximated.

        :param query: what is searched for.
        :param offset: how many points come before it.
        :param limit: the most points on it.
        :param with_payload: whether the points bring their payload.
        :return: the query.
        """
        given = self.options.search_params or models.SearchParams()
        request = self.nearest(query, limit, limit, with_payload)
        return request.model_copy(update={"offset": offset, "params": given.model_copy(update={"exact": True})})

    def probe(self, query: Query, ids: Sequence[PointId]) -> models.QueryRequest:
        """Ask for what shows whether points are what they were, as far as the filter admits them.

        That is their scores by their full vectors, or the vectors themselves where scores do not tell.

        :param query: what is searched for.
        :param ids: the points.
        :return: the query.
        """
        if query.telling is None:
            return self.listed(len(ids), named(ids))
        full = models.SearchParams(quantization=models.QuantizationSearchParams(ignore=True))
        restricted = {"filter": narrowed(self.options.filter, named(ids)), "params": full}
        return self._request(len(ids), **query.telling.fields(self.space, restricted, len(ids)))

    def listed(self, limit: int, condition: Any = None, with_payload: bool = False) -> models.QueryRequest:
        """Ask for points in the order of their ids.

        :param limit: the most points.
        :param condition: what they must meet beside the filter.
        :param with_payload: whether they bring their payload.
        :return: the query.
        """
        admitted = self.options.filter if condition is None else narrowed(self.options.filter, condition)
        return self._request(limit, with_payload, with_vector=not self.bare, filter=admitted)

    def sample(self, limit: int) -> models.QueryRequest:
        """Ask for points drawn at random."""
        random = models.SampleQuery(sample=models.Sample.RANDOM)
        return self._request(limit, with_vector=not self.bare, query=random, filter=self.options.filter)

    def _request(
        self, limit: int, with_payload: bool = False, with_vector: bool = False, **query: Any
    ) -> models.QueryRequest:
        return models.QueryRequest(
            limit=limit,
            with_payload=with_payload,
            with_vector=(self.brings or self.space.brought) if with_vector else False,
            shard_key=self.options.shard_key,
            **query,
        )


def narrowed(admitted: models.Filter | None, condition: Any) -> models.Filter:
    """Add a condition to a filter, whatever that consists of."""
    return models.Filter(must=[condition] if admitted is None else [condition, admitted])


def named(ids: Sequence[PointId]) -> models.HasIdCondition:
    """Write the condition that a point is one of these."""
    return models.HasIdCondition(has_id=list(ids))
