"""What a collection's strict mode allows, and how what is asked is kept to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from qdrant_client import models

from llama_index_refine.qdrant.filters import conditions_in
from llama_index_refine.qdrant.points import Points
from llama_index_refine.qdrant.requests import SearchOptions

# Every page searches as deep as it ends: to look deeper than this many pages would cost more than it can tell.
PAGES = 8


@dataclass(frozen=True)
class Limits:
    """What one collection allows, under the names of its description; None is no limit.

    :param max_query_limit: points that one search may ask for.
    :param max_timeout: seconds that a request may set itself.
    :param search_max_hnsw_ef: `hnsw_ef` of a search.
    :param search_allow_exact: False where a search must go by the index.
    :param search_max_oversampling: oversampling of quantised vectors.
    :param search_max_batchsize: searches in one request.
    :param filter_max_conditions: conditions of a filter.
    :param condition_max_size: values in one condition, as ids.
    :param read_rate_limit: searches a minute.
    """

    max_query_limit: int | None = None
    max_timeout: int | None = None
    search_max_hnsw_ef: int | None = None
    search_allow_exact: bool | None = None
    search_max_oversampling: float | None = None
    search_max_batchsize: int | None = None
    filter_max_conditions: int | None = None
    condition_max_size: int | None = None
    read_rate_limit: int | None = None

    def may_narrow(self, admitted: models.Filter | None) -> bool:
        """Say whether a filter may have one more condition."""
        most = self.filter_max_conditions
        return most is None or conditions_in(admitted) < most

    def keep(self, options: SearchOptions) -> tuple[SearchOptions, list[str]]:
        """Lower what is asked for to what is allowed.

        :param options: what restricts and steers a retriever's searches.
        :return: the same as far as it goes, and a sentence for each limit that lowers something, with its name.
        """
        given_up = []
        timeout, most = options.timeout, self.max_timeout
        if timeout is not None and most is not None and timeout > most:
            given_up.append(f"requests have {most} seconds instead of {timeout} (max_timeout)")
            options = replace(options, timeout=most)
        params = options.search_params and options.search_params.model_copy(deep=True)
        if params is None:
            return options, given_up
        ef, most = params.hnsw_ef, self.search_max_hnsw_ef
        if ef is not None and most is not None and ef > most:
            given_up.append(f"hnsw_ef is {most} instead of {ef} (search_max_hnsw_ef)")
            params.hnsw_ef = most
        if params.exact and self.search_allow_exact is False:
            given_up.append("searches use the index and are not exact (search_allow_exact)")
            params.exact = False
        compressed, widest = params.quantization, self.search_max_oversampling
        if compressed and widest is not None and (compressed.oversampling or 0) > widest:
            given_up.append(f"oversampling is {widest} (search_max_oversampling)")
            compressed.oversampling = widest
        return replace(options, search_params=params), given_up

    def paged(self, request: models.QueryRequest) -> list[models.QueryRequest]:
        """Ask for many points a page at a time.

        :param request: a search.
        :return: searches that together ask for the same, as far as fused rankings go so deep.
        """
        if self.search_allow_exact is False and request.params is not None and request.params.exact:
            by_index = request.params.model_copy(update={"exact": False})
            request = request.model_copy(update={"params": by_index})
        most = self.max_query_limit
        if most is None:
            return [request]
        limit, prefetch = request.limit or 10, _lowered(request.prefetch, most)
        if prefetch:
            limit = min(limit, sum(one.limit or 10 for one in prefetch))
        first = request.model_copy(update={"prefetch": prefetch, "limit": min(limit, most)})
        begin = request.offset or 0
        return [first] + [
            first.model_copy(update={"limit": min(limit - start, most), "offset": begin + start})
            for start in range(most, limit, most)
        ]


def read_limits(info: models.CollectionInfo) -> Limits:
    """Read what a collection allows.

    :param info: its description.
    :return: its limits; none where strict mode is off, or the server or the client does not know it.
    """
    strict = getattr(info.config, "strict_mode_config", None)
    if strict is None or not strict.enabled:
        return Limits()
    return Limits(**{one.name: getattr(strict, one.name, None) for one in fields(Limits)})


def _lowered(prefetch: Any, most: int) -> Any:
    """Lower the limits of prefetches, which may have some of their own."""
    if not isinstance(prefetch, list):
        return prefetch
    return [
        one.model_copy(update={"limit": min(one.limit or 10, most), "prefetch": _lowered(one.prefetch, most)})
        for one in prefetch
    ]


def joined(pages: Sequence[Points]) -> Points:
    """Put pages together. What moved from one to the next while they were asked for counts once."""
    return list({point.id: point for page in pages for point in page}.values())
