"""How many grades a query needs: early stopping beside fixed numbers of grades, on the first ten results.

    python -m results.early_stop data/argkp_item data/argkp_item:e5 data/argkp data/argkp:e5 data/cranfield \
        data/cranfield:e5 data/cranfield_item data/clinc150 data/banking77 --draws 3 --out results/early_stop.md

A folder may carry the name of its vectors. Each row is the mean over the collections: grades asked for, and the gain in
nDCG@10 over the first search, as a share of what all twenty grades gain. The retriever is kept for all queries of a
collection, as an application would keep it. Teachers that err do so `--draws` times, each time on other documents.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import MockEmbedding

from llama_index_refine import BaseGrader, RefinedRetriever
from llama_index_refine.evaluation.corpus import Corpus, filters_of, read_vectors
from llama_index_refine.evaluation.datasets import load_folder
from llama_index_refine.evaluation.metrics import score_rankings
from llama_index_refine.evaluation.teachers import make_teacher
from llama_index_refine.refining.trust import Reliability

TEACHERS = ("gold", "good", "noisy")
SETTINGS: dict[str, dict[str, Any]] = {
    "all 20": {"early_stop": False},
    "early stop": {},
    "15": {"early_stop": False, "feedback_top_k": 15},
    "10": {"early_stop": False, "feedback_top_k": 10},
    "5": {"early_stop": False, "feedback_top_k": 5},
    "10 in one round": {"early_stop": False, "feedback_top_k": 10, "rounds": 1},
}


def measure(corpus: Corpus, store: Any, teacher: BaseGrader, options: dict[str, Any]) -> dict[str, float]:
    """Ask all queries of a corpus; nDCG@10 before and after, grades and rounds a query."""
    retrievers: dict[tuple[str | None, str | None], RefinedRetriever] = {}
    rankings: dict[str, dict[str, list[str]]] = {"before": {}, "after": {}}
    record, asked, rounds = Reliability(), [], []
    for row, query in enumerate(corpus.queries):
        where = query.group, query.exclude
        if where not in retrievers:
            retrievers[where] = RefinedRetriever(
                store,
                MockEmbedding(embed_dim=corpus.query_vectors.shape[1]),
                teacher,
                filters=filters_of(query),
                trust=record,
                **options,
            )
        found = retrievers[where].refine(corpus.bundle(row))
        for name, nodes in (("before", found.nodes_before), ("after", found.nodes)):
            rankings[name][query.id] = [str(entry.node.metadata["document"]) for entry in nodes]
        asked.append(len(found.grades) + found.ungraded)
        rounds.append(found.rounds)
    labels = {query.id: corpus.dataset.qrels[query.id] for query in corpus.queries}
    before, after = (np.mean(list(score_rankings(ranked, labels)["nDCG@10"].values())) for ranked in rankings.values())
    return {"gain": float(after - before), "asked": float(np.mean(asked)), "rounds": float(np.mean(rounds))}


def measure_all(corpus: Corpus, store: Any, teacher: str, draws: int, options: dict[str, Any]) -> dict[str, float]:
    """Average over draws of the teacher's errors, which follow from the data set's name."""
    given = [replace(corpus.dataset, name=f"{corpus.dataset.name}{draw or ''}") for draw in range(draws)]
    measured = [measure(corpus, store, make_teacher(teacher, dataset), options) for dataset in given]
    return {key: float(np.mean([row[key] for row in measured])) for key in measured[0]}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--embed-model", default="minilm")
    parser.add_argument("--max-queries", type=int, default=40)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="'all 20' among them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    names = [Path(name).name for name in args.data]
    for name_of_data in args.data:
        folder, _, model = name_of_data.partition(":")
        dataset = load_folder(Path(folder))
        corpus = read_vectors(dataset, model or args.embed_model, dataset.sample(args.max_queries, 1))
        store = corpus.store()
        for teacher in TEACHERS:
            for name in args.settings:
                measured = measure_all(corpus, store, teacher, 1 if teacher == "gold" else args.draws, SETTINGS[name])
                rows.setdefault((teacher, name), []).append(measured)
                print(
                    name_of_data, teacher, name, {key: round(value, 3) for key, value in measured.items()}, flush=True
                )
    lines = [
        "# How many grades a query needs",
        "",
        f"`python -m results.early_stop {' '.join(f'data/{name}' for name in names)} --draws {args.draws}`: "
        f"{args.max_queries} queries a collection, {args.embed_model} vectors where no others are named, "
        f"means over {len(args.data)} collections; {platform.system()}, {platform.machine()}, "
        f"Python {platform.python_version()}.",
        "",
        "| teacher | grades | asked | share of calls | rounds | gain in nDCG@10 | share of the gain |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for (teacher, name), each in rows.items():
        gain, asked, rounds = (np.mean([row[key] for row in each]) for key in ("gain", "asked", "rounds"))
        full = np.mean([row["gain"] for row in rows[teacher, "all 20"]])
        lines.append(
            f"| {teacher} | {name} | {asked:.1f} | {asked / 20:.0%} | {rounds:.1f} | {gain:+.3f} | {gain / full:.1%} |"
        )
    if "early stop" in args.settings:
        lines += ["", "For each collection, with early stopping:", "", f"| collection | {' | '.join(TEACHERS)} |"]
        lines += ["|---|---|---|---|"]
        for at, name in enumerate(names):
            pairs = [[rows[teacher, setting][at] for setting in ("early stop", "all 20")] for teacher in TEACHERS]
            cells = [f"{stop['asked']:.1f}, {stop['gain']:+.3f} of {full['gain']:+.3f}" for stop, full in pairs]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join([*lines, ""])
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
