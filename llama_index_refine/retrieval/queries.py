"""What a query brings: a text or an image, which are embedded here, and perhaps examples of what is meant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.schema import QueryBundle, QueryType

from llama_index_refine.ids import same_id
from llama_index_refine.scheduling import side_by_side


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
    :return: the bundle itself where a call gives none.
    :raises ValueError: as for `QueryWithExamples`.
    """
    bundle = QueryBundle(query) if isinstance(query, str) else query
    if like == () and unlike == ():
        return bundle
    like, unlike = _ids("like", like), _ids("unlike", unlike)
    if isinstance(bundle, QueryWithExamples):
        like, unlike = [*bundle.like, *like], [*bundle.unlike, *unlike]
    known = {entry.name: getattr(bundle, entry.name) for entry in fields(QueryBundle)}
    return QueryWithExamples(**known, like=like, unlike=unlike)


def in_batches(queries: Sequence[QueryType], size: int) -> Iterator[list[QueryBundle]]:
    """Take queries as bundles, some at a time.

    :param queries: texts and bundles.
    :param size: how many at a time.
    :return: the batches.
    :raises ValueError: a size below 1, or a query alone, which would be taken letter by letter.
    """
    if isinstance(queries, (str, QueryBundle)):
        raise ValueError(f"queries must be a list of queries, got one: {str(queries)[:40]!r}")
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    for start in range(0, len(queries), size):
        yield [with_examples(query) for query in queries[start : start + size]]


@dataclass(frozen=True, eq=False)
class Embedding:
    """Embeds queries. An item is a `QueryBundle`, its result a list of floats.

    A query's image is embedded where the model embeds images, unless `custom_embedding_strs` say what is to be; else
    its text.

    :param model: returns what embeds texts, and perhaps images.
    """

    model: Callable[[], BaseEmbedding]

    def run(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Embed one after the other."""
        model = self.model()
        results: list[Any] = []
        for query in items:
            try:
                if query.image_path and _embeds_image(model, query):
                    results.append(model.get_image_embedding(query.image_path))
                else:
                    results.append(model.get_agg_embedding_from_queries(query.embedding_strs))
            except (Exception, asyncio.CancelledError) as error:
                results.append(error)
        return results

    async def arun(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Embed side by side."""
        return await side_by_side(items, self._aembedded, self.run)

    async def _aembedded(self, query: QueryBundle) -> Any:
        model = self.model()
        if query.image_path and _embeds_image(model, query):
            return await model.aget_image_embedding(query.image_path)
        return await model.aget_agg_embedding_from_queries(query.embedding_strs)


def _embeds_image(model: BaseEmbedding, query: QueryBundle) -> TypeGuard[MultiModalEmbedding]:
    """Say whether a query's image is embedded, and not a text. :raises ValueError: neither can be."""
    if query.custom_embedding_strs is not None:
        return False
    if isinstance(model, MultiModalEmbedding):
        return True
    if any(text.strip() for text in query.embedding_strs):
        return False
    raise ValueError(
        f"the query is an image, and embed_model, a {type(model).__name__}, embeds texts only: set embed_model to the "
        "MultiModalEmbedding that embedded the collection, or give the query its embedding"
    )


def _ids(name: str, ids: Any) -> list[Any]:
    given = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else [None]
    if not all(isinstance(node_id, str) for node_id in given):
        raise ValueError(f"{name} must be a list of node ids, which are texts; got {ids!r}")
    return given
