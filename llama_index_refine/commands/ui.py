"""The command `ui`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from llama_index_refine.commands.errors import plain_errors
from llama_index_refine.commands.teacher import LLMBaseUrl, LLMKwargs, LLMModel, make_grader

if TYPE_CHECKING:
    from llama_index_refine.graders.base import BaseGrader
    from llama_index_refine.retriever import RefinedRetriever

    Opened = tuple[RefinedRetriever, Mapping[str, BaseGrader], Sequence[str]]

SAMPLE_QUERIES = 12


def ui(
    collection: Annotated[str | None, typer.Option(help="Your collection.", show_default="the demo's sample")] = None,
    url: Annotated[
        str, typer.Option(help="Address of the Qdrant server; without a port or a path, port 6333 is asked.")
    ] = "http://localhost:6333",
    api_key: Annotated[
        str | None,
        typer.Option(help="Qdrant's key; better in the variable.", envvar="QDRANT_API_KEY", show_envvar=True),
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="Folder of a local Qdrant, instead of a server.", show_default=False)
    ] = None,
    text_key: Annotated[
        str | None, typer.Option(help="Payload field with the text.", show_default="as LlamaIndex writes it")
    ] = None,
    vector_name: Annotated[
        str | None, typer.Option(help="Name of the vector to search.", show_default="the only one")
    ] = None,
    embed_model: Annotated[
        str, typer.Option(help="What embedded the collection: minilm, or a SentenceTransformer's name or folder.")
    ] = "minilm",
    llm_base_url: LLMBaseUrl = None,
    llm_model: LLMModel = None,
    llm_kwargs: LLMKwargs = None,
    instruction: Annotated[
        str | None, typer.Option(help="What the search is for, in a sentence for the LLM.", show_default=False)
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Whoever reaches the page can read the collection.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="free one from 7860 on")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Open a page to watch queries being refined: search, reranked and refined side by side, with thumbs."""
    console = Console(highlight=False)
    with plain_errors():
        from llama_index_refine.ui import launch, require_gradio

        require_gradio()
        llm = make_grader(llm_base_url, llm_model, instruction, llm_kwargs)
        teachers = {} if llm is None else {"the LLM": llm}
        queries: Sequence[str] = ()
        if collection is None:
            with Progress(console=console) as bars:
                embedding = bars.add_task("Embedding the sample", total=None)
                retriever, labels, queries = open_sample(
                    path, lambda done, total: bars.update(embedding, advance=done, total=total)
                )
            teachers |= labels
        else:
            with console.status("Opening the collection"):
                retriever = open_collection(collection, url, api_key, path, text_key, vector_name, embed_model)
        page = launch(retriever, teachers, queries, host=host, port=port, open_browser=browser, block=False)
        console.print(f"Open {page.local_url} in your browser; Ctrl-C ends.")
        page.block_thread()


def open_collection(
    collection: str,
    url: str,
    api_key: str | None,
    path: Path | None,
    text_key: str | None,
    vector_name: str | None,
    embed_model: str,
) -> RefinedRetriever:
    """Open the user's collection. See the command's options.

    :return: a retriever on it.
    :raises ValueError: there is no such collection.
    :raises ConnectionError: the server cannot be reached.
    """
    from llama_index_refine.commands.connection import check_collection, connect, plain_qdrant_errors
    from llama_index_refine.evaluation.embeddings import SentenceTransformerEmbedding
    from llama_index_refine.retriever import RefinedRetriever

    with plain_qdrant_errors(url):
        client = connect(url, api_key, path)
        check_collection(client, collection)
    model = SentenceTransformerEmbedding(embed_model)
    return RefinedRetriever.from_collection(client, collection, text_key, vector_name, embed_model=model)


def open_sample(path: Path | None = None, advance: Callable[[int, int], None] = lambda done, total: None) -> Opened:
    """Open the demo's sample.

    :param path: a folder to keep its collection in, None for memory.
    :param advance: called with the number of documents that have become ready, and that of all.
    :return: a retriever on it, its labels as a teacher by the name to show, and some of its queries.
    """
    # The model comes with a package: nothing is fetched, nor asked for.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from llama_index_refine.demo.sample import index, load_sample, open_client
    from llama_index_refine.evaluation.embeddings import SentenceTransformerEmbedding
    from llama_index_refine.retriever import RefinedRetriever
    from llama_index_refine.ui.labels import SampleLabels

    dataset = load_sample()
    model = SentenceTransformerEmbedding(embed_batch_size=64)
    _, store = index(dataset, [0], model, open_client(path), lambda done: advance(done, len(dataset.documents)))
    queries = sorted((query.text for query in dataset.queries), key=len)[:SAMPLE_QUERIES]
    return RefinedRetriever(store, model), {"the sample's labels": SampleLabels(dataset)}, queries
