"""A LlamaIndex vector store on a collection that LlamaIndex did not write."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import BaseNode, ImageNode, TextNode
from llama_index.core.vector_stores.types import VectorStoreQueryResult
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient

from llama_index_refine.images.sources import locate

SparseEncoder = Callable[[list[str]], tuple[list[list[int]], list[list[float]]]]


class PayloadVectorStore(QdrantVectorStore):
    """Reads nodes from plain payloads: one field is the text, one the image, the others are metadata. For reading only.

    :param text_field: where the text is; "a.b" for b inside a. None where there is none.
    :param image_field: where the image's URL, path or base64 is, in the same way.
    """

    text_field: str | None = Field(default="text")
    image_field: str | None = Field(default=None)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows this class."""
        return "PayloadVectorStore"

    def parse_to_query_result(self, response: list[Any]) -> VectorStoreQueryResult:
        """Make nodes of points.

        :param response: points with payload.
        :return: their nodes, whose ids are the points'.
        :raises ValueError: none of them has the text field or the image field.
        """
        nodes: list[BaseNode] = []
        scores: list[float] = []
        readable = not response
        for point in response:
            text, image, metadata = None, None, point.payload or {}
            if self.text_field is not None:
                text, metadata = split_payload(metadata, self.text_field)
                if isinstance(text, Sequence) and not isinstance(text, str):
                    text = "\n".join(map(str, text))
            if self.image_field is not None:
                value, metadata = split_payload(metadata, self.image_field)
                value = value[0] if isinstance(value, list) and value else value
                image = value.strip() or None if isinstance(value, str) else None
            readable = readable or text is not None or image is not None
            kept = {} if image is None else _image(image)
            make = TextNode if image is None else ImageNode
            nodes.append(make(id_=str(point.id), text="" if text is None else str(text), metadata=metadata, **kept))
            scores.append(float(getattr(point, "score", 1.0)))
        if not readable:
            keys = {"text_key": self.text_field, "image_key": self.image_field}
            asked = {key: name for key, name in keys.items() if name is not None}
            fields = sorted({key for point in response for key in point.payload or {}})
            raise ValueError(
                f"no point found in collection {self.collection_name!r} has the field "
                f"{' or '.join(map(repr, asked.values()))}; they have {', '.join(map(repr, fields)) or 'none'}: "
                f"set {' or '.join(asked)}"
            )
        return VectorStoreQueryResult(nodes=nodes, similarities=scores, ids=[node.node_id for node in nodes])

    def add(self, nodes: list[BaseNode], *args: Any, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Refuse: LlamaIndex's payloads would be mixed with the collection's own.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError(
            f"collection {self.collection_name!r} is read only here: add to it with the client that fills it"
        )

    async def async_add(self, nodes: list[BaseNode], *args: Any, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Refuse. See `add`."""
        return self.add(nodes)


def open_store(
    client: Any,
    collection_name: str,
    text_key: str | None = None,
    vector_name: str | None = None,
    aclient: AsyncQdrantClient | None = None,
    sparse_vector_name: str | None = None,
    sparse_query_fn: SparseEncoder | None = None,
    image_key: str | None = None,
) -> QdrantVectorStore:
    """Open a collection as a vector store.

    :param client: a blocking or asynchronous client, or an `EdgeClient`.
    :param collection_name: the collection.
    :param text_key: the payload field that is the text; None for a collection that LlamaIndex wrote, and, beside
        image_key, for one without texts.
    :param vector_name: the vector to search; None for the only one.
    :param aclient: an asynchronous client beside a blocking one.
    :param sparse_vector_name: the sparse vector of hybrid mode; None for the only one.
    :param sparse_query_fn: turns texts into the indices and values of sparse vectors, for hybrid mode.
    :param image_key: the payload field that is the image's URL, path or base64; None for none.
    :return: the store.
    :raises ValueError: vector_name is given, and the collection's only vector has none.
    """
    if isinstance(client, AsyncQdrantClient):
        client, aclient = None, client
    shared: dict[str, Any] = {
        "collection_name": collection_name,
        "client": client,
        "aclient": aclient,
        "dense_vector_name": vector_name,
        "sparse_vector_name": sparse_vector_name,
        # Documents are not written, but without a function for them LlamaIndex would load a model.
        "sparse_doc_fn": sparse_query_fn,
        "sparse_query_fn": sparse_query_fn,
        "enable_hybrid": sparse_query_fn is not None,
    }
    if text_key is None and image_key is None:
        store = QdrantVectorStore(**shared)
    else:
        store = plain = PayloadVectorStore(**shared)
        plain.text_field, plain.image_field = text_key, image_key
    # LlamaIndex drops the name where a collection's vector has none.
    if vector_name and store.dense_vector_name != vector_name:
        raise ValueError(
            f"collection {collection_name!r} has one vector, which has no name: there is no {vector_name!r}; leave out "
            "vector_name"
        )
    return store


def split_payload(payload: dict[str, Any], field: str) -> tuple[Any, dict[str, Any]]:
    """Take a field out of a payload.

    :param payload: a point's payload.
    :param field: the field; "a.b" for b inside a, unless there is a field of that very name.
    :return: its value, None where there is none, and the rest.
    """
    if field in payload:
        return payload[field], {key: deepcopy(value) for key, value in payload.items() if key != field}
    rest = deepcopy(payload)
    *parents, last = field.split(".")
    inner: Any = rest
    for key in parents:
        inner = inner.get(key) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or last not in inner:
        return None, rest
    return inner.pop(last), rest


def _image(image: str) -> dict[str, str]:
    """Return the fields of an `ImageNode` that say where its image is, or hold it."""
    source = locate(image)
    if source.url is not None:
        return {"image_url": source.url}
    if source.path is not None:
        return {"image_path": str(source.path)}
    # What cannot be decoded is left as it is, for whoever looks at the node to say so.
    return {"image": image if source.data is None else b64encode(source.data).decode()}
