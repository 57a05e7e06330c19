"""Whether the retriever knows when nothing answers.

    python -m results.answerable data/argkp_item data/banking77 data/cranfield --out results/answerable.md

A folder may carry the name of its vectors after a colon. For half of the queries, drawn at random, all relevant
documents are filtered away. Each row says how well `Refinement.answerable` tells them from the others: the area under
the ROC curve, and, at a threshold of 0.3, how often it is wrong about whether a relevant document is returned. Beside
it stands the best that 20 grades of the first search allow anyone: the area of the likelihood ratio for whoever knows
the teacher's errors, and at which ranks the queries' relevant documents stand (Neyman and Pearson 1933).
Collections live in Qdrant Edge, the teachers grade from the labels and are kept for all queries of a collection.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from llama_index.core import MockEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models
from scipy.special import logsumexp  # type: ignore[import-untyped]

from llama_index_refine import RefinedRetriever
from llama_index_refine.evaluation.corpus import Corpus, filters_of, read_vectors
from llama_index_refine.evaluation.datasets import load_folder
from llama_index_refine.evaluation.metrics import area_under_roc
from llama_index_refine.evaluation.teachers import QUALITIES, YES_RATES, make_teacher, node_id
from llama_index_refine.qdrant.edge import EdgeClient
from llama_index_refine.qdrant.filters import read_filter
from llama_index_refine.refining.trust import Reliability

TEACHERS = ("gold", "good", "noisy", "strict", "lenient")
THRESHOLD = 0.3
# Grades a query in the simulation of the best there can be, and how often each query is simulated.
GRADED, DRAWN = 20, 100


@dataclass(frozen=True)
class Asked:
    """What became of one query.

    :param there: whether its relevant documents were left in the collection.
    :param found: whether one of them was returned.
    :param answerable: the probability of that.
    :param score: the best score of the first search.
    """

    there: bool
    found: bool
    answerable: float
    score: float


def store_of(corpus: Corpus, home: str) -> QdrantVectorStore:
    """Write a data set into a collection of Qdrant Edge."""
    client, size = EdgeClient(home), corpus.document_vectors.shape[1]
    client.create_collection("c", models.VectorParams(size=size, distance=models.Distance.COSINE))
    store = QdrantVectorStore(collection_name="c", client=client, batch_size=1024)
    pairs = zip(corpus.nodes, corpus.document_vectors, strict=True)
    store.add([node.model_copy(update={"embedding": vector.tolist()}) for node, vector in pairs])
    client.optimize("c")
    return store


def ask(corpus: Corpus, store: QdrantVectorStore, teacher: str, seed: int) -> Iterator[Asked]:
    """Ask all queries, half of them with their relevant documents filtered away."""
    grader, record = make_teacher(teacher, corpus.dataset), Reliability()
    embed_model = MockEmbedding(embed_dim=corpus.document_vectors.shape[1])
    away = np.random.default_rng(seed).permutation(len(corpus.queries)) % 2 == 0
    for row, query in enumerate(corpus.queries):
        relevant = [node_id(corpus.dataset.documents[at].id) for at in corpus.dataset.relevant(query)]
        admitted = read_filter(store, filters_of(query), None, None, None)
        if away[row]:
            others = models.Filter(must_not=[models.HasIdCondition(has_id=relevant)])
            admitted = models.Filter(must=[others, *([admitted] if admitted else [])])
        kwargs = {"qdrant_filters": admitted} if admitted else {}
        retriever = RefinedRetriever(store, embed_model, grader, trust=record, vector_store_kwargs=kwargs)
        found = retriever.refine(corpus.bundle(row))
        if found.answerable is not None:
            hit = any(entry.node_id in relevant for entry in found.nodes)
            yield Asked(not away[row], hit, found.answerable, found.nodes_before[0].score or 0.0)


def first_ranks(corpus: Corpus) -> list[np.ndarray]:
    """(n,) for each query, which of the first nodes are relevant; n is GRADED, or less where fewer are searched."""
    found = []
    for row, query in enumerate(corpus.queries):
        pool, vectors = corpus.searched(query)
        best = pool[np.argsort(-(vectors @ corpus.query_vectors[row]), kind="stable")]
        found.append(
            np.isin(
                best[best != corpus.dataset.rows.get(query.exclude or "", -1)][:GRADED],
                [*corpus.dataset.relevant(query)],
            )
        )
    return found


def evidence(teacher: str, relevant: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a teacher's grades: what each says for its document's relevance, as a log likelihood ratio."""
    if teacher in QUALITIES:
        # Normal logits, apart by d standard deviations.
        apart = np.sqrt(2) * NormalDist().inv_cdf(QUALITIES[teacher][0])
        drawn: np.ndarray = apart * (rng.normal(size=relevant.shape) + np.where(relevant, apart / 2, -apart / 2))
        return drawn
    of_relevant, of_irrelevant = YES_RATES.get(teacher, (1 - 1e-9, 1e-9))
    yes = rng.random(relevant.shape) < np.where(relevant, of_relevant, of_irrelevant)
    return np.where(yes, np.log(of_relevant / of_irrelevant), np.log((1 - of_relevant) / (1 - of_irrelevant)))


