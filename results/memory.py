"""What a memory saves on a stream of utterances, and what a poisoned one does.

    python -m results.memory data/clinc150 data/banking77 --out results/memory.md

Without early stopping, so that what is saved is the memory's. The utterances of an intent collection are questions to
one another: 400 are drawn, the rest is searched, and what has the same intent is relevant. The first 300 fill the
memory, the last 100 measure it, each against the memory as it was after 0, 100 or 300 queries, so that they learn
nothing from each other. MAP is that of the first 200. In the poisoned memory all grades of one user, who asked about
a third of the intents, are upside down.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from llama_index.core.schema import BaseNode, QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine import BaseGrader, RefinedRetriever, RefinementMemory, Reliability
from llama_index_refine.evaluation.datasets import Dataset, Document, Query, load_folder
from llama_index_refine.evaluation.metrics import score_rankings
from llama_index_refine.evaluation.teachers import LabelledQuery, make_teacher, node_id
from llama_index_refine.qdrant.edge import EdgeClient
from llama_index_refine.stores import open_store

STREAM, TESTED, FEEDBACK, DEPTH = 300, 100, 20, 200
USER = "one user"


class Counting(BaseGrader):
    """Counts the grades that are asked for; each would be a call. Upside down for some queries, if told so."""

    def __init__(self, teacher: BaseGrader) -> None:
        super().__init__()
        self.teacher = teacher
        self.asked = 0
        self.upside_down = False

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        """See `BaseGrader.grade`."""
        self.asked += len(nodes)
        grades = self.teacher.grade(query, nodes)
        return [1 - grade for grade in grades if grade is not None] if self.upside_down else list(grades)

    def fingerprint(self) -> str:
        """The same for all, so that they share a memory."""
        return "labels"


class Frozen(SimpleKVStore):
    """A memory's store as it was at one moment."""

    def put(self, key: str, val: dict[str, Any], collection: str = "data") -> None:
        """Keep nothing."""


