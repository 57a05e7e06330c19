"""What halving and doubling each constant of the engine does to the first ten results and to the whole ranking.

    python -m results.constants data/argkp_item data/argkp_item:e5 data/cranfield_item data/cranfield \
        data/cranfield:e5 data/argkp data/argkp:e5 data/clinc150 data/banking77 --out results/constants.md

A folder may carry the name of its vectors. Everything happens on arrays: the first round's documents are graded, the
query moves, later rounds grade what `expected_gains` finds worth it, and a teacher's record is kept over the queries of
a collection. Rows that are in the file beside --out, with the ending .jsonl, are not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llama_index_refine import QueryRefiner, Reliability
from llama_index_refine.evaluation.corpus import Corpus, read_vectors
from llama_index_refine.evaluation.datasets import load_folder
from llama_index_refine.refining.allocation import expected_gains, split_budget
from llama_index_refine.refining.refiner import rarity
from llama_index_refine.refining.relevance import Ranking, fit_relevance

# Probability of a yes to a relevant and to an irrelevant document.
TEACHERS = {"good": (0.9, 0.1), "noisy": (0.75, 0.2), "strict": (0.5, 0.02)}
GRADED, ROUNDS, BACKGROUND, LISTED = 20, 3, 30, 10
# Tolerances and sizes of grids that say how exactly numbers are worked out are left out.
CONSTANTS = {
    "refiner": "FIRST_RANKING OF_SIGNAL OF_MEAN USUAL_MEAN LEAST_PRIOR MOST_PRIOR OF_YES MOST_YES",
    "evidence": "AGREEMENT PERMUTATIONS RATIOS",
    "trust": "CHANCE INVERTED LEAST_CLAIM WATCHED TAIL NARROW CHANGE",
    "allocation": "FIRST_SHARE WORTH",
    "relevance": "STEP ABOVE SLOPES USUAL_SLOPE SLOPE_SPREAD NEGLIGIBLE LEAST_CHANCE BEFOREHAND FALSE_YES FALSE_NO",
}
ARGUMENTS = ("temperature", "reach", "own_grade")


def settings() -> Iterator[tuple[str, float]]:
    """Name what is measured: each constant, and what it is multiplied by."""
    yield "as it is", 1.0
    for module, names in CONSTANTS.items():
        yield from ((f"{module}.{name}", factor) for name in names.split() for factor in (0.5, 2.0))
    yield from ((f"QueryRefiner({name})", factor) for name in ARGUMENTS for factor in (0.5, 2.0))


@contextmanager
def changed(name: str, factor: float) -> Iterator[QueryRefiner]:
    """Multiply a constant for a while."""
    module, _, constant = name.partition(".")
    if module not in CONSTANTS:
        refiner, argument = QueryRefiner(), name[len("QueryRefiner(") : -1]
        if argument in ARGUMENTS:
            setattr(refiner, argument, factor * getattr(refiner, argument))
        yield refiner
        return
    home = import_module(f"llama_index_refine.refining.{module}")
    before = getattr(home, constant)
    setattr(home, constant, int(factor * before) if isinstance(before, int) else factor * before)
    try:
        yield QueryRefiner()
    finally:
        setattr(home, constant, before)


def retrieve(
    query: np.ndarray, documents: np.ndarray, marks: np.ndarray, record: Reliability, refiner: QueryRefiner
) -> tuple[np.ndarray, int]:
    """Grade, refine and rank as the retriever does.

    :param query: (d,)
    :param documents: (n, d) unit vectors.
    :param marks: (n,) what the teacher says of each, if it is asked.
    :param record: the teacher's.
    :param refiner: moves the query.
    :return: the documents' places, best first, and how many grades were asked for.
    """
    drawn = np.random.default_rng(0).choice(len(documents), min(BACKGROUND, len(documents)), replace=False)
    first, population = documents @ query, len(documents)
    graded = np.empty(0, dtype=int)
    ranked, known = np.argsort(-first, kind="stable"), record.known()
    for share in split_budget(GRADED, ROUNDS, known):
        graded = np.r_[graded, ranked[:share]]
        record.hear(marks[ranked[:share]])
        grades, around = record.calibrate(marks[graded]), documents[np.setdiff1d(drawn, graded)]
        trust = record.foresee(documents[graded], grades, first[graded])
        options: dict[str, Any] = {"population": population, "trust": trust, "signal": record.signal()}
        moved = refiner.refine(query, documents[graded], grades.astype(np.float32), around, **options)
        near = documents @ (moved.vector / np.linalg.norm(moved.vector))
        others = np.setdiff1d(np.argsort(-near, kind="stable"), graded, assume_unique=True)
        ranked = others
        if known:
            top = others[:GRADED]
            found = np.sort(np.r_[near[top], near[graded][near[graded] >= near[top[-1]]]])[::-1]
            relevance = fit_relevance(
                Ranking.of(found, near[drawn], population),
                moved.held_out,
                grades,
                record.sees(),
                record.abundance.log_odds,
            )
            doubt = float(np.minimum(grades, 1 - grades).mean())
            step, left = refiner.own_grade * trust**2 * (1 - 2 * doubt), GRADED - len(graded)
            steps, places = (step * rarity(float(grades.mean())), step), near[top] / moved.tau
            chances = relevance.probability(near[top])
            gains = expected_gains(moved.fused / moved.tau, grades, places, chances, left, steps, doubt, LISTED)
            worth = import_module("llama_index_refine.refining.allocation").WORTH
            ranked = top[: len(gains)][gains >= worth]
            if not len(ranked):
                break
    trust = record.observe(documents[graded], grades, first[graded])
    options |= {"trust": trust}
    moved = refiner.refine(query, documents[graded], grades.astype(np.float32), around, **options)
    near = documents @ (moved.vector / np.linalg.norm(moved.vector))
    near[graded] = moved.fused
    return np.argsort(-near, kind="stable"), len(graded)


def measure(corpora: list[Corpus], name: str, factor: float) -> dict[str, Any]:
    """Return the means over the collections, for each teacher: measures, and grades asked for."""
    row: dict[str, Any] = {"constant": name, "factor": factor}
    for teacher, (yes, no) in TEACHERS.items():
        scores = []
        for corpus in corpora:
            record, scores_of, asked = Reliability(), [], []
            for at, query in enumerate(corpus.queries):
                rows, vectors = corpus.searched(query)
                relevant = np.isin(rows, list(corpus.dataset.relevant(query)))
                luck = np.random.default_rng([at, *teacher.encode()]).random(len(rows))
                marks = (luck < np.where(relevant, yes, no)).astype(np.float64)
                with changed(name, factor) as refiner:
                    order, count = retrieve(corpus.query_vectors[at], vectors, marks, record, refiner)
                scores_of.append(_scores(relevant[order]))
                asked.append(count)
            scores.append([*np.mean(scores_of, axis=0), np.mean(asked)])
        row[teacher] = np.mean(scores, axis=0).round(5).tolist()
    return row


def _scores(hits: np.ndarray) -> tuple[float, float]:
    """Return nDCG@10 and average precision of a whole ranking."""
    discount = 1 / np.log2(np.arange(2, LISTED + 2))
    at, best = np.flatnonzero(hits) + 1, discount[: hits.sum()].sum()
    return float(hits[:LISTED] @ discount[: len(hits)] / best), float((np.arange(1, len(at) + 1) / at).mean())


def table(rows: list[dict[str, Any]], command: str) -> str:
    """Write the rows as a page."""
    usual = rows[0]
    lines = ["# What the constants are worth", "", command, ""]
    lines += [f"| constant | times | {' | '.join(TEACHERS)} | most |", "|---|---:|---|---|---|---:|"]
    for row in rows:
        cells, most = [], 0.0
        for teacher in TEACHERS:
            (ndcg, precision, asked), before = row[teacher], usual[teacher]
            change = (ndcg, precision) if row is usual else (ndcg - before[0], precision - before[1])
            most = max(most, *map(abs, change))
            form = "{:.3f}, {:.3f}" if row is usual else "{:+.3f}, {:+.3f}"
            cells.append(f"{form.format(*change)}, {asked:.1f}")
        lines.append(
            f"| {row['constant']} | {row['factor']:g} | {' | '.join(cells)} | {'' if row is usual else f'{most:.3f}'} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure what is not yet measured, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--max-queries", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    corpora = []
    for name in args.data:
        folder, _, model = name.partition(":")
        dataset = load_folder(Path(folder))
        corpora.append(read_vectors(dataset, model or "minilm", dataset.sample(args.max_queries, 1)))
    kept = args.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(row["constant"], row["factor"]): row for row in rows}
    for setting in settings():
        if setting not in known:
            known[setting] = measure(corpora, *setting)
            with kept.open("a") as file:
                file.write(json.dumps(known[setting]) + "\n")
            print(json.dumps(known[setting]), flush=True)
    names = " ".join(f"data/{Path(name).name}" for name in args.data)
    command = (
        f"`python -m results.constants {names} --max-queries {args.max_queries}`: differences in nDCG@10 and MAP to "
        "the engine as it is, and grades asked for, means over the collections; the last column has the greatest."
    )
    args.out.write_text(table([known[setting] for setting in settings()], command))


if __name__ == "__main__":
    main()
