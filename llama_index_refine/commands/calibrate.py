"""The command `calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import CollectionOptions, takes
from llama_index_refine.commands.progress import progress_on
from llama_index_refine.commands.rows import Rows, digest_of
from llama_index_refine.commands.teacher import LLMOptions
from llama_index_refine.display.ranking import one_line

if TYPE_CHECKING:
    from llama_index_refine.calibration import Calibration, Label
    from llama_index_refine.retriever import RefinedRetriever

COLUMNS = ("query", "id", "relevant", "weight", "grade")
ASKED = ("query", "id", "text", "relevant", "weight")


@takes(CollectionOptions, LLMOptions)
def calibrate(
    collection: CollectionOptions,
    llm: LLMOptions,
    labels: Annotated[
        Path | None,
        typer.Option(help="What people say: .jsonl or .csv with query, id and relevant, 1 or 0.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for the grades, .jsonl or .csv. What is in it already is not asked again.",
            show_default="that of --labels with .grades.jsonl",
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="File for the calibration.", show_default=False)] = None,
    propose: Annotated[int, typer.Option(help="How many nodes to choose for people to judge next.", min=0)] = 0,
    to: Annotated[Path | None, typer.Option(help="File for those, .jsonl or .csv.", show_default=False)] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help="What to propose nodes of; may be given many times.", show_default="the labels' queries"),
    ] = None,
) -> None:
    """Measure your LLM by people's labels, or choose which nodes people should judge next."""
    console = Console(highlight=False)
    with plain_errors() as warned:
        if labels is None and not (propose and query):
            raise ValueError("--labels names no file: give one, or --propose and --query to choose what to label first")
        if bool(propose) != (to is not None):
            raise ValueError("--propose says how many nodes to choose, and --to where to write them: give both")
        if labels is not None and not labels.is_file():
            raise ValueError(f"--labels {labels} is no file")
        grader = llm.needed_grader(collection.instruction)
        run = collection.run(llm, grader)
        with collection.opened(grader) as (retriever, _):
            calibration = None
            if labels is not None:
                # What is graded stays so when the file of labels grows.
                rows = Rows(out or labels.with_suffix(".grades.jsonl"), COLUMNS, run)
                calibration = _measured(console, retriever, labels, rows)
                console.print(calibration.table())
                for sentence in (calibration.verdict, *calibration.notes):
                    console.print(sentence, soft_wrap=True, markup=False)
                if save is not None:
                    calibration.save(save)
            if to is not None:
                read = None if labels is None else digest_of(labels.read_bytes())
                asked = {**run, "--labels": read, "--propose": propose, "--query": query}
                _propose(console, retriever, query, propose, calibration, Rows(to, ASKED, asked))
        tell(console, warned)


def _measured(console: Console, retriever: RefinedRetriever, path: Path, rows: Rows) -> Calibration:
    """Have the teacher grade what has no grade yet, query by query."""
    from llama_index_refine.retrieval.calibrating import Graded, by_query, calibration_of, each_once, read_file

    labels, said = each_once(list(read_file(path, "--labels")))
    known = {(one["query"], one["id"]): one["grade"] for note in rows.done for one in note}
    left = [label for label in labels if (label.query, label.node_id) not in known]
    console.print(f"{len(labels)} labels; {len(left)} grades to ask for, {len(labels) - len(left)} known")
    with progress_on(console) as bars:
        for group in bars.track([one for batch in by_query(left) for one in batch], description="Grading"):
            try:
                one = retriever.calibrate(group)
            except ValueError as error:
                said.append(f"{one_line(group[0].query)}: {error}")
                continue
            added = [_row(label, float(grade)) for label, grade in zip(one.labels, one.grades, strict=True)]
            rows.add(added, [{name: row[name] for name in ("query", "id", "grade")} for row in added])
            known |= {(row["query"], row["id"]): row["grade"] for row in added}
    grades = [known.get((label.query, label.node_id)) for label in labels]
    return calibration_of(retriever.grader.memory_fingerprint(), [Graded(labels, grades)], said)


def _row(label: Label, grade: float) -> dict[str, Any]:
    relevant = int(label.relevant)
    return {
        "query": label.query,
        "id": label.node_id,
        "relevant": relevant,
        "weight": label.weight,
        "grade": grade,
    }


def _propose(
    console: Console,
    retriever: RefinedRetriever,
    queries: list[str] | None,
    count: int,
    calibration: Calibration | None,
    rows: Rows,
) -> None:
    """Refine queries, and choose among what was graded for them."""
    from llama_index_refine.calibration import propose

    if rows.done:
        console.print(f"{rows.path} is there already; fill in relevant", soft_wrap=True, markup=False)
        return
    labelled = calibration.labels if calibration else ()
    asked = queries or list(dict.fromkeys(label.query for label in labelled))
    most = len(asked) * retriever.feedback_top_k
    console.print(f"{len(asked)} queries; at most {most} grades to ask for")
    chosen = propose(retriever.refine_batch(asked), count, calibration)
    rows.add(chosen, len(chosen))
    console.print(f"{len(chosen)} nodes to judge are in {rows.path}: fill in relevant", soft_wrap=True, markup=False)
