"""Multivectors: MaxSim on token vectors, refined through the retriever, beside the same grades used otherwise.

    python -m results.multivectors data/argkp --out results/multivectors.md

Documents are matrices of all-MiniLM-L6-v2's token vectors, each of length 1, in a Qdrant collection in memory. All
documents of a query's group are compared and ranked; in the second table a dense search first chooses --prefetch of
them, and ten are returned.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from llama_index.core import MockEmbedding
from qdrant_client import QdrantClient, models
from sentence_transformers import SentenceTransformer

from llama_index_refine import RefinedRetriever
from llama_index_refine.evaluation.corpus import Corpus, filters_of, read_vectors
from llama_index_refine.evaluation.datasets import Dataset, load_folder
from llama_index_refine.evaluation.embeddings import PACKAGED, SentenceTransformerEmbedding
from llama_index_refine.evaluation.metrics import CUTOFF, score_rankings
from llama_index_refine.evaluation.peers.matrices import MatrixEvidence, MatrixGradient, MatrixRerank, MaxSim
from llama_index_refine.evaluation.teachers import make_teacher, node_id
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.qdrant.edge import EdgeClient
from llama_index_refine.refining.trust import Reliability

TEACHERS = ("gold", "noisy")
PEERS = (MaxSim(), MatrixRerank(), MatrixGradient())
STAGES = ("embed", "search", "fetch", "refine")
GRADED = 20
WRITTEN = 64

Matrix = np.ndarray
Rankings = dict[str, list[str]]


def encoder() -> Callable[[Sequence[str]], list[Matrix]]:
    """Return what makes of each text the vectors of its tokens, (T, d), of length 1."""
    model: SentenceTransformer = SentenceTransformerEmbedding(PACKAGED)._model

    def encode(texts: Sequence[str]) -> list[Matrix]:
        found = model.encode(list(texts), output_value="token_embeddings", show_progress_bar=False)
        matrices = [np.asarray(one.cpu(), dtype=np.float32) for one in found]
        return [matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in matrices]

    return encode


def write(client: Any, corpus: Corpus, matrices: Mapping[int, Matrix], distance: models.Distance) -> Any:
    """Write a collection with the vector and the matrix of each document that a query searches."""
    size = {"dense": corpus.document_vectors.shape[1], "tokens": next(iter(matrices.values())).shape[1]}
    late = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    client.create_collection(
        "docs",
        {
            "dense": models.VectorParams(size=size["dense"], distance=models.Distance.COSINE),
            "tokens": models.VectorParams(size=size["tokens"], distance=distance, multivector_config=late),
        },
    )
    rows = list(matrices)
    for start in range(0, len(rows), WRITTEN):
        points = []
        for row in rows[start : start + WRITTEN]:
            document = corpus.dataset.documents[row]
            vector = {"dense": corpus.document_vectors[row].tolist(), "tokens": matrices[row].tolist()}
            payload = {"text": document.text, "document": document.id, "group": list(document.groups)}
            points.append(models.PointStruct(id=node_id(document.id), vector=vector, payload=payload))
        client.upsert("docs", points)
    return client


def refined(corpus: Corpus, client: Any, teacher: BaseGrader, encode: Any, **options: Any) -> dict[str, Any]:
    """Ask all queries of a corpus; the rankings before and after, and milliseconds a query beside the teacher."""
    retrievers: dict[tuple[str | None, str | None], RefinedRetriever] = {}
    rankings: dict[str, Rankings] = {"before": {}, "after": {}}
    record, seconds = Reliability(), []
    for row, query in enumerate(corpus.queries):
        where = query.group, query.exclude
        if where not in retrievers:
            retrievers[where] = RefinedRetriever.from_collection(
                client,
                "docs",
                text_key="text",
                vector_name="tokens",
                multivector_query_fn=encode,
                embed_model=MockEmbedding(embed_dim=corpus.query_vectors.shape[1]),
                grader=teacher,
                feedback_top_k=GRADED,
                filters=filters_of(query),
                trust=record,
                on_error="raise",
                **options,
            )
        bundle = corpus.bundle(row)
        if "prefetch_vector_name" not in options:
            bundle.embedding = None
        found = retrievers[where].refine(bundle)
        for name, nodes in (("before", found.nodes_before), ("after", found.nodes)):
            rankings[name][query.id] = [str(entry.node.metadata["document"]) for entry in nodes]
        seconds.append({stage: spent for stage, spent in found.timings.items() if stage != "grade"})
    spent = {stage: 1e3 * float(np.median([one.get(stage, 0.0) for one in seconds])) for stage in STAGES}
    return {**rankings, "milliseconds": spent}


def times(
    corpus: Corpus, matrices: Mapping[int, Matrix], teacher: BaseGrader, encode: Any, kwargs: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Milliseconds a query in Qdrant's own engine, all documents compared and after a dense search, ten returned."""
    with TemporaryDirectory() as folder:
        client = write(EdgeClient(folder), corpus, matrices, models.Distance.COSINE)
        client.optimize("docs")
        # What is known of a collection is shared: the second time, neither it nor the background is read again.
        for _ in range(2):
            ways = {"all compared": refined(corpus, client, teacher, encode)["milliseconds"]}
        for _ in range(2):
            ways["after a dense search"] = refined(corpus, client, teacher, encode, **kwargs)["milliseconds"]
        client.close()
    return ways


