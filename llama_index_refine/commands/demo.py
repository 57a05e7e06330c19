"""The command `demo`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import takes
from llama_index_refine.commands.progress import progress_on
from llama_index_refine.commands.teacher import LLMOptions, no_llm
from llama_index_refine.display.ranking import one_line

if TYPE_CHECKING:
    from llama_index_refine.demo.measure import Example, Gain
    from llama_index_refine.graders.base import BaseGrader

QUERIES_WITH_LLM = 20

INTRODUCTION = (
    "Banking77: 3,080 messages of a bank's customers. Each query names one of 77 intents; "
    "the 40 messages with that intent are relevant."
)

INSTRUCTION = (
    "The documents are messages from a bank's customers, the query names an intent. "
    "A message is relevant if its writer has exactly this intent."
)

_Path = Annotated[
    Path | None, typer.Option(help="Folder for the Qdrant collection, used again next time.", show_default="in memory")
]
_Queries = Annotated[
    int | None, typer.Option(min=1, help="How many queries.", show_default=f"all 77, or {QUERIES_WITH_LLM} with an LLM")
]


@takes(LLMOptions)
def demo(
    llm: LLMOptions,
    path: _Path = None,
    queries: _Queries = None,
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("refine-demo"),
    seed: Annotated[int, typer.Option(help="Seed for drawing the queries.")] = 1,
) -> None:
    """Run the whole loop on a sample of Banking77 and measure what it gains.

    An LLM grades if OPENAI_API_KEY is set or the options name one; the sample's human labels do otherwise.
    """
    console = Console(highlight=False)
    with plain_errors() as warned:
        grader, model = llm.grader(INSTRUCTION), llm.model()
        console.print(INTRODUCTION)
        if model is None:
            console.print(f"Teacher: the sample's human labels, as no LLM is named ({no_llm()}).")
        else:
            console.print(f"Teacher: the LLM {one_line(model)}.", markup=False)
        # The model comes with a package: nothing is fetched, nor asked for.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        limit = queries if queries is not None or grader is None else QUERIES_WITH_LLM
        try:
            gain, shown = _measure(console, grader, path, limit, seed)
        except RuntimeError as error:
            raise RuntimeError(": ".join([str(error), *warned.messages[:1]])) from error
        _show(console, gain, shown)
        from llama_index_refine.demo.picture import draw

        picture = out / "scores.png"
        draw(gain, picture)
        console.print(f"Score distributions of relevant and irrelevant documents: {picture}", soft_wrap=True)
        tell(console, warned)


def _measure(
    console: Console, grader: BaseGrader | None, path: Path | None, limit: int | None, seed: int
) -> tuple[Gain, Example]:
    """Measure, and retrieve for one query that shows it."""
    with _own_lines(console), progress_on(console) as bars:
        loading = bars.add_task("Loading", total=1)
        from llama_index_refine.commands.embedding import load_sentence_transformer
        from llama_index_refine.demo.measure import example, measure
        from llama_index_refine.demo.sample import index, load_sample, open_client
        from llama_index_refine.evaluation.teachers import LabelTeacher
        from llama_index_refine.graders.cache import CachedGrader

        dataset = load_sample()
        if grader is not None:
            _try_out(grader, dataset.queries[0].text, dataset.documents[0].text)
        client = open_client(path)
        model = load_sentence_transformer("minilm", batch_size=64)
        bars.advance(loading)
        embedding = bars.add_task("Embedding", total=len(dataset.documents))
        rows = dataset.sample(limit, seed)
        corpus, store = index(dataset, rows, model, client, lambda done: bars.advance(embedding, done))
        grading = bars.add_task("Searching, grading, refining", total=2 * len(rows))
        teacher = LabelTeacher(dataset) if grader is None else CachedGrader(grader)
        gain = measure(corpus, store, teacher, lambda: bars.advance(grading))
        shown = example(corpus, store, teacher, gain.by_gain()[len(rows) // 10])
        client.close()
    return gain, shown


@contextmanager
def _own_lines(console: Console) -> Iterator[None]:
    """End the last line of progress bars, which Rich leaves open where the output is no terminal."""
    try:
        yield
    finally:
        console.print()


def _try_out(grader: BaseGrader, query: str, document: str) -> None:
    """Find out before the long part whether the LLM answers."""
    from llama_index.core.schema import QueryBundle, TextNode

    if grader.grade(QueryBundle(query), [TextNode(text=document)])[0] is None:
        raise RuntimeError("the LLM gives no grade")


def _show(console: Console, gain: Gain, shown: Example) -> None:
    from llama_index_refine.demo.report import bill, example_tables, gain_table, summary

    console.print(gain_table(gain))
    console.print(summary(gain))
    if cost := bill(gain, shown):
        console.print(cost)
    count = len(gain.differences())
    console.print(f"\nQuery number {count // 10 + 1} of {count} by gain: [bold]{shown.refinement.query_str}")
    for table in example_tables(shown):
        console.print()
        console.print(table)
    console.print("\nwas: rank in the first search; grade: the teacher's, - if it was not asked.")