def stream(folder: Path, model: str) -> tuple[Dataset, np.ndarray, np.ndarray, list[str]]:
    """Make a stream of utterances from an intent collection: data, document and query vectors, intents of queries."""
    data = load_folder(folder)
    vectors = np.load(data.vectors[model])["corpus"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    intent = {document: query for query, labels in data.qrels.items() for document in labels}
    rows = [row for row in np.random.default_rng(1).permutation(len(vectors)) if data.documents[row].id in intent]
    asked, kept = rows[: STREAM + TESTED], sorted(rows[STREAM + TESTED :])
    members: dict[str, dict[str, int]] = {}
    for row in kept:
        members.setdefault(intent[data.documents[row].id], {})[data.documents[row].id] = 1
    queries = [Query(f"q{at}", data.documents[row].text) for at, row in enumerate(asked)]
    intents = [intent[data.documents[row].id] for row in asked]
    qrels = {query.id: members.get(name, {}) for query, name in zip(queries, intents, strict=True)}
    documents = [Document(data.documents[row].id, data.documents[row].text) for row in kept]
    return Dataset(data.name, documents, queries, qrels), vectors[kept], vectors[asked], intents


def collection(data: Dataset, vectors: np.ndarray) -> QdrantVectorStore:
    """Put the documents into Qdrant."""
    client = EdgeClient(mkdtemp())
    size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
    client.create_collection("stream", size)
    points = [
        models.PointStruct(id=node_id(document.id), vector=vector.tolist(), payload={"text": document.text})
        for document, vector in zip(data.documents, vectors, strict=True)
    ]
    client.upload_points("stream", points)
    return open_store(client, "stream", "text")


class Stream:
    """One collection and one teacher."""

    def __init__(self, folder: Path, model: str, teacher: str, options: dict[str, Any]) -> None:
        self.data, documents, self.queries, self.intents = stream(folder, model)
        self.store = collection(self.data, documents)
        self.teacher, self.options = make_teacher(teacher, self.data), options
        self.document = {node_id(document.id): document.id for document in self.data.documents}

    def retriever(
        self, memory: RefinementMemory | None, feedback_top_k: int, trust: Reliability, depth: int = 10
    ) -> RefinedRetriever:
        """A retriever whose teacher counts."""
        grader = Counting(self.teacher)
        return RefinedRetriever(
            self.store,
            grader=grader,
            similarity_top_k=depth,
            feedback_top_k=feedback_top_k,
            memory=memory,
            trust=trust,
            **self.options,
        )

    def bundle(self, at: int) -> LabelledQuery:
        """One query of the stream."""
        query = self.data.queries[at]
        return LabelledQuery(query.text, embedding=self.queries[at].tolist(), query_id=query.id)

    def fill(self, queries: Sequence[int], store: SimpleKVStore, trust: Reliability, poisoned: set[int]) -> None:
        """Ask the first queries of the stream."""
        memory = RefinementMemory(store)
        retriever = self.retriever(memory, FEEDBACK, trust)
        for at in queries:
            retriever.grader.upside_down = at in poisoned  # type: ignore[attr-defined]
            # The record of the teacher who errs is another user's.
            retriever.trust = Reliability() if at in poisoned else trust
            with memory.as_user(USER if at in poisoned else "another"):
                retriever.refine(self.bundle(at))

    def measure(
        self, queries: Sequence[int], store: SimpleKVStore | None, feedback_top_k: int, trust: Reliability
    ) -> dict[str, Any]:
        """Ask the last queries, each of the same memory."""
        rankings, calls, refinements = {}, [], []
        memory = None if store is None else RefinementMemory(store)
        for at in queries:
            retriever = self.retriever(memory, feedback_top_k, deepcopy_of(trust), DEPTH)
            refinement = retriever.refine(self.bundle(at))
            calls.append(retriever.grader.asked)  # type: ignore[attr-defined]
            rankings[f"q{at}"] = [self.document[entry.node.node_id] for entry in refinement.nodes]
            refinements.append(refinement)
        scores = score_rankings(rankings, self.data.qrels)
        return {
            "calls": float(np.mean(calls)),
            "borrowing": float(np.mean([refinement.borrowed > 0 for refinement in refinements])),
            "nDCG@10": float(np.mean(list(scores["nDCG@10"].values()))),
            "MAP": float(np.mean(list(scores["MAP"].values()))),
            "rankings": rankings,
        }


def deepcopy_of(trust: Reliability) -> Reliability:
    """The teacher's record at one moment."""
    return Reliability.from_dict(trust.to_dict())


def frozen(store: SimpleKVStore) -> Frozen:
    """The store at one moment."""
    return Frozen(deepcopy(store.to_dict()))


def row(name: str, found: dict[str, Any], best: dict[str, Any]) -> str:
    """One row of the table."""
    shares = [f"{found[metric]:.3f} ({found[metric] / best[metric]:.1%})" for metric in ("nDCG@10", "MAP")]
    return f"| {name} | {found['calls']:.1f} | {found['borrowing']:.0%} | {' | '.join(shares)} |"


def report(folder: Path, model: str, teacher: str, options: dict[str, Any]) -> list[str]:
    """Measure one collection with one teacher."""
    one = Stream(folder, model, teacher, options)
    tested = range(STREAM, STREAM + TESTED)
    trust, store, kept = Reliability(), SimpleKVStore(), {0: (frozen(SimpleKVStore()), Reliability())}
    for begin, end in ((0, 100), (100, STREAM)):
        one.fill(range(begin, end), store, trust, set())
        kept[end] = frozen(store), deepcopy_of(trust)
    practised = kept[STREAM][1]
    best = one.measure(tested, None, FEEDBACK, practised)
    lines = [
        f"### {one.data.name}, {model}, {teacher}",
        "",
        "| memory | calls a query | borrow | nDCG@10 | MAP |",
        "|---|---|---|---|---|",
        row("none", best, best),
    ]
    for count in (15, 10, 5):
        lines.append(row(f"none, feedback_top_k={count}", one.measure(tested, None, count, practised), best))
    for queries, (snapshot, _) in kept.items():
        lines.append(row(f"after {queries} queries", one.measure(tested, snapshot, FEEDBACK, practised), best))
    for count in (13, 10):
        whole = one.measure(tested, kept[STREAM][0], count, practised)
        lines.append(row(f"after {STREAM}, feedback_top_k={count}", whole, best))
    store = SimpleKVStore()
    one.fill(range(STREAM), store, Reliability(), set())
    again = one.measure(range(0, 50), frozen(store), FEEDBACK, practised)
    first = one.measure(range(0, 50), None, FEEDBACK, practised)
    lines.append(row("50 queries asked again, against the first time", again, first))
    names = sorted(set(one.intents))
    theirs = set(names[::3])
    poisoned = {at for at in range(STREAM) if one.intents[at] in theirs}
    spoilt = SimpleKVStore()
    one.fill(range(STREAM), spoilt, Reliability(), poisoned)
    for name, at_them in (("own", True), ("other", False)):
        asked = [at for at in tested if (one.intents[at] in theirs) == at_them]
        without = one.measure(asked, None, FEEDBACK, practised)
        clean = one.measure(asked, kept[STREAM][0], FEEDBACK, practised)
        spoiled = one.measure(asked, frozen(spoilt), FEEDBACK, practised)
        for label, found in (("clean", clean), ("poisoned", spoiled)):
            lines.append(row(f"{label}, {len(asked)} queries of {name} topics", found, without))
        if not at_them:
            without_them = SimpleKVStore(deepcopy(spoilt.to_dict()))
            RefinementMemory(without_them).forget(user=USER)
            forgotten = one.measure(asked, frozen(without_them), FEEDBACK, practised)
            moved = [
                sum(other["rankings"][query][:10] != ranking[:10] for query, ranking in spoiled["rankings"].items())
                for other in (forgotten, clean)
            ]
            lines.append(
                f"\nFirst ten of other topics that the poison moved: {moved[0]} of {len(asked)} against the same "
                f"memory once that user is forgotten, {moved[1]} against one where the user graded rightly."
            )
    return [*lines, ""]


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--embed-model", action="append")
    parser.add_argument("--teacher", action="append")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("llama_index_refine").setLevel(logging.ERROR)
    np.random.seed(0)
    lines: list[str] = []
    for folder in arguments.folders:
        for model in arguments.embed_model or ["minilm"]:
            for teacher in arguments.teacher or ["gold", "noisy"]:
                lines += report(folder, model, teacher, {"early_stop": False})
                sys.stdout.write("\n".join(lines[-16:]) + "\n")
                sys.stdout.flush()
    if arguments.out:
        arguments.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
