"""The operation that embeds the query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.schema import QueryBundle


@dataclass(frozen=True, eq=False)
class Embedding:
    """Embeds queries. An item is a `QueryBundle`, its result a list of floats.

    A query's image is embedded where the model embeds images, unless `custom_embedding_strs` say what is to be; else
    its text.
    """

    model: Callable[[], BaseEmbedding]

    def run(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Embed one after the other."""
        model = self.model()
        return [_embedded(model, item) for item in items]

    async def arun(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Embed side by side."""
        model = self.model()
        return await asyncio.gather(*(_aembedded(model, item) for item in items), return_exceptions=True)


def _embedded(model: BaseEmbedding, query: QueryBundle) -> Any:
    try:
        image = _image_for(model, query)
        if image is not None and isinstance(model, MultiModalEmbedding):
            return model.get_image_embedding(image)
        return model.get_agg_embedding_from_queries(query.embedding_strs)
    except Exception as error:
        return error


async def _aembedded(model: BaseEmbedding, query: QueryBundle) -> Any:
    image = _image_for(model, query)
    if image is not None and isinstance(model, MultiModalEmbedding):
        return await model.aget_image_embedding(image)
    return await model.aget_agg_embedding_from_queries(query.embedding_strs)


def _image_for(model: BaseEmbedding, query: QueryBundle) -> str | None:
    """Return the image to embed, None where the text is. :raises ValueError: there is only an image, for no model."""
    if not query.image_path or query.custom_embedding_strs is not None:
        return None
    if isinstance(model, MultiModalEmbedding):
        return query.image_path
    if any(text.strip() for text in query.embedding_strs):
        return None
    raise ValueError(
        f"the query is an image, and embed_model, a {type(model).__name__}, embeds texts only: set embed_model to the "
        "MultiModalEmbedding that embedded the collection, or give the query its embedding"
    )
