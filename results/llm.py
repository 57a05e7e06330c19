"""A served LLM as the teacher: its grades are recorded once, and every table is made from what is kept.

    python -m results.llm record data/argkp data/banking77 --model qwen2.5-coder-1.5b-q4_k_m \
        --base-url http://127.0.0.1:8080/v1
    python -m results.llm tables data/argkp data/banking77 --model qwen2.5-coder-1.5b-q4_k_m

Grades are kept in `results/llm/grades/`, a file a model and collection, and recording goes on where it stopped. A
folder may carry the name of its vectors, as in `data/argkp:e5`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import MockEmbedding
from llama_index.core.schema import BaseNode, QueryBundle
from numpy.typing import NDArray

from llama_index_refine import BaseGrader, RefinedRetriever
from llama_index_refine.evaluation.corpus import Corpus, filters_of, read_vectors
from llama_index_refine.evaluation.datasets import Dataset, load_folder
from llama_index_refine.evaluation.metrics import CUTOFF, area_under_roc, score_rankings
from llama_index_refine.evaluation.teachers import LabelledQuery
from llama_index_refine.graders.account import Account
from llama_index_refine.graders.openai import OpenAIGrader
from llama_index_refine.refining.published import PublishedRefiner

GRADES = Path(__file__).with_name("llm") / "grades"
PROMPT = "yes_no"
K = 20
SETTINGS: dict[str, dict[str, Any]] = {
    "refined": {},
    "refined, all grades": {"early_stop": False},
    "refined, trust 1": {"early_stop": False, "trust": 1.0},
    "refined, list of 1,000": {"similarity_top_k": CUTOFF},
}
# So many grades are lost at the most where a run is stopped.
_PART = 5
_COLUMNS = ("query", "document", "grade", "prompt")


@dataclass
class Kept:
    """The grades that one model gave on one collection, in a compressed table.

    :param path: the file; a `.json` beside it says what recording cost, and on what machine.
    """

    path: Path
    grades: dict[tuple[str, str], float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, model: str, collection: str) -> Kept:
        """Read what is kept, nothing where there is nothing."""
        kept = cls(folder / f"{model}--{collection}.tsv.gz")
        if kept.path.is_file():
            with gzip.open(kept.path, "rt", encoding="utf-8", newline="") as lines:
                rows = csv.DictReader(lines, delimiter="\t")
                kept.grades = {(r["query"], r["document"]): float(r["grade"]) for r in rows if r["prompt"] == PROMPT}
        if kept._beside.is_file():
            told = json.loads(kept._beside.read_text(encoding="utf-8"))
            kept.cost, kept.about = told["cost"], told["about"]
        return kept

    @property
    def _beside(self) -> Path:
        return self.path.with_name(self.path.name.replace(".tsv.gz", ".json"))

    def save(self) -> None:
        """Write everything. The same grades give the same bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        table = csv.writer(text, delimiter="\t", lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows((*pair, f"{grade:.4f}", PROMPT) for pair, grade in sorted(self.grades.items()))
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
        unfinished.replace(self.path)
        told = json.dumps({"about": self.about, "cost": self.cost}, indent=1)
        self._beside.write_text(told + "\n", encoding="utf-8")


class RecordedGrader(BaseGrader):
    """Gives the grades that are kept; the others come from a teacher, or are counted as missing.

    :param kept: the grades.
    :param teacher: who is asked for the others, and its grades are kept; None for nobody.
    """

    def __init__(self, kept: Kept, teacher: BaseGrader | None = None) -> None:
        super().__init__()
        self.kept = kept
        self.teacher = teacher
        self.asked: set[tuple[str, str]] = set()

    @property
    def missing(self) -> int:
        """How many different grades were asked for that are not kept."""
        return len(self.asked - self.kept.grades.keys())

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        """Look the grades up. :raises TypeError: the query is not a `LabelledQuery`."""
        if not isinstance(query, LabelledQuery):
            raise TypeError("recorded grades need a LabelledQuery, which carries the query's id in the data set")
        pairs = [(query.query_id, str(node.metadata["document"])) for node in nodes]
        self.asked.update(pairs)
        new = [node for node, pair in zip(nodes, pairs, strict=True) if pair not in self.kept.grades]
        for start in range(0, len(new) if self.teacher is not None else 0, _PART):
            self._ask(self.teacher, query, new[start : start + _PART])
        return [self.kept.grades.get(pair) for pair in pairs]

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        """Look the grades up."""
        return self.grade(query, nodes)

    def _ask(self, teacher: BaseGrader, query: LabelledQuery, nodes: Sequence[BaseNode]) -> None:
        account, begun = Account(), time.monotonic()
        with account.active():
            grades = teacher.grade(query, nodes)
        spent = {
            "calls": account.calls,
            "prompt_tokens": account.prompt_tokens,
            "completion_tokens": account.completion_tokens,
            "seconds": time.monotonic() - begun,
        }
        for name, value in spent.items():
            self.kept.cost[name] = round(self.kept.cost.get(name, 0) + value, 1)
        for node, grade in zip(nodes, grades, strict=True):
            if grade is not None:
                # As it is kept, so that a run that goes on sees what one without a break would.
                self.kept.grades[query.query_id, str(node.metadata["document"])] = round(grade, 4)
        self.kept.save()
        if all(grade is None for grade in grades):
            sys.exit(f"the model gives no grades: {'; '.join(account.failures)}")


def chosen(dataset: Dataset, many: int) -> list[int]:
    """Rows of the queries to measure; asking for more adds to those of before."""
    return list(dict.fromkeys([*dataset.sample(12), *dataset.sample(max(many, 12)), *dataset.sample(None)]))[:many]


def opened(spec: str, many: int) -> Corpus:
    """Read a collection and its vectors. :param spec: a folder, with the name of its vectors after a colon."""
    folder, _, vectors = spec.partition(":")
    dataset = load_folder(Path(folder))
    return read_vectors(dataset, vectors or "minilm", chosen(dataset, many))


def nearest(corpus: Corpus, row: int) -> list[int]:
    """Rows of the documents that a query searches, nearest first."""
    rows, vectors = corpus.searched(corpus.queries[row])
    return rows[np.argsort(-(vectors @ corpus.query_vectors[row]), kind="stable")].tolist()


def retriever(corpus: Corpus, store: object, row: int, grader: BaseGrader, **options: object) -> RefinedRetriever:
    """The retriever as an application has it, on the documents that this query searches."""
    embed_model = MockEmbedding(embed_dim=corpus.query_vectors.shape[1])
    return RefinedRetriever(store, embed_model, grader, filters=filters_of(corpus.queries[row]), **options)


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
        kept.about |= {
            "server": arguments.server,
            "machine": arguments.machine or f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "date": datetime.now(timezone.utc).date().isoformat(),
        }
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
    """

    corpus: Corpus
    kept: Kept
    rows: list[int]
    rankings: dict[str, dict[str, list[str]]]
    asked: dict[str, int]
    missing: dict[str, int]

    def scores(self) -> dict[str, dict[str, float]]:
        """Method to metric to its mean; a list of ten has no MAP."""
        labels = {
            self.corpus.queries[row].id: self.corpus.dataset.qrels[self.corpus.queries[row].id] for row in self.rows
        }
        found = {name: score_rankings(ranked, labels) for name, ranked in self.rankings.items()}
        return {
            name: {metric: float(np.mean(list(values.values()))) for metric, values in scores.items()}
            for name, scores in found.items()
        }

    def first(self) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """For each query the grades of the first documents, and whether they are relevant."""
        return [graded(self.corpus, self.kept, row) for row in self.rows]


def graded(corpus: Corpus, kept: Kept, row: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Grades of the first K documents of a query, NaN where one is not kept, and whether they are relevant."""
    query, relevant = corpus.queries[row], corpus.dataset.relevant(corpus.queries[row])
    first = nearest(corpus, row)[:K]
    grades = [kept.grades.get((query.id, corpus.dataset.documents[at].id), np.nan) for at in first]
    return np.array(grades), np.array([at in relevant for at in first])


def measure(spec: str, folder: Path, model: str, many: int) -> Measured:
    """Measure all methods by the kept grades, on those queries whose first K documents are graded."""
    corpus = opened(spec, many)
    kept = Kept.load(folder, model, corpus.dataset.name)
    rows = [row for row in range(len(corpus.queries)) if not np.isnan(graded(corpus, kept, row)[0]).any()]
    measured = Measured(corpus, kept, rows, {}, {}, {})
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
            found = retriever(corpus, store, row, grader, **options).retrieve(corpus.bundle(row))
            ranked = [str(entry.node.metadata["document"]) for entry in found]
            measured.rankings.setdefault(name, {})[corpus.queries[row].id] = ranked
        measured.asked[name], measured.missing[name] = len(grader.asked), grader.missing
    return measured


def teacher_row(spec: str, measured: Measured) -> list[str]:
    """What the grades of the first documents are worth."""
    first = measured.first()
    grades, relevant = (np.concatenate(parts) for parts in zip(*first, strict=True))
    within = [area_under_roc(g[y], g[~y]) for g, y in first if 0 < y.sum() < len(y)]
    offsets = np.var([g.mean() for g, _ in first]) / grades.var()
    return [
        spec,
        str(len(first)),
        f"{relevant.mean():.2f}",
        f"{grades.mean():.2f}",
        f"{100 * (grades[relevant] > 0.5).mean():.0f} %" if relevant.any() else "",
        f"{100 * (grades[~relevant] > 0.5).mean():.0f} %",
        f"{np.mean(within):.2f}" if within else "",
        f"{area_under_roc(grades[relevant], grades[~relevant]):.2f}",
        f"{offsets:.2f}",
        f"{np.square(grades - relevant).mean():.2f}",
    ]


def calibration_row(spec: str, measured: Measured) -> list[str]:
    """The share of relevant documents by grade, with the number of grades."""
    grades, relevant = (np.concatenate(parts) for parts in zip(*measured.first(), strict=True))
    fifths = np.minimum((5 * grades).astype(int), 4)
    shares = [relevant[fifths == fifth] for fifth in range(5)]
    return [spec, *(f"{share.mean():.2f} ({len(share)})" if len(share) else "" for share in shares)]


def cost_row(spec: str, measured: Measured) -> list[str]:
    """What a grade costs, and how many a query asks for."""
    cost, queries = measured.kept.cost, len(measured.rows)
    calls = max(cost.get("calls", 0), 1)
    asked = [f"{measured.asked[name] / queries:.1f}" for name in list(SETTINGS)[:2]]
    seconds, tokens = cost.get("seconds", 0) / calls, cost.get("prompt_tokens", 0) / calls
    return [spec, f"{cost.get('calls', 0):.0f}", f"{tokens:.0f}", f"{seconds:.1f}", *asked]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a table in Markdown."""
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quality_rows(measured: Mapping[str, Measured], metric: str) -> list[list[str]]:
    """A row for each collection, the best in bold, and the mean of all."""
    rows, every = [], []
    for spec, one in measured.items():
        scores = one.scores()
        values = [scores[name][metric] for name in _shown(one, metric)]
        every.append(values)
        rows.append([spec, *_bold(values)])
    return [*rows, ["mean", *_bold(np.mean(every, axis=0).tolist())]]


def _shown(measured: Measured, metric: str) -> list[str]:
    # What returns ten has no MAP.
    return [n for n in measured.rankings if metric != "MAP" or n not in SETTINGS or "similarity_top_k" in SETTINGS[n]]


def _bold(values: Sequence[float]) -> list[str]:
    return [f"**{value:.3f}**" if value == max(values) else f"{value:.3f}" for value in values]


def page(model: str, measured: Mapping[str, Measured]) -> str:
    """Write what was measured with one model's grades."""
    first = next(iter(measured.values()))
    told = sorted({", ".join(one.kept.about.values()) for one in measured.values() if one.kept.about})
    missing = {
        f"{spec}, {name}": f"{many} of {one.asked[name]}"
        for spec, one in measured.items()
        for name, many in one.missing.items()
        if many
    }
    about = ["data", "queries", "relevant", "mean grade", "yes to relevant", "yes to others", "area within a query"]
    parts = [
        f"# {model} as the teacher",
        f"The first {K} documents of each query, graded yes or no; grades recorded with: {'; '.join(told)}. Made from "
        f"`grades/` without a model by `python -m results.llm tables {' '.join(measured)} --model {model}`.",
        "## The teacher",
        table(
            [*about, "area over all", "variance between queries", "Brier score"], [*map(teacher_row, *_pairs(measured))]
        ),
        "Share of relevant documents by grade, with the number of grades:",
        table(["data", *(f"{n / 5} to {(n + 1) / 5}" for n in range(5))], [*map(calibration_row, *_pairs(measured))]),
        "## What refining makes of it",
    ]
    for metric in ("nDCG@10", "recall@10", "MAP"):
        parts += [f"{metric}:", table(["data", *_shown(first, metric)], quality_rows(measured, metric))]
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


def main() -> None:
    """Record or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    recording, measuring = (
        modes.add_parser("record", help=record.__doc__),
        modes.add_parser("tables", help=tables.__doc__),
    )
    recording.set_defaults(run=record)
    measuring.set_defaults(run=tables)
    for mode in (recording, measuring):
        mode.add_argument("data", nargs="+", help="folders of collections; a name may carry its vectors")
        mode.add_argument("--model", required=True, help="the model's name on the server and of the files")
        mode.add_argument("--grades", type=Path, default=GRADES)
        mode.add_argument("--queries", type=int, default=20)
    recording.add_argument("--base-url", required=True)
    recording.add_argument("--depth", type=int, default=K, help="how many of the first search's documents to grade")
    recording.add_argument("--controls", type=int, default=0, help="documents from far down to grade as well")
    recording.add_argument(
        "--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS)[:2], help="whose later rounds to grade"
    )
    recording.add_argument("--concurrency", type=int, default=2)
    recording.add_argument("--server", default="llama.cpp")
    recording.add_argument("--machine")
    measuring.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
