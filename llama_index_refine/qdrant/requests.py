"""What is asked about one vector space, in Qdrant's words, and what restricts and steers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qdrant_client import models

from llama_index_refine.qdrant.points import Grouping, PointId
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.qdrant.views.dense import Query

FusionName = Literal["rrf", "dbsf"]
MatrixEncoder = Callable[[list[str]], Sequence[Any]]

# How many of the points that a dense vector finds nearest are compared by MaxSim, where nobody says.
PREFETCH = 100


@dataclass(frozen=True)
class Hybrid:
    """How a dense and a sparse search become one.

    :param fusion: reciprocal ranks, or scores in units of their own spread.
    :param alpha: the dense search's share, in [0, 1]; None for equal shares.
    :param sparse_top_k: how many nodes the sparse search contributes; None for as many as the dense one.
    :param hybrid_top_k: how many nodes a retrieval returns; None for similarity_top_k.
    :raises ValueError: an argument outside its range.
    """

    fusion: FusionName = "rrf"
    alpha: float | None = None
    sparse_top_k: int | None = None
    hybrid_top_k: int | None = None

    def __post_init__(self) -> None:
        if self.fusion not in ("rrf", "dbsf"):
            raise ValueError(f"fusion must be 'rrf' or 'dbsf', got {self.fusion!r}")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if self.fusion == "dbsf" and self.alpha not in (None, 0.5):
            raise ValueError("alpha weighs ranks, which fusion='dbsf' does not use: leave one of them out")
        for name in ("sparse_top_k", "hybrid_top_k"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")

    def query(self) -> models.FusionQuery | models.RrfQuery:
        """Write it in Qdrant's words; the dense search comes first."""
        if self.alpha is None or self.alpha == 0.5:
            return models.FusionQuery(fusion=models.Fusion(self.fusion))
        return models.RrfQuery(rrf=models.Rrf(weights=[self.alpha, 1 - self.alpha]))


@dataclass(frozen=True)
class Multivector:
    """How documents that are matrices are searched.

    :param query_fn: makes of each text a matrix, with a vector a token.
    :param prefetch: the dense vector whose nearest points are compared by MaxSim; None to compare the query with all.
    :param prefetch_limit: how many these are, at least.
    """

    query_fn: MatrixEncoder
    prefetch: str | None = None
    prefetch_limit: int = PREFETCH


@dataclass(frozen=True)
class SearchOptions:
    """What restricts and steers every search of one retriever, in Qdrant's words.

    :param filter: the points that count, None for all.
    :param score_threshold: drop results that score worse.
    :param search_params: hnsw_ef, exact search, quantisation, ...
    :param shard_key: search these shards only.
    :param consistency: how many replicas must agree.
    :param timeout: seconds that Qdrant may take for one request.
    :param hybrid: how a sparse search takes part; None for one search alone.
    :param multivector: how documents that are matrices are searched; None where they are vectors.
    :param sparse_alone: whether the sparse vector is searched, even where there are dense ones.
    :param grouping: how many points of one document are returned.
    :param mmr_threshold: how much being near the query counts beside differing from other points; None for alone.
    :param boost: the formula by which points are ranked, None for the score alone.
    """

    filter: models.Filter | None = None
    score_threshold: float | None = None
    search_params: models.SearchParams | None = None
    shard_key: Any = None
    consistency: Any = None
    timeout: int | None = None
    hybrid: Hybrid | None = None
    multivector: Multivector | None = None
    sparse_alone: bool = False
    grouping: Grouping = field(default_factory=Grouping)
    mmr_threshold: float | None = None
    boost: models.FormulaQuery | None = None


@dataclass(frozen=True)
class Requests:
    """Writes queries that a retriever's options restrict and steer.

    :param space: the vector space.
    :param options: what restricts and steers them.
    :param brings: which vectors points come with where any do; False for none.
    """

    space: Space = field(default_factory=lambda: Space(None, 0, "dot"))
    options: SearchOptions = field(default_factory=SearchOptions)
    brings: list[str] | bool = True

    def nearest(
        self,
        query: Query,
        limit: int,
        depth: int | None = None,
        payload: bool = True,
        vectors: bool = False,
        among: Sequence[PointId] | None = None,
        without: Sequence[PointId] = (),
        offset: int = 0,
        exact: bool = False,
    ) -> models.QueryRequest:
        """Ask for the nearest points.

        :param query: what is searched for.
        :param limit: the most points.
        :param depth: how deep rankings are that become one; None for as deep as the points are.
        :param payload: whether the points bring their payload.
        :param vectors: whether they bring their vectors.
        :param among: these points only, whatever their scores; None for all.
        :param without: leave these points out.
        :param offset: how many points come before the first.
        :param exact: whether nothing is to be approximated, so that pages fit together.
        :return: the query.
        """
        admitted, params, threshold = self.options.filter, self.options.search_params, query.threshold
        if among is not None:
            admitted, threshold = narrowed(admitted, named(among)), None
        if without:
            admitted = models.Filter(must=[admitted] if admitted else None, must_not=[named(without)])
        if exact:
            params = (params or models.SearchParams()).model_copy(update={"exact": True})
        restricted = {"filter": admitted, "params": params, "score_threshold": threshold}
        return models.QueryRequest(
            limit=limit,
            offset=offset or None,
            with_payload=payload,
            with_vector=self.brings if vectors else False,
            shard_key=self.options.shard_key,
            **query.fields(self.space, restricted, depth or offset + limit),
        )

    def probe(self, query: Query, ids: Sequence[PointId]) -> models.QueryRequest:
        """Ask for what shows whether points are what they were, as far as the filter admits them.

        That is their scores by their full vectors, or the vectors themselves where scores do not tell.

        :param query: what is searched for.
        :param ids: the points.
        :return: the query.
        """
        if query.telling is None:
            return self.listed(len(ids), named(ids))
        request = self.nearest(query.telling, len(ids), payload=False, among=ids)
        request.params = models.SearchParams(quantization=models.QuantizationSearchParams(ignore=True))
        return request

    def listed(
        self, limit: int, condition: Any = None, payload: bool = False, vectors: bool = True
    ) -> models.QueryRequest:
        """Ask for points in the order of their ids.

        :param limit: the most points.
        :param condition: what they must meet beside the filter.
        :param payload: whether they bring their payload.
        :param vectors: whether they bring their vectors.
        :return: the query.
        """
        return models.QueryRequest(
            limit=limit,
            with_payload=payload,
            with_vector=self.brings if vectors else False,
            shard_key=self.options.shard_key,
            filter=self.options.filter if condition is None else narrowed(self.options.filter, condition),
        )

    def sample(self, limit: int) -> models.QueryRequest:
        """Ask for points drawn at random."""
        request = self.listed(limit)
        request.query = models.SampleQuery(sample=models.Sample.RANDOM)
        return request


def narrowed(admitted: models.Filter | None, condition: Any) -> models.Filter:
    """Add a condition to a filter, whatever that consists of."""
    return models.Filter(must=[condition] if admitted is None else [condition, admitted])


def named(ids: Sequence[PointId]) -> models.HasIdCondition:
    """Write the condition that a point is one of these."""
    return models.HasIdCondition(has_id=list(ids))
