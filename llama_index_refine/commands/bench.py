"""The commands `bench DATA...` and `bench compare RUN RUN`; `app` holds both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import EmbedBaseUrl, takes
from llama_index_refine.commands.teacher import DEFAULT_MODEL, LLMOptions, server_url
from llama_index_refine.evaluation.results import BASELINE, REFINED, Run

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import LLM

_OPENAI = "https://api.openai.com/v1"

_Folder = Annotated[Path, typer.Option(help="Folder for the results. A stopped run goes on from there.")]
_Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...",
        help="scifact, nfcorpus, realscholarquery, banking77, clinc150, argkp21, arguana, followir, "
        "or folders with corpus.jsonl, queries.jsonl and qrels.",
        show_default=False,
    ),
]
_EmbedModels = Annotated[
    list[str],
    typer.Option(
        "--embed-model",
        help="minilm, a SentenceTransformer's name or folder, openai:NAME for a model on an OpenAI-compatible server, "
        "or NAME for DATA/NAME.npz. May be repeated.",
    ),
]
_Teachers = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        help="gold (human labels), noisy, weak, random or auc:0.85 (labels with noise of that area under ROC), good, "
        "strict, lenient, coin or naysayer (a bare yes or no, with errors more in one direction), "
        "recorded:FOLDER/MODEL (grades kept in FOLDER/MODEL--DATA.tsv.gz), cross-encoder or cross-encoder:MODEL, llm. "
        "May be repeated.",
    ),
]
_Peers = Annotated[
    str,
    typer.Option(
        help="Peers to measure as well: names with commas between them, all, or none. hyde and llm rerank need "
        "--llm-model, because they ask the LLM for more than grades."
    ),
]
_Depths = Annotated[list[int], typer.Option("--feedback-top-k", help="Documents graded per query. May be repeated.")]
_RerankTimes = Annotated[
    list[int],
    typer.Option("--rerank-times", help="Also rerank this many times as many documents. May be repeated."),
]
_MaxQueries = Annotated[int | None, typer.Option(help="Queries to draw from each data set. Without it, all.")]
_Cache = Annotated[Path | None, typer.Option(help="Folder for embeddings and grades.", show_default="user's cache")]


class _RunByDefault(TyperGroup):
    """A group whose first argument may be left out: `bench DATA` is `bench run DATA`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Measure refinement beside its peers: bench DATA... --out DIR, or bench compare RUN RUN.",
)


@app.command("run")
@takes(LLMOptions)
def bench(
    llm: LLMOptions,
    data: _Data,
    out: _Folder = Path("bench"),
    embed_model: _EmbedModels = ["minilm"],  # noqa: B006
    teacher: _Teachers = ["gold"],  # noqa: B006
    peers: _Peers = "all",
    feedback_top_k: _Depths = [20],  # noqa: B006
    rerank_times: _RerankTimes = [],  # noqa: B006
    max_queries: _MaxQueries = None,
    seed: Annotated[int, typer.Option(help="Seed for drawing the queries.")] = 1,
    embed_base_url: EmbedBaseUrl = None,
    cache: _Cache = None,
    plots: Annotated[bool, typer.Option(help="Draw the pictures.")] = True,
) -> None:
    """Measure refinement beside its peers, on data sets by name or on your own data."""
    console = Console()
    with plain_errors() as collected:
        if "llm" in teacher and not llm.given:
            raise ValueError("--teacher llm needs --llm-model, the model to ask")
        run = _measure(
            console,
            out,
            data=data,
            embed_models=[_embedding(name, embed_base_url, embed_model) for name in embed_model],
            teachers=teacher,
            peers=_named(peers),
            feedback_top_k=feedback_top_k,
            rerank_times=rerank_times,
            max_queries=max_queries,
            seed=seed,
            llm=make_llm(llm),
            cache=cache,
        )
        written = _write(run, out, plots)
    tell(console, collected)
    console.print(_summary(run))
    console.print(f"Written: {', '.join(str(path) for path in written)}", highlight=False, soft_wrap=True)


@app.command("compare")
def compare(
    before: Annotated[Path, typer.Argument(help="Folder of the first run.")],
    after: Annotated[Path, typer.Argument(help="Folder of the second run.")],
    out: Annotated[Path | None, typer.Option(help="Write the table to this Markdown file.")] = None,
) -> None:
    """Compare two runs, query by query, with intervals."""
    from llama_index_refine.evaluation import report

    with plain_errors():
        table = report.compare(Run.load(before), Run.load(after))
        if out is not None:
            out.write_text(table, encoding="utf-8")
    typer.echo(table)


def make_llm(options: LLMOptions) -> LLM | None:
    """Make the LLM that the options name, with the key in OPENAI_API_KEY; None where none is named.

    :param options: the options. A key alone names none, as peers would ask it without being told to.
    :raises ImportError: the client is missing.
    :raises ValueError: a server without a model, a model without server and key, or arguments that are no JSON object.
    """
    if not options.given:
        return None
    model, kwargs = options.model() or DEFAULT_MODEL, options.kwargs()
    try:
        from llama_index.llms.openai_like import OpenAILike
    except ImportError as error:
        raise ImportError('an LLM needs: pip install "llama-index-refine[openai]"') from error
    return OpenAILike(
        model=model,
        api_base=server_url(options.llm_base_url) or _OPENAI,
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        is_chat_model=True,
        temperature=0.0,
        additional_kwargs=kwargs,
    )


def _embedding(name: str, base_url: str | None, names: Sequence[str]) -> str | BaseEmbedding:
    """Return a model on a server; others are known by their names to the benchmark."""
    from llama_index_refine.commands.embedding import make_embed_model

    served = any(one.startswith("openai:") for one in names)
    return make_embed_model(name, base_url) if name.startswith("openai:") or (base_url and not served) else name


def _named(peers: str) -> list[str] | None:
    if peers in ("all", "none"):
        return None if peers == "all" else []
    return [name.strip() for name in peers.split(",")]


def _measure(console: Console, out: Path, data: list[str], **settings: Any) -> Run:
    from llama_index_refine.evaluation.benchmark import Benchmark
    from llama_index_refine.evaluation.loading import expand

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        benchmark = Benchmark(data=expand(data), **settings)
        if calls := benchmark.calls():
            most = ", ".join(f"{count:,} by {name}" for name, count in calls.items())
            console.print(f"At most {most} LLM calls. Answers in the cache are not asked for again.")
        return benchmark.run(out, progress)


def _write(run: Run, out: Path, plots: bool) -> list[Path]:
    from llama_index_refine.evaluation import report

    table = out / "table.md"
    table.write_text(report.markdown(run), encoding="utf-8")
    drawn: list[Path] = []
    if plots:
        from llama_index_refine.evaluation.plots import draw

        drawn = draw(run, out)
    return [out / "run.json", table, *drawn]


def _summary(run: Run) -> Table:
    """MAP of every cell: before, the best peer, ours."""
    table = Table("data", "teacher", "graded", "no feedback", "best peer", "", "refined", title="MAP")
    for cell in run.cells:
        peers = {name: found.mean("MAP") for name, found in cell.measured.items() if name not in (BASELINE, REFINED)}
        best = max(peers, key=lambda name: peers[name], default="")
        shown = [f"{cell.measured[BASELINE].mean('MAP'):.3f}", best, f"{peers[best]:.3f}" if best else ""]
        ours = f"{cell.measured[REFINED].mean('MAP'):.3f}"
        table.add_row(cell.data, cell.teacher, str(cell.feedback_top_k), *shown, ours)
    return table
