"""The command `search`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import (
    ApiKey,
    Collection,
    EmbedBaseUrl,
    EmbedModel,
    Instruction,
    LocalPath,
    TextKey,
    Url,
    VectorName,
    needed_grader,
    opened_retriever,
)
from llama_index_refine.commands.teacher import LLMBaseUrl, LLMKwargs, LLMModel
from llama_index_refine.display.ranking import Place, ranking_table

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from llama_index_refine.refinement import Refinement

COMPARED = 100
"""How far down the first search a document's rank before is known."""


def search(
    query: Annotated[str, typer.Option(help="What to search for.", show_default=False)],
    collection: Collection,
    url: Url = "http://localhost:6333",
    api_key: ApiKey = None,
    path: LocalPath = None,
    text_key: TextKey = None,
    vector_name: VectorName = None,
    embed_model: EmbedModel = "minilm",
    embed_base_url: EmbedBaseUrl = None,
    llm_base_url: LLMBaseUrl = None,
    llm_model: LLMModel = None,
    llm_kwargs: LLMKwargs = None,
    instruction: Instruction = None,
    top_k: Annotated[int, typer.Option(min=1, help="Documents to show.")] = 10,
    feedback_top_k: Annotated[int, typer.Option(min=2, help="Documents that the LLM grades.")] = 20,
) -> None:
    """Search your own collection with one query, before and after an LLM's feedback."""
    console = Console(highlight=False)
    with plain_errors() as warned:
        grader = needed_grader(llm_base_url, llm_model, instruction, llm_kwargs)
        with (
            console.status("Searching"),
            opened_retriever(
                collection,
                url,
                api_key,
                path,
                embed_model,
                embed_base_url,
                text_key=text_key,
                vector_name=vector_name,
                grader=grader,
                similarity_top_k=max(top_k, COMPARED),
                feedback_top_k=feedback_top_k,
            ) as retriever,
        ):
            from llama_index.core.schema import QueryBundle

            from llama_index_refine.commands.embedding import embed_query

            refinement = retriever.refine(QueryBundle(query, embedding=embed_query(retriever.embed_model, query)))
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
