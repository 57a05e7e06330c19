"""What a retriever takes over from a `VectorStoreIndex`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.multi_modal.base import MultiModalVectorStoreIndex
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.schema import BaseNode, NodeWithScore, ObjectType
from llama_index.core.storage.docstore import BaseDocumentStore
from llama_index.vector_stores.qdrant import QdrantVectorStore

from llama_index_refine.refinement import Refinement
from llama_index_refine.scheduling import at_once, each, perform, side_by_side

logger = logging.getLogger(__name__)

Modality = Literal["text", "image"]


def read_index(index: VectorStoreIndex, modality: Modality | None = None) -> dict[str, Any]:
    """Return the arguments of a retriever that searches what the index's own retriever would.

    :param index: an index over a `QdrantVectorStore`.
    :param modality: which half of a `MultiModalVectorStoreIndex` to search; None for other indexes.
    :return: vector_store, embed_model, node_ids, docstore, callback_manager and object_map.
    :raises ValueError: another kind of index, or over another vector store; a modality that is missing, or not there.
    """
    if not isinstance(index, VectorStoreIndex):
        raise ValueError(f"index must be a VectorStoreIndex over a QdrantVectorStore, got {type(index).__name__}")
    store, embed_model = _half(index, modality)
    if not isinstance(store, QdrantVectorStore):
        raise ValueError(
            f"index keeps its vectors in a {type(store).__name__}, and refining needs Qdrant: build the index with "
            f"storage_context=StorageContext.from_defaults({_ARGUMENT[modality]}=QdrantVectorStore(...))"
        )
    return {
        "vector_store": store,
        "embed_model": embed_model,
        # Like `index.as_retriever`: where the index has nodes in its docstore, it searches those only.
        "node_ids": list(index.index_struct.nodes_dict.values()) or None,
        "docstore": index.docstore,
        "callback_manager": index._callback_manager,
        "object_map": index._object_map,
    }


_ARGUMENT = {None: "vector_store", "text": "vector_store", "image": "image_store"}


def _half(index: VectorStoreIndex, modality: Modality | None) -> tuple[Any, BaseEmbedding]:
    """Return the vector store of one modality, and what embeds queries for it."""
    if modality not in _ARGUMENT:
        raise ValueError(f"modality must be 'text', 'image' or None, got {modality!r}")
    if not isinstance(index, MultiModalVectorStoreIndex):
        if modality == "image":
            raise ValueError(
                f"modality='image' needs a MultiModalVectorStoreIndex; a {type(index).__name__} has one vector store "
                "for all its nodes: leave modality out"
            )
        return index.vector_store, index._embed_model
    if modality is None:
        raise ValueError(
            "a MultiModalVectorStoreIndex keeps texts and images in two vector stores: choose with modality='text' or "
            "modality='image'"
        )
    if modality == "text" or index._is_image_to_text:
        # Where images are searched by their texts, those are embedded by the model for texts.
        return index.vector_store if modality == "text" else index.image_vector_store, index._embed_model
    return index.image_vector_store, index.image_embed_model


@dataclass(frozen=True, eq=False)
class Docstore:
    """Fetches nodes that a docstore keeps whole: those that are not text. An item is a list of node ids.

    :param docstore: the index's docstore.
    """

    docstore: BaseDocumentStore

    def run(self, items: Sequence[list[str]]) -> Sequence[Any]:
        """Return the nodes that are there, or the exception, for each item."""

        async def fetched(ids: list[str]) -> Any:
            return self.docstore.get_nodes(ids, raise_error=False)

        return at_once(each(items, fetched))

    async def arun(self, items: Sequence[list[str]]) -> Sequence[Any]:
        """Return the same without blocking the event loop."""
        return await side_by_side(items, partial(self.docstore.aget_nodes, raise_error=False), self.run)

    async def complete(self, refinement: Refinement, on_error: Literal["fallback", "raise"]) -> Refinement:
        """Put the docstore's nodes in the place of the collection's, as `VectorIndexRetriever` does.

        :param refinement: what was found in the collection.
        :param on_error: whether a docstore that fails raises.
        :return: the same with whole nodes; as it is where the docstore fails.
        """
        lists = (refinement.nodes, refinement.nodes_before, refinement.graded_nodes)
        wanted = dict.fromkeys(entry.node_id for entries in lists for entry in entries if not _is_text(entry.node))
        if not wanted:
            return refinement
        try:
            fetched: list[BaseNode] = await perform("docstore", self, list(wanted))
        except Exception as error:
            if on_error == "raise":
                raise
            # Its text may show the docstore's address, with what is in it.
            logger.warning("Returning nodes as the collection has them: the docstore failed (%s)", type(error).__name__)
            return refinement
        whole = {node.node_id: node for node in fetched}
        return replace(
            refinement,
            nodes=_exchanged(refinement.nodes, whole),
            nodes_before=_exchanged(refinement.nodes_before, whole),
            graded_nodes=_exchanged(refinement.graded_nodes, whole),
        )


def _is_text(node: BaseNode) -> bool:
    return node.as_related_node_info().node_type == ObjectType.TEXT


def _exchanged(entries: Iterable[NodeWithScore], whole: dict[str, BaseNode]) -> list[NodeWithScore]:
    return [NodeWithScore(node=whole.get(entry.node_id, entry.node), score=entry.score) for entry in entries]
