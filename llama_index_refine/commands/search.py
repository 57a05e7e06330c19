"""The command `search`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.teacher import LLMBaseUrl, LLMKwargs, LLMModel, make_grader, model_name, no_llm
from llama_index_refine.display.ranking import Place, ranking_table

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from llama_index_refine.refinement import Refinement

COMPARED = 100
"""How far down the first search a document's rank before is known."""

_Url = Annotated[str, typer.Option(help="Address of the Qdrant server; without a port or a path, port 6333 is asked.")]
_ApiKey = Annotated[
    str | None,
    typer.Option(help="Qdrant's key; better in the variable.", envvar="QDRANT_API_KEY", show_envvar=True),
]
_Path = Annotated[Path | None, typer.Option(help="Folder of a local Qdrant, instead of a server.", show_default=False)]
_TextKey = Annotated[
    str | None, typer.Option(help="Payload field with the text.", show_default="as LlamaIndex writes it")
]
_VectorName = Annotated[str | None, typer.Option(help="Name of the vector to search.", show_default="the only one")]
_EmbedModel = Annotated[
    str,
    typer.Option(
        help="What embedded the collection: minilm, a SentenceTransformer's name or folder, or "
        "openai:NAME for a model on an OpenAI-compatible server."
    ),
]
_EmbedBaseUrl = Annotated[str | None, typer.Option(help="That server, up to and with /v1.", show_default="OpenAI")]
_Instruction = Annotated[
    str | None, typer.Option(help="What the search is for, in a sentence for the LLM.", show_default=False)
]


def search(
    query: Annotated[str, typer.Option(help="What to search for.", show_default=False)],
    collection: Annotated[str, typer.Option(help="The collection.", show_default=False)],
    url: _Url = "http://localhost:6333",
    api_key: _ApiKey = None,
    path: _Path = None,
    text_key: _TextKey = None,
    vector_name: _VectorName = None,
    embed_model: _EmbedModel = "minilm",
    embed_base_url: _EmbedBaseUrl = None,
    llm_base_url: LLMBaseUrl = None,
    llm_model: LLMModel = None,
    llm_kwargs: LLMKwargs = None,
    instruction: _Instruction = None,
    top_k: Annotated[int, typer.Option(min=1, help="Documents to show.")] = 10,
    feedback_top_k: Annotated[int, typer.Option(min=2, help="Documents that the LLM grades.")] = 20,
) -> None:
    """Search your own collection with one query, before and after an LLM's feedback."""
    console = Console(highlight=False)
    with plain_errors() as warned:
        if model_name(llm_base_url, llm_model) is None:
            raise ValueError(f"grading needs an LLM: {no_llm()}")
        grader = make_grader(llm_base_url, llm_model, instruction, llm_kwargs)
        from llama_index_refine.commands.connection import check_collection, connect, plain_qdrant_errors

        with console.status("Searching"), plain_qdrant_errors(url), closing(connect(url, api_key, path)) as client:
            check_collection(client, collection)
            # Torch takes seconds to import, which a mistyped name need not wait for.
            from llama_index.core.schema import QueryBundle

            from llama_index_refine.commands.embedding import embed_query, make_embed_model
            from llama_index_refine.retriever import RefinedRetriever

            embedding = embed_query(make_embed_model(embed_model, embed_base_url), query)
            retriever = RefinedRetriever.from_collection(
                client,
                collection,
                text_key=text_key,
                vector_name=vector_name,
                grader=grader,
                similarity_top_k=max(top_k, COMPARED),
                feedback_top_k=feedback_top_k,
                on_error="raise",
            )
            refinement = retriever.refine(QueryBundle(query, embedding=embedding))
        if refinement.reason is not None:
            raise RuntimeError(refinement.reason)
        _show(console, refinement, top_k)
        tell(console, warned)


def _show(console: Console, refinement: Refinement, top_k: int) -> None:
    grades = refinement.grade_of
    ranks = {entry.node.node_id: rank for rank, entry in enumerate(refinement.nodes_before, 1)}

    def places(nodes: Sequence[NodeWithScore], compared: bool) -> list[Place]:
        return [
            Place(
                text=entry.node.get_content(),
                grade=grades.get(entry.node.node_id),
                was=str(ranks.get(entry.node.node_id, f">{len(ranks)}")) if compared else "",
            )
            for entry in nodes[:top_k]
        ]

    for title, nodes, compared in (
        ("First search", refinement.nodes_before, False),
        ("Refined", refinement.nodes, True),
    ):
        console.print(ranking_table(title, places(nodes, compared)))
        console.print()
    graded = len(refinement.graded_nodes)
    seconds = sum(refinement.timings.values())
    console.print(f"{graded} documents graded in {refinement.llm_calls} LLM calls; {seconds:.1f} s in all.")
