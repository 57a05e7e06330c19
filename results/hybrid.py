"""Hybrid search with both halves refined, beside what else the same grades can do.

    python -m results.hybrid data/cranfield data/argkp data/clinc150 --out results/hybrid.md

Sparse vectors are BM25's, in the form in which Qdrant's IDF modifier weighs them: scikit-learn counts words, documents
have saturated counts, queries ones. Everything but the peers goes through the retriever, end to end, with Qdrant's
engine inside the process; MAP and nDCG@10 of rankings of a thousand. The retriever is kept for all queries of a
collection, as an application would keep it.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import MockEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from llama_index_refine import BaseGrader, RefinedRetriever, Refinement
from llama_index_refine.evaluation.corpus import Corpus, filters_of, read_vectors
from llama_index_refine.evaluation.datasets import load_folder
from llama_index_refine.evaluation.metrics import score_rankings
from llama_index_refine.evaluation.peers.words import (
    Fused,
    FusedRerank,
    HybridRocchio,
    RelevanceModel,
    WordEvidence,
    WordPeer,
    WordRocchio,
)
from llama_index_refine.evaluation.teachers import make_teacher
from llama_index_refine.qdrant.edge import EdgeClient
from llama_index_refine.refining.trust import Reliability

TEACHERS = {"gold": "exact", "noisy": "noisy", "strict": "strict", "lenient": "lenient"}
MODES = {"dense": "dense, refined", "sparse": "sparse, refined", "hybrid": "hybrid, refined"}
PEERS: Sequence[WordPeer] = (FusedRerank(), WordRocchio(), RelevanceModel(), HybridRocchio())
DEPTH, GRADED = 1000, 20
SATURATION, LENGTH = 1.2, 0.75

Encoded = tuple[list[list[int]], list[list[float]]]


class Bm25:
    """BM25's weights by scikit-learn's counts: a document's without IDF, and ones for a query's terms.

    :param texts: the collection's.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._counter = CountVectorizer(stop_words="english")
        self.documents = self._saturated(self._counter.fit_transform(texts))
        holding = np.bincount(self.documents.indices, minlength=self.documents.shape[1])
        self.idf = np.log1p((len(texts) - holding + 0.5) / (holding + 0.5)).astype(np.float32)

    def _saturated(self, counts: csr_matrix) -> csr_matrix:
        lengths = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
        if not hasattr(self, "_usual"):
            self._usual = float(lengths.mean())
        norms = SATURATION * (1 - LENGTH + LENGTH * lengths / self._usual)
        weights = counts.astype(np.float32)
        weights.data = weights.data * (SATURATION + 1) / (weights.data + np.repeat(norms, np.diff(weights.indptr)))
        return weights.tocsr().astype(np.float32)

    def of_documents(self, texts: list[str]) -> Encoded:
        """Encode documents as LlamaIndex wants them."""
        return _rows(self._saturated(self._counter.transform(texts)))

    def of_queries(self, texts: list[str]) -> Encoded:
        """Encode queries as LlamaIndex wants them."""
        indices, values = _rows(self._counter.transform(texts))
        return indices, [[1.0] * len(row) for row in values]

    def query(self, text: str) -> Any:
        """(V,) a query's weights, IDF and all."""
        return (np.asarray(self._counter.transform([text]).todense()).ravel() > 0) * self.idf


def _rows(weights: csr_matrix) -> Encoded:
    spans = list(zip(weights.indptr[:-1], weights.indptr[1:], strict=True))
    return [weights.indices[a:b].tolist() for a, b in spans], [weights.data[a:b].tolist() for a, b in spans]


