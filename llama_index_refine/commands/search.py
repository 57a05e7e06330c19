"""The command `search`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import CollectionOptions, takes
from llama_index_refine.commands.teacher import LLMOptions
from llama_index_refine.display.ranking import Place, ranking_table

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from llama_index_refine.refinement import Refinement

COMPARED = 100
"""How far down the first search a document's rank before is known."""


@takes(CollectionOptions, LLMOptions)
def search(
    collection: CollectionOptions,
    llm: LLMOptions,
    query: Annotated[str, typer.Option(help="What to search for.", show_default=False)],
    top_k: Annotated[int, typer.Option(min=1, help="Documents to show.")] = 10,
) -> None:
    """Search your own collection with one query, before and after an LLM's feedback."""
    console = Console(highlight=False)
    with plain_errors() as warned:
        grader = llm.needed_grader(collection.instruction)
        depth = max(top_k, COMPARED)
        with console.status("Searching"), collection.opened(grader, similarity_top_k=depth) as (retriever, _):
            from llama_index.core.schema import QueryBundle

            from llama_index_refine.commands.embedding import embed_query

            refinement = retriever.refine(QueryBundle(query, embedding=embed_query(retriever.embed_model, query)))
        if refinement.reason is not None:
            raise RuntimeError(refinement.reason)
        _show(console, refinement, top_k)
        tell(console, warned)


def _show(console: Console, refinement: Refinement, top_k: int) -> None:
    grades, ranks = refinement.grade_of, refinement.rank_before

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
