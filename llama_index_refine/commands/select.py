"""The command `select`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import (
    ApiKey,
    Collection,
    EmbedBaseUrl,
    EmbedModel,
    FeedbackTopK,
    Instruction,
    LocalPath,
    OutFile,
    TextKey,
    Url,
    VectorName,
    needed_grader,
    opened_retriever,
)
from llama_index_refine.commands.progress import progress_on
from llama_index_refine.commands.rows import Rows
from llama_index_refine.commands.teacher import LLMBaseUrl, LLMKwargs, LLMModel
from llama_index_refine.display.ranking import one_line

if TYPE_CHECKING:
    from llama_index_refine.selection import Selection

COLUMNS = ("query", "id", "probability", "text", "metadata")


def select(
    query: Annotated[list[str], typer.Option(help="What to select for; may be given many times.", show_default=False)],
    collection: Collection,
    out: OutFile,
    precision: Annotated[
        float | None,
        typer.Option(help="Least share of the selected that is relevant, to be shown.", show_default=False),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(help="Least share of the relevant that is selected, to be shown.", show_default=False),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability with which what is shown holds.")] = 0.9,
    budget: Annotated[
        int | None, typer.Option(help="Most documents to grade for each query.", show_default="2 or 5 times the first")
    ] = None,
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
    feedback_top_k: FeedbackTopK = 20,
) -> None:
    """Write every document of your collection that belongs to a query, with the probability that it does."""
    console = Console(highlight=False)
    with plain_errors() as warned:
        grader = needed_grader(llm_base_url, llm_model, instruction, llm_kwargs)
        target = {"precision": precision, "recall": recall, "confidence": confidence, "budget": budget}
        rows = Rows(
            out, COLUMNS, {"collection": collection, "instruction": instruction, "first": feedback_top_k, **target}
        )
        finished = {note["query"] for note in rows.done}
        left = [text for text in dict.fromkeys(query) if text not in finished]
        with (
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
                feedback_top_k=feedback_top_k,
            ) as retriever,
            progress_on(console) as bars,
        ):
            from llama_index.core.schema import QueryBundle

            from llama_index_refine.commands.embedding import embed_query

            for text in bars.track(left, description="Selecting"):
                bundle = QueryBundle(text, embedding=embed_query(retriever.embed_model, text))
                selection = retriever.select(
                    bundle, precision=precision, recall=recall, confidence=confidence, budget=budget
                )
                rows.add(_rows(text, selection, out.suffix == ".csv"), _summary(text, selection))
        for note in rows.done:
            console.print(_said(note), soft_wrap=True, markup=False)
        tell(console, warned)


def _rows(query: str, selection: Selection, flat: bool) -> list[dict[str, Any]]:
    import json

    rows = []
    for entry in selection.nodes:
        metadata: Any = json.loads(json.dumps(entry.node.metadata, default=str))
        rows.append(
            {
                "query": query,
                "id": entry.node.node_id,
                "probability": round(float(entry.score or 0.0), 6),
                "text": entry.node.get_content(),
                "metadata": json.dumps(metadata, ensure_ascii=False) if flat else metadata,
            }
        )
    return rows


def _summary(query: str, selection: Selection) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        name: [None if one != one else round(one, 4) for one in getattr(selection, name)]
        for name in ("precision", "recall")
    }
    return {
        "query": query,
        "selected": len(selection.nodes),
        **numbers,
        "graded": selection.graded,
        "certified": selection.certified,
        "reason": selection.reason,
        "threshold": None if selection.threshold != selection.threshold else selection.threshold,
        "vector": [float(value) for value in selection.vector],
    }


def _said(note: dict[str, Any]) -> str:
    def share(interval: list[float | None]) -> str:
        low, estimate, high = (0.0 if one is None else one for one in interval)
        return f"{estimate:.2f} ({low:.2f} to {high:.2f})"

    certified = "certified" if note["certified"] else f"not certified: {note['reason']}"
    return (
        f"{one_line(note['query'])}: {note['selected']} selected, precision {share(note['precision'])}, recall "
        f"{share(note['recall'])}, {note['graded']} graded; {certified}"
    )
