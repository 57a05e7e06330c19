"""What a collection's strict mode allows, and searches that keep to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from qdrant_client import models

from llama_index_refine.qdrant.filters import conditions_in
from llama_index_refine.qdrant.options import SearchOptions
from llama_index_refine.qdrant.points import Points

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

    @property
    def batch(self) -> int | None:
        """The most searches that one request may hold."""
        # A request of more searches than are allowed in a minute is refused for good.
        return min(filter(None, [self.search_max_batchsize, self.read_rate_limit]), default=None)

    @property
    def deepest(self) -> int | None:
        """How deep a ranking is worth asking for."""
        return None if self.max_query_limit is None else PAGES * self.max_query_limit

    def may_narrow(self, admitted: models.Filter | None) -> bool:
        """Say whether a filter may have one more condition."""
        most = self.filter_max_conditions
        return most is None or conditions_in(admitted) < most

    def keep(self, options: SearchOptions) -> SearchOptions:
        """Lower what is asked for to what is allowed.

        :param options: what restricts and steers a retriever's searches.
        :return: the same as far as it goes.
        """
        params = options.search_params
        if params is None and options.timeout is None:
            return options
        if params is not None:
            changes: dict[str, Any] = {"hnsw_ef": _at_most(params.hnsw_ef, self.search_max_hnsw_ef)}
            if self.search_allow_exact is False and params.exact:
                changes["exact"] = False
            if params.quantization is not None:
                oversampling = _at_most(params.quantization.oversampling, self.search_max_oversampling)
                changes["quantization"] = params.quantization.model_copy(update={"oversampling": oversampling})
            params = params.model_copy(update=changes)
        return replace(options, search_params=params, timeout=_at_most(options.timeout, self.max_timeout))

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
        limit, prefetch = request.limit or 10, request.prefetch
        if isinstance(prefetch, list) and prefetch:
            prefetch = [one.model_copy(update={"limit": _at_most(one.limit, most)}) for one in prefetch]
            limit = min(limit, sum(one.limit or 10 for one in prefetch))
        first = request.model_copy(update={"prefetch": prefetch, "limit": min(limit, most)})
        begin = request.offset or 0
        return [first] + [
            first.model_copy(update={"limit": min(limit - start, most), "offset": begin + start})
            for start in range(most, limit, most)
        ]

    def given_up(self, options: SearchOptions) -> Iterator[str]:
        """Say what a retriever's searches do without.

        :param options: what restricts and steers them.
        :return: a sentence for each limit, with its name.
        """
        kept = self.keep(options)
        if options.timeout != kept.timeout:
            yield f"requests have {kept.timeout} seconds instead of {options.timeout} (max_timeout)"
        wanted, got = options.search_params, kept.search_params
        if wanted is not None and got is not None:
            if wanted.hnsw_ef != got.hnsw_ef:
                yield f"hnsw_ef is {got.hnsw_ef} instead of {wanted.hnsw_ef} (search_max_hnsw_ef)"
            if wanted.exact != got.exact:
                yield "searches go by the index instead of exact (search_allow_exact)"
            if wanted.quantization != got.quantization and got.quantization is not None:
                yield f"oversampling is {got.quantization.oversampling} (search_max_oversampling)"


def read_limits(info: models.CollectionInfo) -> Limits:
    """Read what a collection allows.

    :param info: its description.
    :return: its limits; none where strict mode is off, or the server or the client does not know it.
    """
    strict = getattr(info.config, "strict_mode_config", None)
    if strict is None or not strict.enabled:
        return Limits()
    return Limits(**{one.name: getattr(strict, one.name, None) for one in fields(Limits)})


def joined(pages: Sequence[Points]) -> Points:
    """Put pages together. What moved from one to the next while they were asked for counts once."""
    if len(pages) == 1:
        return pages[0]
    return list({point.id: point for page in pages for point in page}.values())


def _at_most(wanted: Any, most: Any) -> Any:
    return most if wanted is not None and most is not None and wanted > most else wanted
