"""A served LLM as the teacher: its grades are recorded once, and every table is made from what is kept.

    python -m results.llm record data/argkp data/banking77 --model qwen2.5-coder-1.5b-q4_k_m \
        --base-url http://127.0.0.1:8080/v1
    python -m results.llm tables data/argkp data/banking77 --model qwen2.5-coder-1.5b-q4_k_m

Grades are kept in `results/llm/grades/`, a file a model and collection, and recording goes on where it stopped. A
folder may carry the name of its vectors, as in `data/argkp:e5`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy

from llama_index_refine.evaluation.corpus import Corpus
from llama_index_refine.evaluation.metrics import CUTOFF, area_under_roc, score_rankings
from llama_index_refine.graders.openai import OpenAIGrader
from llama_index_refine.refining.published import PublishedRefiner
from results.recorded import GRADES, K, Kept, RecordedGrader, graded, graded_rows, nearest, opened, retriever

SETTINGS: dict[str, dict[str, Any]] = {
    "refined": {},
    "refined, all grades": {"early_stop": False},
    # These ask for no more than the first K documents.
    "refined, one round": {"early_stop": False, "rounds": 1, "similarity_top_k": CUTOFF},
    "one round, trust 1": {"early_stop": False, "rounds": 1, "similarity_top_k": CUTOFF, "trust": 1.0},
}


def about(arguments: argparse.Namespace) -> dict[str, str]:
    """Say with what grades were recorded."""
    return {
        "server": arguments.server,
        "machine": arguments.machine or f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def record(arguments: argparse.Namespace) -> None:
    """Ask the model for whatever the tables need."""
    teacher = OpenAIGrader(
        arguments.model,
        base_url=arguments.base_url,
        timeout=3600,
        concurrency=arguments.concurrency,
        llm_kwargs={"max_tokens": 1},
    )
    for spec in arguments.data:
        corpus = opened(spec, arguments.queries)
        store = corpus.store()
        kept = Kept.load(arguments.grades, arguments.model, corpus.dataset.name)
        kept.about |= about(arguments)
        grader = RecordedGrader(kept, teacher)
        # Each with a record of its own, as the tables have them.
        refined = {name: RecordedGrader(kept, teacher) for name in arguments.settings}
        for row, query in enumerate(corpus.queries):
            order = nearest(corpus, row)
            wanted = order[: arguments.depth]
            if arguments.controls and len(order) > 2 * arguments.depth:
                # From the half that is furthest away, evenly spread.
                far = np.linspace(len(order) // 2, len(order) - 1, arguments.controls).astype(int)
                wanted += [order[place] for place in far]
            nodes = [corpus.nodes[document] for document in wanted]
            grader.grade(corpus.bundle(row), nodes)
            for name, asking in refined.items():
                retriever(corpus, store, row, asking, **SETTINGS[name]).retrieve(corpus.bundle(row))
            print(f"{spec} {row + 1}/{len(corpus.queries)} {query.id}: {len(kept.grades)} grades", flush=True)


@dataclass
class Measured:
    """One collection with one model's grades.

    :param rankings: method to query id to document ids.
    :param asked: method to how many grades it asked for in all.
    :param missing: method to how many of them are not kept.
    :param trust: by query, how far the defaults follow the teacher.
    """

    corpus: Corpus
    kept: Kept
    rows: list[int]
    rankings: dict[str, dict[str, list[str]]]
    asked: dict[str, int]
    missing: dict[str, int]
    trust: list[float]

    @cached_property
    def by_query(self) -> dict[str, dict[str, dict[str, float]]]:
        """Method to metric to query id to its value; a list of ten has no MAP."""
        return {name: score_rankings(ranked, self.corpus.dataset.qrels) for name, ranked in self.rankings.items()}

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Method to metric to its mean."""
        return {
            name: {metric: float(np.mean(list(values.values()))) for metric, values in scores.items()}
            for name, scores in self.by_query.items()
        }

    @cached_property
    def first(self) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """For each query the grades of the first documents, and whether they are relevant."""
        return [graded(self.corpus, self.kept, row) for row in self.rows]

    @property
    def area_within(self) -> float:
        """Mean area under the ROC curve within a query; NaN where no query has relevant and other documents."""
        areas = [area_under_roc(g[y], g[~y]) for g, y in self.first if 0 < y.sum() < len(y)]
        return float(np.mean(areas)) if areas else float("nan")


