"""Strict mode as Qdrant 1.18 enforces it, in its own words, for servers whose storage knows none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qdrant_client import models

from llama_index_refine.qdrant.filters import conditions_in


class StrictMode:
    """Checks requests by a collection's configuration.

    :param config: what is allowed.
    :param retry_after: seconds after which the rate limit lets requests pass again, which it then does for good.
    """

    def __init__(self, config: models.StrictModeConfig, retry_after: int = 1) -> None:
        self.config = config
        self.retry_after = retry_after
        self.left = config.read_rate_limit
        self.refused = 0

    def described(self, info: models.CollectionInfo) -> models.CollectionInfo:
        shown = models.StrictModeConfigOutput(**self.config.model_dump(exclude_none=True))
        return info.model_copy(update={"config": info.config.model_copy(update={"strict_mode_config": shown})})

    def refusal(self, queries: Sequence[models.QueryRequest], timeout: int | None) -> str | None:
        """What Qdrant answers with a 400, None where all is allowed."""
        # The older clients do not know of it.
        most = getattr(self.config, "search_max_batchsize", None)
        said = [*self._too_much("search batch size", len(queries), most)]
        said += self._too_much("timeout", timeout, self.config.max_timeout)
        said += [text for query in queries for text in self._of_query(query)]
        return f"Bad request: {said[0]}" if said else None

    def wait(self, searches: int) -> str | None:
        """What Qdrant answers with a 429, None where there is no need to wait."""
        if self.left is None or searches <= self.left:
            self.left = None if self.left is None else self.left - searches
            return None
        self.refused += 1
        left, self.left = self.left, 10_000
        return (
            f"Rate limiting exceeded: Read rate limit exceeded: Operation requires {searches} tokens but only {left} "
            f"were available. Retry after {self.retry_after}s"
        )

    def _of_query(self, query: Any) -> Iterator[str]:
        config = self.config
        yield from self._too_much("limit", query.limit, config.max_query_limit)
        params = query.params or models.SearchParams()
        yield from self._too_much("hnsw_ef", params.hnsw_ef, config.search_max_hnsw_ef)
        oversampling = params.quantization.oversampling if params.quantization else None
        yield from self._too_much("oversampling", oversampling, config.search_max_oversampling)
        if params.exact and config.search_allow_exact is False:
            yield "Exact search disabled!. Help: Set exact=false."
        yield from self._of_filter(query.filter)
        for prefetch in query.prefetch or []:
            yield from self._of_query(prefetch)

    def _of_filter(self, admitted: models.Filter | None) -> Iterator[str]:
        there, most = conditions_in(admitted), self.config.filter_max_conditions
        if most is not None and there > most:
            yield (
                f"Filter condition limit reached ({there} > {most}). Help: Reduce the amount of conditions of your "
                "filter."
            )
        for condition in _leaves(admitted):
            size, most = len(getattr(condition, "has_id", None) or []), self.config.condition_max_size
            if most is not None and size > most:
                yield f"Condition size limit reached ({size} > {most}). Help: Reduce the size of your condition."
            key = getattr(condition, "key", None)
            if key and self.config.unindexed_filtering_retrieve is False:
                yield (
                    f'Index required but not found for "{key}" of one of the following types: [keyword]. Help: Create '
                    "an index for this key or use a different filter."
                )

    def _too_much(self, name: str, asked: Any, most: Any) -> Iterator[str]:
        if asked is not None and most is not None and asked > most:
            yield (
                f'Limit exceeded {asked} > {most} for "{name}". Help: Reduce the "{name}" parameter to or below {most}.'
            )


def _leaves(condition: Any) -> Iterator[Any]:
    if isinstance(condition, models.Filter):
        for group in (condition.must, condition.should, condition.must_not):
            for one in group if isinstance(group, list) else [group] if group else []:
                yield from _leaves(one)
    elif condition is not None:
        yield condition
