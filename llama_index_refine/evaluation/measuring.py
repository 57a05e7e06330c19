"""What one method makes of all queries of a corpus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from llama_index.core.embeddings import MockEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from numpy.typing import NDArray

from llama_index_refine.evaluation.cache import ReplayingGrader
from llama_index_refine.evaluation.corpus import Corpus, filters_of, same_samples
from llama_index_refine.evaluation.datasets import Query
from llama_index_refine.evaluation.metrics import CUTOFF, area_under_roc, class_gap, p_mrr, score_rankings
from llama_index_refine.evaluation.peers import Bill, Evidence, Peer
from llama_index_refine.evaluation.results import Distribution, Measured
from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.retriever import RefinedRetriever

_EDGES = np.arange(-4.0, 8.25, 0.25)


class Judge:
    """Knows the labels of a corpus and scores what a method returns for its queries."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.ids = [query.id for query in corpus.queries]
        self.labels = {query.id: corpus.dataset.qrels[query.id] for query in corpus.queries}
        self.searched = [corpus.dataset.pool(query) for query in corpus.queries]
        self.relevant = [
            self._is_relevant(query, rows) for query, rows in zip(corpus.queries, self.searched, strict=True)
        ]

    def _is_relevant(self, query: Query, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        flags = np.zeros(len(self.corpus.dataset.documents), dtype=bool)
        flags[list(self.corpus.dataset.relevant(query))] = True
        found: NDArray[np.bool_] = flags[rows]
        return found

    def rank(self, scores: Sequence[NDArray[np.float32]]) -> dict[str, list[str]]:
        """Scores of the searched documents to rankings by document id."""
        documents = self.corpus.dataset.documents
        return {
            name: [documents[rows[place]].id for place in np.argsort(-own, kind="stable")[:CUTOFF]]
            for name, rows, own in zip(self.ids, self.searched, scores, strict=True)
        }

    def measure(self, rankings: Mapping[str, Sequence[str]], scores: Sequence[NDArray[np.float32]]) -> Measured:
        """All metrics of rankings, and the separation of the classes by scores."""
        by_query = score_rankings(rankings, self.labels)
        per_query = {metric: [values[name] for name in self.ids] for metric, values in by_query.items()}
        classes = [(own[flags], own[~flags]) for own, flags in zip(scores, self.relevant, strict=True)]
        per_query["ROC AUC"] = [area_under_roc(*pair) for pair in classes]
        per_query["class gap"] = [class_gap(*pair) for pair in classes]
        return Measured(per_query, p_mrr(rankings, self.corpus.dataset.changed))

    def drop_excluded(self, scores: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Scores of all documents in a query's group to those of the documents that it searches."""
        found = []
        for query, own in zip(self.corpus.queries, scores, strict=True):
            rows, _ = self.corpus.searched(query)
            excluded = self.corpus.dataset.rows.get(query.exclude or "", -1)
            found.append(own if query.exclude is None else own[rows != excluded])
        return found


def gather(
    corpus: Corpus, grader: BaseGrader, k: int, advance: Callable[[], None]
) -> tuple[list[Evidence], list[Bill]]:
    """Search each query and have the first k documents graded. :return: evidence and bill of each query."""
    evidence, bills = [], []
    for row, query in enumerate(corpus.queries):
        rows, documents = corpus.searched(query)
        vector = corpus.query_vectors[row]
        scores = documents @ vector
        if query.exclude is not None:
            scores[rows == corpus.dataset.rows.get(query.exclude, -1)] = -np.inf
        top = np.argsort(-scores, kind="stable")[: min(k, int(np.isfinite(scores).sum()))]
        started, replayed = time.perf_counter(), _replayed(grader)
        with Account().active() as account:
            grades = grader.grade(corpus.bundle(row), [corpus.nodes[rows[place]] for place in top])
        seconds = time.perf_counter() - started + _replayed(grader) - replayed
        kept = [place for place, grade in zip(top, grades, strict=True) if grade is not None]
        texts = [corpus.dataset.documents[rows[place]].text for place in kept]
        known = np.array([grade for grade in grades if grade is not None], dtype=np.float32)
        relevant = np.isin(rows, list(corpus.dataset.relevant(query)))
        evidence.append(Evidence(vector, documents, np.array(kept, dtype=np.intp), known, query.text, texts, relevant))
        bills.append(Bill(account.calls, account.prompt_tokens, account.completion_tokens, seconds))
        advance()
    return evidence, bills


def measure_peer(peer: Peer, evidence: Sequence[Evidence], judge: Judge, bills: Sequence[Bill]) -> Measured:
    """Measure a peer; of several candidates the one with the best MAP.

    :param bills: what the teacher charged for each query, empty for a peer that needs no grades.
    """
    best: tuple[float, Peer, Measured] | None = None
    for candidate in peer.candidates():
        started = time.perf_counter()
        scores = judge.drop_excluded(candidate.scores(evidence))
        seconds = time.perf_counter() - started
        measured = judge.measure(judge.rank(scores), scores)
        if not candidate.similarities:
            measured.per_query["class gap"] = [float("nan")] * len(scores)
        measured.seconds = {"method": seconds / len(evidence)}
        if best is None or measured.mean("MAP") > best[0]:
            best = measured.mean("MAP"), candidate, measured
    assert best is not None
    _, candidate, measured = best
    if len(peer.candidates()) > 1:
        measured.settings = candidate.settings
    _charge(measured, [*bills, candidate.bill], len(evidence))
    if bills:
        measured.seconds["grade"] = sum(bill.seconds for bill in bills) / len(bills)
    return measured


def measure_refined(
    corpus: Corpus,
    store: QdrantVectorStore,
    grader: BaseGrader,
    k: int,
    judge: Judge,
    options: Mapping[str, object],
    advance: Callable[[], None],
) -> tuple[Measured, Distribution]:
    """Measure the retriever end to end, keeping one for each filter, as an application would."""
    retrievers: dict[tuple[str | None, str | None], RefinedRetriever] = {}
    rankings, scores, bills = {}, [], []
    seconds: dict[str, float] = {}
    for row, query in enumerate(corpus.queries):
        where = query.group, query.exclude
        if where not in retrievers:
            retrievers[where] = RefinedRetriever(
                vector_store=store,
                embed_model=MockEmbedding(embed_dim=corpus.query_vectors.shape[1]),
                grader=grader,
                similarity_top_k=CUTOFF,
                feedback_top_k=k,
                filters=filters_of(query),
                **options,  # type: ignore[arg-type]
            )
        replayed = _replayed(grader)
        with same_samples(row):
            refinement = retrievers[where].refine(corpus.bundle(row))
        rankings[query.id] = [str(node.node.metadata["document"]) for node in refinement.nodes]
        vector = np.asarray(refinement.vector, dtype=np.float32)
        scores.append(corpus.searched(query)[1] @ (vector / max(float(np.linalg.norm(vector)), 1e-12)))
        bills.append(Bill(refinement.llm_calls, refinement.prompt_tokens, refinement.completion_tokens))
        timings = {**refinement.timings, "grade": refinement.timings.get("grade", 0.0) + _replayed(grader) - replayed}
        for stage, spent in timings.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent / len(corpus.queries)
        advance()
    after = judge.drop_excluded(scores)
    measured = judge.measure(rankings, after)
    measured.seconds = seconds
    _charge(measured, bills, len(corpus.queries))
    before = [corpus.searched(query)[1] @ corpus.query_vectors[row] for row, query in enumerate(corpus.queries)]
    return measured, _distribution(judge, judge.drop_excluded(before), after)


def _replayed(grader: BaseGrader) -> float:
    """Seconds that the teacher once took for the grades that came from the cache so far."""
    return grader.seconds if isinstance(grader, ReplayingGrader) else 0.0


def _charge(measured: Measured, bills: Sequence[Bill], queries: int) -> None:
    measured.llm_calls = sum(bill.calls for bill in bills) / queries
    measured.prompt_tokens = sum(bill.prompt_tokens for bill in bills) / queries
    measured.completion_tokens = sum(bill.completion_tokens for bill in bills) / queries


def _distribution(
    judge: Judge, before: Sequence[NDArray[np.float32]], after: Sequence[NDArray[np.float32]]
) -> Distribution:
    counts: dict[str, NDArray[np.intp]] = {}
    for when, scores in (("before", before), ("after", after)):
        for own, relevant in zip(scores, judge.relevant, strict=True):
            standard = np.clip((own - own.mean()) / max(float(own.std()), 1e-12), _EDGES[0], _EDGES[-1])
            for kind, chosen in (("relevant", standard[relevant]), ("irrelevant", standard[~relevant])):
                histogram = np.histogram(chosen, _EDGES)[0]
                counts[f"{kind} {when}"] = counts.get(f"{kind} {when}", np.zeros_like(histogram)) + histogram
    return Distribution(_EDGES.tolist(), {name: values.tolist() for name, values in counts.items()})