def measure(spec: str, folder: Path, model: str, many: int, rows: Sequence[int] | None = None) -> Measured:
    """Measure all methods by the kept grades.

    :param spec: the folder of a collection, with the name of its vectors after a colon.
    :param folder: where grades are kept.
    :param model: whose.
    :param many: how many queries at most.
    :param rows: rows of the queries; None for those whose first K documents are graded.
    """
    corpus = opened(spec, many)
    kept = Kept.load(folder, model, corpus.dataset.name)
    if rows is None:
        rows = graded_rows(corpus, kept)
    measured = Measured(corpus, kept, list(rows), {}, {}, {}, [])
    ids = [document.id for document in corpus.dataset.documents]
    for row in rows:
        query, order, grades = corpus.queries[row].id, nearest(corpus, row), graded(corpus, kept, row)[0]
        best = [order[at] for at in np.argsort(-grades, kind="stable")]
        vectors = corpus.document_vectors
        moved = PublishedRefiner().refine(corpus.query_vectors[row], vectors[order[:K]], grades).vector
        searched = np.array(order)
        published = searched[np.argsort(-(vectors[searched] @ moved), kind="stable")]
        plain = {"no feedback": order, "reranked": [*best, *order[K:]], "published": published[:CUTOFF].tolist()}
        for name, ranked in plain.items():
            measured.rankings.setdefault(name, {})[query] = [ids[at] for at in ranked[:CUTOFF]]
    store = corpus.store() if rows else None
    for name, options in SETTINGS.items():
        grader = RecordedGrader(kept)
        for row in rows:
            found = retriever(corpus, store, row, grader, **options).refine(corpus.bundle(row))
            ranked = [str(entry.node.metadata["document"]) for entry in found.nodes]
            measured.rankings.setdefault(name, {})[corpus.queries[row].id] = ranked
            if not options:
                measured.trust.append(found.trust)
        measured.asked[name], measured.missing[name] = len(grader.asked), grader.missing
    return measured


def teacher_row(spec: str, measured: Measured) -> list[str]:
    """What the grades of the first documents are worth."""
    first = measured.first
    grades, relevant = (np.concatenate(parts) for parts in zip(*first, strict=True))
    offsets = np.var([g.mean() for g, _ in first]) / grades.var()
    return [
        spec,
        str(len(first)),
        f"{relevant.mean():.2f}",
        f"{grades.mean():.2f}",
        f"{100 * (grades[relevant] > 0.5).mean():.0f} %" if relevant.any() else "",
        f"{100 * (grades[~relevant] > 0.5).mean():.0f} %",
        "" if np.isnan(measured.area_within) else f"{measured.area_within:.2f}",
        f"{area_under_roc(grades[relevant], grades[~relevant]):.2f}",
        f"{offsets:.2f}",
        f"{np.square(grades - relevant).mean():.2f}",
        f"{1 - entropy(np.stack([grades, 1 - grades]), base=2).mean():.2f}",
        *(f"{measured.trust[at]:.2f}" if at < len(first) else "" for at in (0, 9)),
    ]


def calibration_row(spec: str, measured: Measured) -> list[str]:
    """The share of relevant documents by grade, with the number of grades."""
    grades, relevant = (np.concatenate(parts) for parts in zip(*measured.first, strict=True))
    fifths = np.minimum((5 * grades).astype(int), 4)
    shares = [relevant[fifths == fifth] for fifth in range(5)]
    return [spec, *(f"{share.mean():.2f} ({len(share)})" if len(share) else "" for share in shares)]


