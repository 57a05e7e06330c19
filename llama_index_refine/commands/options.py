"""Options of all commands that search the user's own collection, and the retriever that they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_index_refine.commands.teacher import make_grader, model_name, no_llm

if TYPE_CHECKING:
    from llama_index_refine.retriever import RefinedRetriever

Collection = Annotated[str, typer.Option(help="The collection.", show_default=False)]
Url = Annotated[str, typer.Option(help="Address of the Qdrant server; without a port or a path, port 6333 is asked.")]
ApiKey = Annotated[
    str | None,
    typer.Option(help="Qdrant's key; better in the variable.", envvar="QDRANT_API_KEY", show_envvar=True),
]
LocalPath = Annotated[
    Path | None, typer.Option("--path", help="Folder of a local Qdrant, instead of a server.", show_default=False)
]
TextKey = Annotated[
    str | None, typer.Option(help="Payload field with the text.", show_default="as LlamaIndex writes it")
]
VectorName = Annotated[str | None, typer.Option(help="Name of the vector to search.", show_default="the only one")]
EmbedModel = Annotated[
    str,
    typer.Option(
        help="What embedded the collection: minilm, a SentenceTransformer's name or folder, or "
        "openai:NAME for a model on an OpenAI-compatible server."
    ),
]
EmbedBaseUrl = Annotated[str | None, typer.Option(help="That server, up to and with /v1.", show_default="OpenAI")]
Instruction = Annotated[
    str | None, typer.Option(help="What the search is for, in a sentence for the LLM.", show_default=False)
]
OutFile = Annotated[
    Path,
    typer.Option(
        help="File for the rows, .jsonl or .csv. What is in it already is not done again.", show_default=False
    ),
]
FeedbackTopK = Annotated[int, typer.Option(min=2, help="Documents by whose grades a query is refined.")]


def needed_grader(base_url: str | None, model: str | None, instruction: str | None, llm_kwargs: str | None) -> Any:
    """Make the teacher that the options name.

    :return: the teacher.
    :raises ValueError: they name none.
    """
    if model_name(base_url, model) is None:
        raise ValueError(f"grading needs an LLM: {no_llm()}")
    return make_grader(base_url, model, instruction, llm_kwargs)


@contextmanager
def opened_retriever(
    collection: str,
    url: str,
    api_key: str | None,
    path: Path | None,
    embed_model: str,
    embed_base_url: str | None,
    **kwargs: Any,
) -> Iterator[RefinedRetriever]:
    """Open the collection that the options name.

    :param kwargs: arguments of `RefinedRetriever.from_collection`.
    :return: a retriever that raises what goes wrong.
    :raises ValueError: there is no such collection, or it is not reached with these options.
    :raises ConnectionError: no server answers.
    """
    from llama_index_refine.commands.connection import check_collection, connect, plain_qdrant_errors

    with plain_qdrant_errors(url), closing(connect(url, api_key, path)) as client:
        check_collection(client, collection)
        # Torch takes seconds to import, which a mistyped name need not wait for.
        from llama_index_refine.commands.embedding import make_embed_model
        from llama_index_refine.retriever import RefinedRetriever

        model = make_embed_model(embed_model, embed_base_url)
        yield RefinedRetriever.from_collection(client, collection, embed_model=model, on_error="raise", **kwargs)
