"""What is asked about one vector space, in Qdrant's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import models
from torch import Tensor

from llama_index_refine.qdrant.options import SearchOptions
from llama_index_refine.qdrant.points import PointId
from llama_index_refine.qdrant.space import Space


@dataclass(frozen=True)
class Queries:
    """Writes queries that a retriever's options restrict and steer.

    :param space: the vector space.
    :param options: what restricts and steers them.
    """

    space: Space
    options: SearchOptions

    def nearest(
        self,
        vector: np.ndarray | Tensor,
        limit: int,
        depth: int,
        sparse: models.SparseVector | None = None,
        with_payload: bool = True,
        with_vector: bool = False,
        among: Sequence[PointId] | None = None,
        without: Sequence[PointId] = (),
    ) -> models.QueryRequest:
        """Ask for the nearest points; with a sparse query, for the first of two rankings fused.

        :param vector: (d,) the query.
        :param limit: the most points.
        :param depth: how deep the rankings are that are fused.
        :param sparse: the query of the sparse search that takes part, None for none.
        :param with_payload: whether the points bring their payload.
        :param with_vector: whether they bring their vector.
        :param among: search these points only, None for all.
        :param without: leave these points out.
        :return: the query.
        """
        options = self.options
        admitted = options.filter if among is None else narrowed(options.filter, _named(among))
        if without:
            admitted = models.Filter(must=[admitted] if admitted else None, must_not=[_named(without)])
        dense: dict[str, Any] = {
            "query": self.space.query(vector),
            "using": self.space.name or None,
            "filter": admitted,
            "params": options.search_params,
            "score_threshold": options.score_threshold,
        }
        if sparse is None or options.hybrid is None:
            return self._request(limit, with_payload, with_vector, **dense)
        dense_ranking = models.Prefetch(**dense, limit=depth)
        if not sparse.indices:
            fused = models.FusionQuery(fusion=models.Fusion.RRF)
            return self._request(limit, with_payload, with_vector, prefetch=[dense_ranking], query=fused)
        words = models.Prefetch(
            query=sparse,
            using=self.space.sparse,
            filter=admitted,
            params=options.search_params,
            limit=options.hybrid.sparse_top_k or depth,
        )
        prefetch = [dense_ranking, words]
        return self._request(limit, with_payload, with_vector, prefetch=prefetch, query=options.hybrid.query())

    def page(
        self, vector: np.ndarray | Tensor, offset: int, limit: int, with_payload: bool = False
    ) -> models.QueryRequest:
        """Ask for a page of the whole ranking, whose pages fit together because nothing is approximated.

        :param vector: (d,) the query.
        :param offset: how many points come before it.
        :param limit: the most points on it.
        :param with_payload: whether the points bring their payload.
        :return: the query.
        """
        given = self.options.search_params or models.SearchParams()
        request = self.nearest(vector, limit, limit, with_payload=with_payload)
        return request.model_copy(update={"offset": offset, "params": given.model_copy(update={"exact": True})})

    def scores(self, vector: np.ndarray | Tensor, ids: Sequence[PointId]) -> models.QueryRequest:
        """Ask for the scores of points by their full vectors, as far as the filter admits them.

        :param vector: (d,) the query.
        :param ids: the points.
        :return: the query.
        """
        return self._request(
            len(ids),
            query=self.space.query(vector),
            using=self.space.name or None,
            filter=narrowed(self.options.filter, _named(ids)),
            params=models.SearchParams(quantization=models.QuantizationSearchParams(ignore=True)),
        )

    def listed(self, limit: int, condition: Any = None) -> models.QueryRequest:
        """Ask for points with their vectors, in the order of their ids.

        :param limit: the most points.
        :param condition: what they must meet beside the filter.
        :return: the query.
        """
        admitted = self.options.filter if condition is None else narrowed(self.options.filter, condition)
        return self._request(limit, with_vector=True, filter=admitted)

    def sample(self, limit: int) -> models.QueryRequest:
        """Ask for points drawn at random, with their vectors."""
        random = models.SampleQuery(sample=models.Sample.RANDOM)
        return self._request(limit, with_vector=True, query=random, filter=self.options.filter)

    def _request(
        self, limit: int, with_payload: bool = False, with_vector: bool = False, **query: Any
    ) -> models.QueryRequest:
        return models.QueryRequest(
            limit=limit,
            with_payload=with_payload,
            with_vector=([self.space.name] if self.space.name else True) if with_vector else False,
            shard_key=self.options.shard_key,
            **query,
        )


def narrowed(admitted: models.Filter | None, condition: Any) -> models.Filter:
    """Add a condition to a filter, whatever that consists of."""
    return models.Filter(must=[condition] if admitted is None else [condition, admitted])


def _named(ids: Sequence[PointId]) -> models.HasIdCondition:
    return models.HasIdCondition(has_id=list(ids))
