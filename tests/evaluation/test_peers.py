"""Peers held to Qdrant itself, to the published procedure, and to formulas written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient, models

from llama_index_refine.evaluation.metrics import score_rankings
from llama_index_refine.evaluation.peers import PEERS, Evidence, choose_peers
from llama_index_refine.evaluation.peers.gradient import Paper, ReFIT
from llama_index_refine.evaluation.peers.plain import NoFeedback, Rerank
from llama_index_refine.evaluation.peers.qdrant import (
    QdrantFeedback,
    QdrantFeedbackTuned,
    QdrantRecommend,
    Weights,
    feedback_vector,
    fit_weights,
)
from llama_index_refine.evaluation.peers.rocchio import Rocchio
from llama_index_refine.refining.published import PublishedRefiner

D, N, K = 24, 300, 12


def make_evidence(seed: int, k: int = K, quality: float = 1.0) -> Evidence:
    """A query between two directions, of which the documents with the second are relevant."""
    rng = np.random.default_rng(seed)
    first, second = np.linalg.qr(rng.normal(size=(D, 2)))[0].T
    relevant = rng.random(N) < 0.2
    documents = first + 0.25 * rng.normal(size=(N, D)) + 0.5 * relevant[:, None] * second
    documents = (documents / np.linalg.norm(documents, axis=1, keepdims=True)).astype(np.float32)
    query = (first / np.linalg.norm(first)).astype(np.float32)
    graded = np.argsort(-documents @ query)[:k]
    grades = np.clip(quality * relevant[graded] + 0.2 * rng.random(k), 0, 1).astype(np.float32)
    return Evidence(query, documents, graded, grades, relevant=relevant)


EVIDENCE = [make_evidence(seed, k=12 if seed % 3 else 9) for seed in range(8)]


def in_qdrant(evidence: Evidence, query: models.Query) -> np.ndarray:
    """The scores that Qdrant gives all documents for a query of its own."""
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=D, distance=models.Distance.COSINE))
    points = [models.PointStruct(id=i, vector=vector.tolist()) for i, vector in enumerate(evidence.documents)]
    client.upsert("c", points)
    found = client.query_points("c", query=query, limit=N).points
    scores = np.full(N, np.nan)
    for point in found:
        scores[int(point.id)] = point.score
    return scores


@pytest.mark.parametrize(
    "weights", [Weights(), Weights(0.4, 0.3, 0.02), Weights(1.0, 2.0, 0.3), Weights(1.0, 0.0, 0.1)]
)
def test_feedback_vector_ranks_as_qdrants_query(weights: Weights) -> None:
    evidence = EVIDENCE[1]
    feedback = [
        models.FeedbackItem(example=vector.tolist(), score=float(grade))
        for vector, grade in zip(evidence.graded_documents, evidence.grades, strict=True)
    ]
    strategy = models.NaiveFeedbackStrategy(
        naive=models.NaiveFeedbackStrategyParams(a=weights.a, b=weights.b, c=weights.c)
    )
    target = models.RelevanceFeedbackInput(target=evidence.query.tolist(), feedback=feedback, strategy=strategy)
    theirs = in_qdrant(evidence, models.RelevanceFeedbackQuery(relevance_feedback=target))
    np.testing.assert_allclose(evidence.documents @ feedback_vector(evidence, weights), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strategy", list(models.RecommendStrategy))
def test_recommendation_ranks_as_qdrants_query(strategy: models.RecommendStrategy) -> None:
    evidence = EVIDENCE[1]
    relevant = evidence.grades >= 0.5
    positive = [evidence.query.tolist(), *evidence.graded_documents[relevant].tolist()]
    negative = evidence.graded_documents[~relevant].tolist()
    recommend = models.RecommendInput(positive=positive, negative=negative, strategy=strategy)
    theirs = in_qdrant(evidence, models.RecommendQuery(recommend=recommend))
    (ours,) = [peer for peer in QdrantRecommend().candidates() if peer.settings == strategy.value]
    rankings = np.argsort(-ours.scores([evidence])[0]), np.argsort(-theirs)
    assert (rankings[0] == rankings[1]).mean() > 0.98


def test_recommendation_without_negative_examples() -> None:
    evidence = replace(EVIDENCE[0], grades=np.ones_like(EVIDENCE[0].grades))
    for peer in QdrantRecommend().candidates():
        assert np.isfinite(peer.scores([evidence])[0]).all()


@pytest.mark.parametrize("rate", [1e-4, 1e-3])
def test_paper_in_a_batch_is_the_published_procedure(rate: float) -> None:
    batch = Paper(rate).vectors(EVIDENCE)
    for evidence, vector in zip(EVIDENCE, batch, strict=True):
        alone = PublishedRefiner(rate=rate).refine(evidence.query, evidence.graded_documents, evidence.grades)
        np.testing.assert_allclose(vector, alone.vector, atol=1e-5)


def test_refit_is_its_formula() -> None:
    """One query by itself, written out as published."""
    evidence = EVIDENCE[0]
    documents = torch.from_numpy(evidence.graded_documents)
    x = torch.from_numpy(evidence.query).clone().requires_grad_(True)
    grades = torch.from_numpy(evidence.grades)
    target = ((grades - grades.min()) / (grades.max() - grades.min()) / 2).softmax(-1)
    adam = torch.optim.Adam([x], lr=0.005)
    for _ in range(100):
        cosines = torch.cosine_similarity(documents, x[None])
        student = ((cosines - cosines.min()) / (cosines.max() - cosines.min())).softmax(-1)
        adam.zero_grad()
        (target * (target.log() - student.log())).sum().backward()
        adam.step()
    np.testing.assert_allclose(ReFIT().vectors(EVIDENCE)[0], x.detach().numpy(), atol=2e-4)


def test_rocchio_by_hand() -> None:
    documents = np.eye(4, dtype=np.float32)
    evidence = Evidence(documents[0], documents, np.array([1, 2, 3]), np.array([1.0, 0.6, 0.4], dtype=np.float32))
    np.testing.assert_allclose(Rocchio().vectors([evidence])[0], [1, 0.375, 0.375, -0.15], rtol=1e-6)
    assert Rocchio(beta=0, gamma=0).vectors([evidence])[0].tolist() == [1, 0, 0, 0]


def test_rerank_moves_graded_documents_only() -> None:
    evidence = EVIDENCE[0]
    before, after = NoFeedback().scores([evidence])[0], Rerank().scores([evidence])[0]
    order = np.argsort(-after)
    assert set(order[: len(evidence.graded)]) == set(evidence.graded)
    graded = [evidence.grades[list(evidence.graded).index(row)] for row in order[: len(evidence.graded)]]
    assert graded == sorted(graded, reverse=True)
    rest = np.setdiff1d(np.arange(N), evidence.graded)
    np.testing.assert_array_equal(before[rest], after[rest])


def average_precision(evidence: Evidence, scores: np.ndarray) -> float:
    ranking = [str(row) for row in np.argsort(-scores)]
    assert evidence.relevant is not None
    labels = {"q": {str(row): 1 for row in np.flatnonzero(evidence.relevant)}}
    return score_rankings({"q": ranking}, labels)["MAP"]["q"]


@pytest.mark.parametrize("name", choose_peers()[1:])
def test_every_peer_gains_from_good_grades(name: str) -> None:
    def quality(peer_name: str) -> float:
        peer = PEERS[peer_name]()
        return max(
            np.mean([average_precision(e, s) for e, s in zip(EVIDENCE, candidate.scores(EVIDENCE), strict=True)])
            for candidate in peer.candidates()
        )

    assert quality(name) > quality("no feedback")


@pytest.mark.parametrize("name", choose_peers())
def test_every_peer_lives_without_grades(name: str) -> None:
    """Every grade of a query failed: it is ranked as without feedback, and the others are not hurt."""
    empty = replace(EVIDENCE[0], graded=np.array([], dtype=np.intp), grades=np.array([], dtype=np.float32))
    queries = [empty, *EVIDENCE[1:]]
    for candidate in PEERS[name]().candidates():
        scores = candidate.scores(queries)
        assert all(np.isfinite(own).all() for own in scores)
        np.testing.assert_array_equal(np.argsort(-scores[0])[:5], np.argsort(-empty.documents @ empty.query)[:5])


def test_weights_are_fitted_on_other_queries_only() -> None:
    """Changing a query's own grades or labels leaves its weights alone."""
    for peer in (QdrantFeedback(), QdrantFeedbackTuned()):
        fitted = []
        original = peer.fit
        peer.fit = lambda queries, original=original, fitted=fitted: fitted.append(queries) or original(queries)
        peer.vectors(EVIDENCE)
        for fold, queries in enumerate(fitted):
            own = {id(evidence) for row, evidence in enumerate(EVIDENCE) if row % 5 == fold}
            assert own
            assert not own & {id(query) for query in queries}