def best_possible(ranks: list[np.ndarray], teacher: str) -> float:
    """Simulate the likelihood ratio of relevant documents being left, were each query as likely as another."""
    rng, left, filtered = np.random.default_rng(0), [], []
    for own in ranks:
        # A query that searches fewer nodes is compared at those.
        every = np.array([np.resize(np.r_[one, np.zeros(len(own))], len(own)) for one in ranks])
        for relevant, ratios in ((own, left), (np.zeros_like(own), filtered)):
            said = evidence(teacher, np.tile(relevant, (DRAWN, 1)), rng) @ every.T
            ratios += logsumexp(said, axis=1).tolist()
    return area_under_roc(np.array(left), np.array(filtered))


def area(values: Sequence[float], positive: Sequence[bool]) -> float:
    """Area under the ROC curve."""
    every, there = np.array(values), np.array(positive)
    return area_under_roc(every[there], every[~there])


def measure(asked: list[Asked]) -> dict[str, float]:
    """Sum up one teacher on one collection."""
    said = np.array([one.answerable >= THRESHOLD for one in asked])
    hits = np.array([one.found for one in asked])
    chances = [one.answerable for one in asked]
    return {
        "AUC, left or filtered": area(chances, [one.there for one in asked]),
        "of the best score": area([one.score for one in asked], [one.there for one in asked]),
        "AUC, one is returned": area(chances, [one.found for one in asked]),
        "wrong at 0.3": float(np.mean(said != hits)),
        "withheld with an answer": float(np.mean(~said & hits)),
    }


def table(rows: list[tuple[str, str, dict[str, float]]]) -> list[str]:
    """Write rows as Markdown."""
    names = ["collection", "teacher", *rows[0][2]]
    lines = [f"| {' | '.join(names)} |", "|---|---|" + "---:|" * len(rows[0][2])]
    return lines + [
        f"| {where} | {teacher} | {' | '.join(f'{value:.2f}' for value in row.values())} |"
        for where, teacher, row in rows
    ]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--max-queries", type=int, default=40)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[tuple[str, str, dict[str, float]]] = []
    for spec in args.data:
        folder, _, vectors = spec.partition(":")
        dataset = load_folder(Path(folder))
        corpus = read_vectors(dataset, vectors or "minilm", dataset.sample(args.max_queries, 3))
        ranks = first_ranks(corpus)
        with tempfile.TemporaryDirectory() as home:
            store = store_of(corpus, home)
            for teacher in TEACHERS:
                found = measure([*ask(corpus, store, teacher, args.seed)])
                found["best possible of the first 20"] = best_possible(ranks, teacher)
                rows.append((Path(spec).name, teacher, found))
                print(*rows[-1], flush=True)
            store.client.close()
    means = []
    for teacher in TEACHERS:
        each = [row for _, by, row in rows if by == teacher]
        means.append(("mean", teacher, {name: float(np.mean([row[name] for row in each])) for name in each[0]}))
    names = " ".join(f"data/{Path(spec).name}" for spec in args.data)
    lines = [
        "# Whether anything answers",
        "",
        f"`python -m results.answerable {names} --max-queries {args.max_queries} --out results/answerable.md`",
        "",
        f"At most {args.max_queries} queries a collection, half of them without an answer; two cores, x86_64, Linux. "
        "The last column is what nobody can exceed who sees 20 grades of the first search; later grades may go to "
        "better places.",
        "",
        *table([*means, *rows]),
        "",
    ]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
