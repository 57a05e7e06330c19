"""The command `select`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import CollectionOptions, OutFile, takes
from llama_index_refine.commands.progress import progress_on
from llama_index_refine.commands.rows import Rows
from llama_index_refine.commands.teacher import LLMOptions
from llama_index_refine.display.ranking import one_line

if TYPE_CHECKING:
    from llama_index_refine.selection import Selection

COLUMNS = ("query", "id", "probability", "text", "metadata")


@takes(CollectionOptions, LLMOptions)
def select(
    collection: CollectionOptions,
    llm: LLMOptions,
    query: Annotated[list[str], typer.Option(help="What to select for. May be repeated.", show_default=False)],
    out: OutFile,
    precision: Annotated[
        float | None,
        typer.Option(
            help="Precision to guarantee: at least this share of the selected is relevant.", show_default=False
        ),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(help="Recall to guarantee: at least this share of the relevant is selected.", show_default=False),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability that the guarantee holds.")] = 0.9,
    budget: Annotated[
        int | None, typer.Option(help="Most documents to grade for each query.", show_default="2 or 5 times the first")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder for the selections, 1.safetensors and so on, for `match`.", show_default=False),
    ] = None,
) -> None:
    """Write every document of your collection that belongs to a query, with the probability that it does."""
    console = Console(highlight=False)
    with plain_errors() as warned:
        grader = llm.needed_grader(collection.instruction)
        target: dict[str, Any] = {"precision": precision, "recall": recall, "confidence": confidence, "budget": budget}
        run = collection.run(llm, grader) | {f"--{name}": value for name, value in target.items()}
        with collection.opened(grader) as (retriever, client), progress_on(console) as bars:
            from llama_index.core.schema import QueryBundle

            from llama_index_refine.commands.embedding import embed_query
            from llama_index_refine.evaluation.corpus import same_samples
            from llama_index_refine.refining.trust import Reliability

            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
            count = client.count(collection.collection).count
            rows = Rows(out, COLUMNS, {**run, "the number of documents": count})
            finished = {note["query"] for note in rows.done}
            files = [] if keep is None else [keep / f"{number + 1}.safetensors" for number in range(len(rows.done))]
            if gone := next((file for file in files if not file.is_file()), None):
                raise ValueError(
                    f"--keep lacks {gone}, because its query was selected without --keep: {rows.start_anew()}"
                )
            left = [text for text in dict.fromkeys(query) if text not in finished]
            for text in bars.track(left, description="Selecting"):
                bundle = QueryBundle(text, embedding=embed_query(retriever.embed_model, text))
                # The rows of a query are the same whichever were asked before it, in this call or an earlier one.
                retriever.trust = Reliability()
                with same_samples():
                    selection = retriever.select(bundle, **target)
                if selection.refinement.reason is not None:
                    raise RuntimeError(f"{one_line(text)}: {selection.refinement.reason}")
                if keep is not None:
                    selection.save(keep / f"{len(rows.done) + 1}.safetensors")
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