def test_fit_learns_from_grades() -> None:
    """Where the grades follow the similarity to the query, it outweighs the pairs."""
    follow = [replace(e, grades=(e.documents[e.graded] @ e.query - 0.5).clip(0, 1)) for e in EVIDENCE]
    by_similarity, by_label = fit_weights(follow), fit_weights(EVIDENCE)
    assert by_similarity.a > 2 * abs(by_similarity.c)
    assert by_label.a < by_label.c


def test_fit_without_anything_to_learn_from() -> None:
    flat = [replace(evidence, grades=np.full_like(evidence.grades, 0.5)) for evidence in EVIDENCE]
    assert fit_weights(flat) == Weights()


def test_tuned_weights_need_labels() -> None:
    with pytest.raises(ValueError, match="labels"):
        QdrantFeedbackTuned().vectors([replace(evidence, relevant=None) for evidence in EVIDENCE])


def test_no_feedback_is_always_measured() -> None:
    assert choose_peers(["paper"]) == ["no feedback", "paper"]
    assert choose_peers([]) == ["no feedback"]


def test_peers_that_ask_an_llm_are_peers_by_name() -> None:
    assert choose_peers(llm=True) == list(PEERS)
    assert set(PEERS) - set(choose_peers()) == {"hyde", "llm rerank"}
    assert choose_peers(["hyde"], llm=True) == ["no feedback", "hyde"]
    with pytest.raises(ValueError, match=r"\['hyde'\] need an LLM: give llm, on the command line --llm-model"):
        choose_peers(["hyde"])


def test_unknown_peer_tells_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown peers \['papier'\].*rocchio"):
        choose_peers(["papier"])