def cost_row(spec: str, measured: Measured) -> list[str]:
    """What a grade cost, where that was recorded, and how many a query asks for."""
    cost, queries = measured.kept.cost, len(measured.rows)
    asked = [f"{measured.asked[name] / queries:.1f}" for name in list(SETTINGS)[:2]]
    if not cost:
        return [spec, "", "", "", *asked]
    seconds, tokens = cost["seconds"] / cost["calls"], cost["prompt_tokens"] / cost["calls"]
    return [spec, f"{cost['calls']:.0f}", f"{tokens:.0f}", f"{seconds:.1f}", *asked]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a table in Markdown."""
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quality_rows(measured: Mapping[str, Measured], metric: str) -> list[list[str]]:
    """A row for each collection, the best in bold, and the mean of all."""
    rows, every = [], []
    for spec, one in measured.items():
        scores = one.scores
        values = [scores[name][metric] for name in _shown(one, metric)]
        every.append(values)
        rows.append([spec, *_bold(values)])
    return [*rows, ["mean", *_bold(np.mean(every, axis=0).tolist())]]


def difference_row(spec: str, measured: Measured, metric: str = "nDCG@10") -> list[str]:
    """What the defaults gain over the better of first search and reranking, and how sure that is."""
    plain = max(("no feedback", "reranked"), key=lambda name: measured.scores[name][metric])
    refined = measured.by_query["refined"][metric]
    gains = np.array([value - measured.by_query[plain][metric][query] for query, value in refined.items()])
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
    return [spec, plain, f"{gains.mean():+.3f}", f"{error:.3f}", str((gains > 0).sum()), str((gains < 0).sum())]


def _shown(measured: Measured, metric: str) -> list[str]:
    # What returns ten has no MAP.
    return [n for n in measured.rankings if metric != "MAP" or n not in SETTINGS or "similarity_top_k" in SETTINGS[n]]


def _bold(values: Sequence[float]) -> list[str]:
    return [f"**{value:.3f}**" if value == max(values) else f"{value:.3f}" for value in values]


def page(model: str, measured: Mapping[str, Measured]) -> str:
    """Write what was measured with one model's grades."""
    first, data = next(iter(measured.values())), " ".join(f"data/{name}" for name in measured)
    told = sorted({", ".join(one.kept.about.values()) for one in measured.values() if one.kept.about})
    missing = {
        f"{spec}, {name}": f"{many} of {one.asked[name]}"
        for spec, one in measured.items()
        for name, many in one.missing.items()
        if many
    }
    about = ["data", "queries", "relevant", "mean grade", "yes to relevant", "yes to others", "area within a query"]
    trust = ["trust at the first query", "at the tenth"]
    parts = [
        f"# {model} as the teacher",
        f"The first {K} documents of each query, graded yes or no; grades recorded with: {'; '.join(told)}. Made from "
        f"`grades/` without a model by `python -m results.llm tables {data} --model {model}`.",
        "## The teacher",
        table(
            [*about, "area over all", "variance between queries", "Brier score", "bits a grade", *trust],
            [*map(teacher_row, *_pairs(measured))],
        ),
        "Share of relevant documents by grade, with the number of grades:",
        table(["data", *(f"{n / 5} to {(n + 1) / 5}" for n in range(5))], [*map(calibration_row, *_pairs(measured))]),
        "## What refining makes of it",
    ]
    for metric in ("nDCG@10", "recall@10", "MAP"):
        parts += [f"{metric}:", table(["data", *_shown(first, metric)], quality_rows(measured, metric))]
    titles = ["data", "better of the two", "nDCG@10, refined less that", "standard error", "queries won", "lost"]
    parts += [
        "Refined, beside the better of the first search and of reranking by the same grades:",
        table(titles, [*map(difference_row, *_pairs(measured))]),
    ]
    if missing:
        lines = "; ".join(f"{name}: {many}" for name, many in missing.items())
        parts += [f"Grades that were asked for and are not kept, so that the documents went ungraded: {lines}."]
    titles = [
        "data",
        "calls recorded",
        "prompt tokens a call",
        "seconds a call",
        *(f"grades a query, {n}" for n in list(SETTINGS)[:2]),
    ]
    parts += ["## What it costs", table(titles, [*map(cost_row, *_pairs(measured))])]
    return "\n\n".join(parts) + "\n"


def _pairs(measured: Mapping[str, Measured]) -> tuple[list[str], list[Measured]]:
    return list(measured), list(measured.values())


def tables(arguments: argparse.Namespace) -> None:
    """Measure by what is kept, and write the page."""
    measured = {}
    for spec in arguments.data:
        one = measure(spec, arguments.grades, arguments.model, arguments.queries)
        print(f"{spec}: {len(one.rows)} queries, {len(one.kept.grades)} grades", file=sys.stderr, flush=True)
        if one.rows:
            measured[Path(spec).name] = one
    if not measured:
        sys.exit(f"no query has its first {K} documents graded by {arguments.model} in {arguments.grades}")
    text = page(arguments.model, measured)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    print(text)


Run = Callable[[argparse.Namespace], None]


def command(
    about_it: str | None, record: Run, tables: Run, queries: int
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Make a command line that records grades or measures by them.

    :param about_it: what the command is for.
    :param record: asks a model.
    :param tables: measures.
    :param queries: how many a collection, unless the user says.
    :return: the whole, and that of `record` for options of its own.
    """
    parser = argparse.ArgumentParser(description=about_it, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    recording, measuring = (modes.add_parser(run.__name__, help=run.__doc__) for run in (record, tables))
    recording.set_defaults(run=record)
    measuring.set_defaults(run=tables)
    for mode in (recording, measuring):
        mode.add_argument("data", nargs="+", help="folders of collections; a name may carry its vectors")
        mode.add_argument("--model", required=True, help="the model's name on the server and of the files")
        mode.add_argument("--grades", type=Path, default=GRADES)
        mode.add_argument("--queries", type=int, default=queries)
    recording.add_argument("--base-url", required=True)
    recording.add_argument("--server", default="llama.cpp")
    recording.add_argument("--machine")
    recording.add_argument("--concurrency", type=int, default=2, help="documents asked about at once")
    measuring.add_argument("--out", type=Path)
    return parser, recording


def main() -> None:
    """Record or measure."""
    parser, recording = command(__doc__, record, tables, 20)
    recording.add_argument("--depth", type=int, default=K, help="how many of the first search's documents to grade")
    recording.add_argument("--controls", type=int, default=0, help="documents from far down to grade as well")
    recording.add_argument(
        "--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS)[:2], help="whose later rounds to grade"
    )
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
