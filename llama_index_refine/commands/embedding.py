"""The embedding model that the options name."""

from __future__ import annotations

import os
from contextlib import suppress

from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_refine.commands.teacher import server_url
from llama_index_refine.evaluation.embeddings import SentenceTransformerEmbedding

_SERVED = "openai:"


def make_embed_model(name: str, base_url: str | None = None) -> BaseEmbedding:
    """Make an embedding model.

    :param name: `minilm`, a SentenceTransformer's name or folder, or `openai:` and the name of a model on a server.
    :param base_url: the server's address, None for that of OPENAI_BASE_URL or OpenAI's.
    :return: the model.
    :raises ValueError: a server for a model that runs here, or OpenAI without a key.
    :raises ImportError: the library it needs is missing.
    :raises OSError: the model is not there and cannot be fetched.
    """
    if not name.startswith(_SERVED):
        if base_url is not None:
            raise ValueError(f"--embed-base-url needs --embed-model {_SERVED}NAME, a model on that server")
        return load_sentence_transformer(name)
    key, base_url = os.environ.get("OPENAI_API_KEY"), server_url(base_url)
    if base_url is None and not key:
        raise ValueError(f"{name} needs OPENAI_API_KEY, or --embed-base-url")
    try:
        from llama_index.embeddings.openai import OpenAIEmbedding
    except ImportError as error:
        raise ImportError(f"{name} needs: pip install llama-index-embeddings-openai") from error
    model = name.removeprefix(_SERVED)
    return OpenAIEmbedding(model_name=model, api_base=base_url, api_key=key or "none", max_retries=2, timeout=30.0)


def load_sentence_transformer(name: str, batch_size: int = 10) -> SentenceTransformerEmbedding:
    """Load a SentenceTransformer without its own progress bars.

    :param name: `minilm`, or a SentenceTransformer's name or folder.
    :param batch_size: texts to embed at a time.
    :return: the model.
    :raises ImportError: sentence-transformers, or the packaged model, is missing.
    :raises OSError: the model is not there and cannot be fetched.
    """
    with suppress(ImportError):
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return SentenceTransformerEmbedding(name, embed_batch_size=batch_size)


def embed_query(model: BaseEmbedding, query: str) -> list[float]:
    """Embed a query.

    :param model: the model.
    :param query: its text.
    :return: (d,) the vector.
    :raises RuntimeError: the model's server failed; the message leaves out its own words, which may repeat a key.
    """
    try:
        return model.get_query_embedding(query)
    except Exception as error:
        raise RuntimeError(f"the query could not be embedded: {type(error).__name__}") from error