def store_of(corpus: Corpus, bm25: Bm25, client: Any) -> QdrantVectorStore:
    """Write a corpus with both kinds of vectors into a collection."""
    store = QdrantVectorStore(
        collection_name="hybrid",
        client=client,
        enable_hybrid=True,
        sparse_doc_fn=bm25.of_documents,
        sparse_query_fn=bm25.of_queries,
        sparse_config=models.SparseVectorParams(modifier=models.Modifier.IDF),
        batch_size=1024,
    )
    pairs = zip(corpus.nodes, corpus.document_vectors, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        store.add([node.model_copy(update={"embedding": vector.tolist()}) for node, vector in pairs])
    return store


def retrieve(
    corpus: Corpus, store: QdrantVectorStore, teacher: BaseGrader, mode: str, options: dict[str, Any]
) -> list[Refinement]:
    """Refine all queries of a corpus in one of LlamaIndex's query modes."""
    retrievers: dict[Any, RefinedRetriever] = {}
    record, found = Reliability(), []
    for row, query in enumerate(corpus.queries):
        where = query.group, query.exclude
        if where not in retrievers:
            retrievers[where] = RefinedRetriever(
                store,
                MockEmbedding(embed_dim=corpus.query_vectors.shape[1]),
                teacher,
                similarity_top_k=DEPTH,
                feedback_top_k=GRADED,
                filters=filters_of(query),
                vector_store_query_mode={"dense": "default"}.get(mode, mode),
                trust=record,
                on_error="raise",
                **options,
            )
        found.append(retrievers[where].refine(corpus.bundle(row)))
    return found


def evidence_of(corpus: Corpus, bm25: Bm25, row: int, teacher: BaseGrader) -> WordEvidence:
    """Have the first documents of the fused search graded, for the peers."""
    places, documents = corpus.searched(corpus.queries[row])
    words = bm25.documents[places].multiply(np.sqrt(bm25.idf)[None]).tocsr()
    weights = bm25.query(corpus.queries[row].text) / np.sqrt(bm25.idf)
    bare = WordEvidence(corpus.query_vectors[row], documents, weights, words, np.empty(0, int), np.empty(0))
    first = np.argsort(-Fused().scores(bare), kind="stable")[:GRADED]
    grades = teacher.grade(corpus.bundle(row), [corpus.nodes[places[at]] for at in first])
    return WordEvidence(bare.query, documents, weights, words, first, np.array(grades, dtype=np.float32))


def scored(corpus: Corpus, rankings: Sequence[list[str]]) -> tuple[float, float]:
    """MAP and nDCG@10 of the rankings of all queries."""
    ids = [query.id for query in corpus.queries]
    by_query = score_rankings(dict(zip(ids, rankings, strict=True)), {name: corpus.dataset.qrels[name] for name in ids})
    return float(np.mean(list(by_query["MAP"].values()))), float(np.mean(list(by_query["nDCG@10"].values())))


def ranked_by(corpus: Corpus, row: int, scores: Any) -> list[str]:
    """Rank the documents that a query searches."""
    places, _ = corpus.searched(corpus.queries[row])
    return [corpus.dataset.documents[places[at]].id for at in np.argsort(-scores, kind="stable")[:DEPTH]]


def measured(
    corpus: Corpus,
    bm25: Bm25,
    store: QdrantVectorStore,
    teacher: BaseGrader,
    modes: Sequence[str],
    alphas: Sequence[float | None],
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Measure the first search, the peers and the retriever with one teacher."""
    evidence = [evidence_of(corpus, bm25, row, teacher) for row in range(len(corpus.queries))]
    for peer in (Fused(), *PEERS):
        rankings = [ranked_by(corpus, row, peer.scores(known)) for row, known in enumerate(evidence)]
        yield peer.name, scored(corpus, rankings)
    for mode in modes:
        for alpha in alphas if mode == "hybrid" else [None]:
            found = retrieve(corpus, store, teacher, mode, {} if alpha is None else {"alpha": alpha})
            rankings = [[str(entry.node.metadata["document"]) for entry in one.nodes] for one in found]
            yield MODES[mode] + (f", alpha {alpha}" if alpha is not None else ""), scored(corpus, rankings)


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--embed-model", default="minilm")
    parser.add_argument("--max-queries", type=int, default=40)
    parser.add_argument("--teacher", action="append", choices=list(TEACHERS))
    parser.add_argument("--mode", action="append", choices=list(MODES))
    parser.add_argument("--alpha", type=float, action="append", help="shares to try instead of none")
    parser.add_argument("--in-memory", action="store_true", help="qdrant-client's local mode, which is slow, not Edge")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    teachers = args.teacher or list(TEACHERS)
    lines = [
        "# Hybrid, both halves refined",
        "",
        f"`python -m results.hybrid {' '.join(f'data/{folder.name}' for folder in args.data)}`: {args.max_queries} "
        f"queries a collection, {args.embed_model} vectors and BM25 weights, {GRADED} grades; MAP and nDCG@10. "
        f"{platform.system()}, {platform.machine()}, Python {platform.python_version()}.",
    ]
    for folder in args.data:
        dataset = load_folder(folder)
        corpus = read_vectors(dataset, args.embed_model, dataset.sample(args.max_queries, 1))
        bm25 = Bm25([document.text for document in dataset.documents])
        client: Any = QdrantClient(":memory:") if args.in_memory else EdgeClient(tempfile.mkdtemp())
        store = store_of(corpus, bm25, client)
        rows: dict[str, list[str]] = {}
        for name in teachers:
            teacher = make_teacher(name, dataset)
            for label, values in measured(corpus, bm25, store, teacher, args.mode or list(MODES), args.alpha or [None]):
                rows.setdefault(label, []).append(" / ".join(f"{value:.3f}" for value in values))
                print(folder.name, name, label, rows[label][-1], flush=True)
        lines += ["", f"## {folder.name}", "", f"| | {' | '.join(TEACHERS[name] for name in teachers)} |"]
        lines += ["|---|" + "---:|" * len(teachers)]
        lines += [f"| {label} | {' | '.join(values)} |" for label, values in rows.items()]
    text = "\n".join([*lines, ""])
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