def peers(corpus: Corpus, matrices: Mapping[int, Matrix], teacher: BaseGrader, encode: Any) -> dict[str, Rankings]:
    """Rank by what else can be done with the same grades."""
    rankings: dict[str, Rankings] = {peer.name: {} for peer in PEERS}
    for row, query in enumerate(corpus.queries):
        pool = corpus.dataset.pool(query)
        first = MatrixEvidence(
            encode([query.text])[0], [matrices[at] for at in pool], np.empty(0, np.intp), np.empty(0)
        )
        top = np.argsort(-MaxSim().scores(first), kind="stable")[:GRADED]
        grades = teacher.grade(corpus.bundle(row), [corpus.nodes[pool[place]] for place in top])
        evidence = MatrixEvidence(first.query, first.documents, top, np.array(grades, dtype=np.float32))
        for peer in PEERS:
            order = np.argsort(-peer.scores(evidence), kind="stable")[:CUTOFF]
            rankings[peer.name][query.id] = [corpus.dataset.documents[pool[place]].id for place in order]
    return rankings


def mean(metric: str, rankings: Rankings, corpus: Corpus) -> float:
    """The mean of a metric over the queries."""
    labels = {query.id: corpus.dataset.qrels[query.id] for query in corpus.queries}
    return float(np.mean(list(score_rankings(rankings, labels)[metric].values())))


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--max-queries", type=int, default=25)
    parser.add_argument("--prefetch", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Local mode is not recommended", UserWarning)
    encode = encoder()
    whole, after, took = [], [], []
    for folder in args.data:
        dataset: Dataset = load_folder(folder)
        corpus = read_vectors(dataset, PACKAGED, dataset.sample(args.max_queries, 1))
        searched = sorted({int(row) for query in corpus.queries for row in dataset.pool(query)})
        matrices = dict(zip(searched, encode([dataset.documents[row].text for row in searched]), strict=True))
        clients = {
            one.value: write(QdrantClient(":memory:"), corpus, matrices, one)
            for one in (models.Distance.COSINE, models.Distance.DOT)
        }
        kwargs = {"prefetch_vector_name": "dense", "vector_store_kwargs": {"prefetch_limit": args.prefetch}}
        for name in TEACHERS:
            teacher = make_teacher(name, dataset)
            found = peers(corpus, matrices, teacher, encode)
            for distance, client in clients.items():
                measured = refined(corpus, client, teacher, encode, similarity_top_k=CUTOFF)
                found[f"refined, {distance}"] = measured["after"]
            for method, rankings in found.items():
                values = [mean(metric, rankings, corpus) for metric in ("MAP", "nDCG@10")]
                whole.append(f"| {dataset.name} | {name} | {method} | {values[0]:.3f} | {values[1]:.3f} |")
                print(whole[-1], flush=True)
            measured = refined(corpus, clients["Cosine"], teacher, encode, **kwargs)
            values = [mean("nDCG@10", measured[when], corpus) for when in ("before", "after")]
            after.append(f"| {dataset.name} | {name} | {values[0]:.3f} | {values[1]:.3f} |")
            print(after[-1], flush=True)
        for way, spent in times(corpus, matrices, make_teacher(TEACHERS[0], dataset), encode, kwargs).items():
            cells = " | ".join(f"{spent[stage]:.1f}" for stage in STAGES)
            took.append(f"| {dataset.name} | {way} | {cells} |")
    lines = [
        "# Multivectors",
        "",
        f"`python -m results.multivectors {' '.join(f'data/{folder.name}' for folder in args.data)}`: "
        f"{args.max_queries} queries a collection, {GRADED} graded documents, all-MiniLM-L6-v2's token vectors of "
        f"length 1, Qdrant in memory; {platform.system()}, {platform.machine()}, Python {platform.python_version()}.",
        "",
        "All documents are compared by MaxSim. `gradient` is the published procedure on the matrix: Adam, "
        f"{MatrixGradient().steps} steps of {MatrixGradient().rate:g}. After `refined` stands the collection's "
        "distance. By Cosine, Qdrant makes each token of the refined query of length 1; by Dot, their lengths weigh.",
        "",
        "| collection | teacher | method | MAP | nDCG@10 |",
        "|---|---|---|---:|---:|",
        *whole,
        "",
        f"After a dense search for {args.prefetch} documents, which MaxSim compares; both queries are refined:",
        "",
        "| collection | teacher | nDCG@10 of the first search | refined |",
        "|---|---|---:|---:|",
        *after,
        "",
        "Milliseconds a query beside the teacher, medians, in Qdrant Edge, ten returned. `embed` is the model, "
        "`search` and `fetch` are all requests to Qdrant, `refine` is this package:",
        "",
        "| collection | | " + " | ".join(STAGES) + " |",
        "|---|---|" + "---:|" * len(STAGES),
        *took,
    ]
    text = "\n".join([*lines, ""])
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
