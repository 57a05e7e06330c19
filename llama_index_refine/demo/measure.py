"""What the demo measures: no feedback, reranking and refining, with the same teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from llama_index.vector_stores.qdrant import QdrantVectorStore

from llama_index_refine.evaluation.corpus import Corpus
from llama_index_refine.evaluation.measuring import Judge, gather, measure_peer, measure_refined
from llama_index_refine.evaluation.peers.plain import NoFeedback, Rerank
from llama_index_refine.evaluation.results import Distribution, Measured
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.refinement import Refinement
from llama_index_refine.retriever import RefinedRetriever

GRADED = 20
"""Documents graded for each query, by reranking and refining alike."""

SHOWN = 10


@dataclass(frozen=True)
class Gain:
    """What was measured.

    :param plain: no feedback.
    :param reranked: the first `GRADED` documents sorted by grade.
    :param refined: the retriever.
    :param distribution: similarities of relevant and irrelevant documents, before and after.
    """

    plain: Measured
    reranked: Measured
    refined: Measured
    distribution: Distribution

    def differences(self) -> list[float]:
        """How much average precision each query gained."""
        pairs = zip(self.refined.per_query["MAP"], self.plain.per_query["MAP"], strict=True)
        return [after - before for after, before in pairs]

    def by_gain(self) -> list[int]:
        """The queries' places, the one that gained most first."""
        differences = self.differences()
        return sorted(range(len(differences)), key=lambda place: -differences[place])


def measure(corpus: Corpus, store: QdrantVectorStore, grader: BaseGrader, advance: Callable[[], None]) -> Gain:
    """Measure all queries of a corpus.

    :param corpus: the sample with its vectors.
    :param store: the collection.
    :param grader: the teacher; it is asked about a document twice where both methods grade it.
    :param advance: called twice for each query.
    :return: what was measured.
    """
    judge = Judge(corpus)
    evidence, bills = gather(corpus, grader, GRADED, advance)
    plain, reranked = measure_peer(NoFeedback(), evidence, judge, []), measure_peer(Rerank(), evidence, judge, bills)
    refined, distribution = measure_refined(corpus, store, grader, GRADED, judge, {}, advance)
    return Gain(plain, reranked, refined, distribution)


@dataclass(frozen=True)
class Example:
    """One query, and each document's rank before, from 1."""

    refinement: Refinement
    ranks: dict[str, int]
    relevant: set[str]


def example(corpus: Corpus, store: QdrantVectorStore, grader: BaseGrader, row: int) -> Example:
    """Retrieve for one query, for all to see.

    :param row: the query's place among those of the corpus.
    :return: the refinement, and the whole ranking before.
    """
    retriever = RefinedRetriever(
        vector_store=store, embed_model=corpus.embed_model, grader=grader, similarity_top_k=SHOWN, feedback_top_k=GRADED
    )
    order = np.argsort(-(corpus.document_vectors @ corpus.query_vectors[row]), kind="stable")
    documents = corpus.dataset.documents
    ranks = {documents[place].id: rank for rank, place in enumerate(order, 1)}
    relevant = {documents[place].id for place in corpus.dataset.relevant(corpus.queries[row])}
    return Example(retriever.refine(corpus.bundle(row)), ranks, relevant)
