"""Documents that one query's answers should be like, or unlike: judgements for a single call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

from llama_index.core.schema import QueryBundle, QueryType

from llama_index_refine.ids import same_id


@dataclass
class QueryWithExamples(QueryBundle):
    """A query with examples of what it means, which count for this query alone and cost no call.

    An example is a judgement: 1 for a node in `like`, 0 for one in `unlike`. It is followed in full, and the teacher is
    not asked about it. An example counts for nothing if it is gone, or if the retriever's filter excludes it.

    :param like: ids of nodes that answers should be like.
    :param unlike: ids of nodes that answers should be unlike.
    :raises ValueError: ids that are no list of texts, or a node that is on both lists.
    """

    like: Sequence[str] = field(default_factory=list)
    unlike: Sequence[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.like, self.unlike = _ids("like", self.like), _ids("unlike", self.unlike)
        both = {same_id(node_id) for node_id in self.like} & {same_id(node_id) for node_id in self.unlike}
        if both:
            raise ValueError(f"like and unlike must not name the same node; both name {sorted(both)[0]}")

    @property
    def judgements(self) -> dict[str, float]:
        """The relevance in [0, 1] of each example, by node id."""
        return {same_id(node_id): 1.0 for node_id in self.like} | {same_id(node_id): 0.0 for node_id in self.unlike}


def with_examples(query: QueryType, like: Sequence[str] = (), unlike: Sequence[str] = ()) -> QueryBundle:
    """Put the examples of a call to those that the query brings.

    :param query: a text or a bundle.
    :param like: ids of nodes that answers should be like.
    :param unlike: ids of nodes that answers should be unlike.
    :return: the bundle itself where there are none to add.
    :raises ValueError: as for `QueryWithExamples`.
    """
    bundle = QueryBundle(query) if isinstance(query, str) else query
    like, unlike = _ids("like", like), _ids("unlike", unlike)
    if not like and not unlike:
        return bundle
    if isinstance(bundle, QueryWithExamples):
        like, unlike = [*bundle.like, *like], [*bundle.unlike, *unlike]
    known = {entry.name: getattr(bundle, entry.name) for entry in fields(QueryBundle)}
    return QueryWithExamples(**known, like=like, unlike=unlike)


def in_batches(queries: Sequence[QueryType], size: int) -> Iterator[list[QueryBundle]]:
    """Take queries as bundles, some at a time.

    :param queries: texts and bundles.
    :param size: how many at a time.
    :return: the batches.
    :raises ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    for start in range(0, len(queries), size):
        yield [with_examples(query) for query in queries[start : start + size]]


def examples_of(query: QueryBundle) -> dict[str, float]:
    """Return the relevance in [0, 1] of a query's examples, by node id."""
    return query.judgements if isinstance(query, QueryWithExamples) else {}


def _ids(name: str, ids: Sequence[str]) -> list[str]:
    if isinstance(ids, str) or not all(isinstance(node_id, str) for node_id in ids):
        raise ValueError(f"{name} must be a list of node ids, which are texts; got {ids!r}")
    return list(ids)
