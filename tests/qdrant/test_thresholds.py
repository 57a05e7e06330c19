"""A score threshold and scores, carried over to a refined query: as high above the collection as for the first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.requests import Hybrid, SearchOptions
from llama_index_refine.qdrant.vectors import Space, SparseVectors
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.qdrant.views.hybrid import HybridQuery
from llama_index_refine.qdrant.views.matrices import MatrixQuery
from llama_index_refine.qdrant.views.sparse import SparseQuery, Words
from llama_index_refine.retrieval.queries import Embedding
from llama_index_refine.scheduling import run
from llama_index_refine.similarity import METRICS, maxsim, passes, score_of_similarity, similarity, similarity_of_score
from llama_index_refine.stores import open_store
from tests.places import SIZE, points, question, vectors

DIMENSIONS = 6
DISTANCE = {"cosine": models.Distance.COSINE, "dot": models.Distance.DOT, "euclid": models.Distance.EUCLID}
seeds, metrics = st.integers(0, 10_000), st.sampled_from(METRICS)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def met(query, space: Space, rows: np.ndarray, words: Words | None = None):
    """The view of a query that has met a background."""
    view = query.view(space)
    sparse = SparseVectors.of([models.SparseVector(indices=[1], values=[1.0])] * len(rows)) if space.sparse else None
    background = Background(Vectors(torch.from_numpy(rows), sparse=sparse), [*range(len(rows))], 1000, words)
    view.meet(background.vectors.at(range(min(4, len(rows)))), background)
    return view


def above(threshold: float, scores: torch.Tensor, metric: str) -> int:
    return int(passes(scores, threshold, metric).sum())


@settings(max_examples=60, deadline=None)
@given(seeds, metrics, st.floats(0.05, 20.0), st.floats(0.02, 0.98))
def test_the_share_of_the_background_above_the_threshold_stays(seed, metric, longer, share):
    """Of documents that are equally long, a query made longer or shorter keeps the order, and nothing but the scale."""
    rng = np.random.default_rng(seed)
    rows = normal(rng, 30, DIMENSIONS)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first = normal(rng, DIMENSIONS)
    view = met(DenseQuery(first), Space("", DIMENSIONS, metric), rows)
    known = torch.from_numpy(rows)
    before = score_of_similarity(similarity(torch.from_numpy(first), known, metric), metric)
    at = float(torch.quantile(before.double(), share))
    # A threshold on a document is passed by it or not, by the last digit.
    assume(float((before - at).abs().min()) > 1e-3 * float(before.abs().max()))
    moved = first * np.float32(longer)
    after = score_of_similarity(similarity(torch.from_numpy(moved), known, metric), metric)
    spread = float(after.std())
    assume(spread > 1e-3 * float(after.abs().mean()))
    assert above(view.threshold(moved, at), after, metric) == above(at, before, metric)


@settings(max_examples=60, deadline=None)
@given(seeds, metrics, st.floats(-2, 3))
def test_wherever_a_query_moves_the_threshold_is_as_many_deviations_above_the_mean(seed, metric, height):
    rng = np.random.default_rng(seed)
    rows, first, moved = normal(rng, 30, DIMENSIONS), normal(rng, DIMENSIONS), 3 * normal(rng, DIMENSIONS)
    view = met(DenseQuery(first), Space("", DIMENSIONS, metric), rows)
    near = [similarity(torch.from_numpy(one), torch.from_numpy(rows), metric).double() for one in (first, moved)]
    (mean, spread), (other, wide) = ((float(one.mean()), float(one.std(unbiased=False))) for one in near)
    wanted = mean + height * spread
    assume(metric != "euclid" or (wanted < 0 and other + height * wide < 0))
    given_score = float(score_of_similarity(torch.tensor(wanted, dtype=torch.float64), metric))
    assume(metric != "cosine" or abs(wanted) < 1)
    carried = view.threshold(moved, given_score)
    found = float(similarity_of_score(torch.tensor(carried, dtype=torch.float64), metric))
    assert (found - other) / wide == pytest.approx(height, abs=1e-3)
    assert view.threshold(moved, None) is None
    # Scores go the same way back.
    back = view.scores(moved, torch.tensor([found], dtype=torch.float64))
    assert float(back[0]) == pytest.approx(given_score, abs=1e-3 * max(1, abs(given_score)))
    assert view.refined(moved).threshold is None
    strict = met(DenseQuery(first, given_score), Space("", DIMENSIONS, metric), rows)
    assert strict.refined(moved).threshold == pytest.approx(carried)


@settings(max_examples=30, deadline=None)
@given(seeds, metrics)
def test_scores_stay_in_the_order_and_the_range_of_the_distance(seed, metric):
    rng = np.random.default_rng(seed)
    rows, first, moved = normal(rng, 30, DIMENSIONS), normal(rng, DIMENSIONS), 5 * normal(rng, DIMENSIONS)
    view = met(DenseQuery(first), Space("", DIMENSIONS, metric), rows)
    near = similarity(torch.from_numpy(moved), torch.from_numpy(normal(rng, 50, DIMENSIONS) * 2), metric).sort().values
    scores = view.scores(moved, near)
    steps = scores.diff()
    assert bool((steps <= 1e-6).all() if metric == "euclid" else (steps >= -1e-6).all())
    if metric == "euclid":
        assert float(scores.min()) >= 0
    if metric == "cosine":
        assert float(scores.abs().max()) <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_where_nothing_is_apart_thresholds_and_scores_stay_what_they_are(metric):
    rows = np.ones((5, DIMENSIONS), dtype=np.float32)
    first = np.arange(1, DIMENSIONS + 1, dtype=np.float32)
    for some in (rows, rows[:1], rows[:0]):
        view = met(DenseQuery(first), Space("", DIMENSIONS, metric), some)
        assert view.threshold(first[::-1].copy(), 0.25) == pytest.approx(0.25)
        near = torch.tensor([-0.5, -0.25])
        assert torch.allclose(view.scores(first[::-1].copy(), near), score_of_similarity(near, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_of_matrices_it_is_maxsims(metric):
    rng = np.random.default_rng(4)
    documents = tuple(torch.from_numpy(normal(rng, 3, DIMENSIONS)) for _ in range(20))
    query = MatrixQuery(normal(rng, 2, DIMENSIONS), threshold=None)
    view = query.view(Space("", DIMENSIONS, metric, multivector=True))
    stored = Vectors(torch.empty(20, 0), documents)
    view.meet(stored.at(range(4)), Background(stored, [*range(20)], 1000))
    row = view.row + normal(rng, 2 * DIMENSIONS)
    first, moved = (
        maxsim(torch.from_numpy(np.asarray(one).reshape(2, DIMENSIONS)), documents, metric).double()
        for one in (query.matrix, row)
    )
    at = float(first.mean() + 0.7 * first.std(unbiased=False))
    wanted = float(moved.mean() + 0.7 * moved.std(unbiased=False))
    euclid = metric == "euclid"
    score, expected = ((-2 * value) ** 0.5 if euclid else value for value in (at, wanted))
    assert view.threshold(row, score) == pytest.approx(expected, rel=1e-4)
    back = view.scores(row, torch.tensor([wanted], dtype=torch.float64))
    assert float(back[0]) == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_in_hybrid_mode_it_is_the_dense_searchs_and_scores_say_places(metric):
    rng = np.random.default_rng(5)
    rows, first = normal(rng, 30, DIMENSIONS), normal(rng, DIMENSIONS)
    words = models.SparseVector(indices=[1, 2], values=[1.0, 0.5])
    space = Space("dense", DIMENSIONS, metric, "words")
    sample = Words(SparseVectors.of([words] * 50), 1000)
    view = met(HybridQuery(DenseQuery(first, 0.4), words, Hybrid()), space, rows, sample)
    row = view.row.copy()
    row[:DIMENSIONS] += view.row[:DIMENSIONS].std() + normal(rng, DIMENSIONS) * view.row[:DIMENSIONS].std()
    query = view.refined(row)
    dense = met(DenseQuery(first, 0.4), Space("dense", DIMENSIONS, metric), rows)
    assert query.near.threshold == query.threshold == pytest.approx(dense.threshold(query.near.dense, 0.4), rel=1e-4)
    assert not view.lasts
    (documents,) = view.rows(Vectors(torch.from_numpy(rows), sparse=SparseVectors.of([words] * 30)))
    near = similarity(torch.from_numpy(query.near.dense), torch.from_numpy(rows), metric)
    expected = passes(score_of_similarity(near, metric), query.threshold, metric).tolist()
    assert sum(a != b for a, b in zip(view.passes(row, documents, query.threshold), expected, strict=True)) <= 1


def test_of_sparse_vectors_it_is_as_high_above_the_sample():
    rng = np.random.default_rng(6)
    sample = Words(SparseVectors.of([
        models.SparseVector(indices=rng.choice(9, 4, replace=False).tolist(), values=rng.random(4).tolist())
        for _ in range(200)
    ]), 1000)  # fmt: skip
    first = models.SparseVector(indices=[1, 2], values=[1.0, 0.5])
    view = met(SparseQuery(first, 0.6), Space(None, 0, "dot", "words"), np.empty((3, 0), dtype=np.float32), sample)
    row = view.row * 4
    query = view.refined(row)
    assert query.threshold == pytest.approx(2.4, rel=1e-3)
    assert view.refined(view.row).threshold == 0.6
    assert not view.lasts
    bare = SparseQuery(first, 0.6).view(Space(None, 0, "dot", "words"))
    bare.meet(Vectors(torch.empty(0, 0)), None)
    assert bare.refined(row).threshold == 0.6


@pytest.mark.parametrize("metric", METRICS)
def test_a_refined_search_keeps_to_the_threshold_that_it_carries(metric):
    """Under Euclid and dot product refined vectors leave the data, and the user's number is no use for them."""
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=SIZE, distance=DISTANCE[metric]))
    client.upsert("c", points())
    store = open_store(client, "c", "meta.abstract")
    plain = QdrantCollection(store)
    everything = run([plain.search(DenseQuery(np.asarray(question(0).embedding, dtype=np.float32)), 200)])[0].get()
    collection = QdrantCollection(store, SearchOptions(score_threshold=everything.scores[40]))
    query = run([collection.query(question(0), Embedding(None))])[0].get()
    first = run([collection.search(query, 200, vectors=10)])[0].get()
    assert len(first.ids) == 40
    view = query.view(run([collection.space()])[0].get())
    view.meet(first.with_vectors(10).vectors, run([collection.background()])[0].get())
    moved = view.row * 4
    searched = view.refined(moved)
    found = run([collection.search(searched, 200)])[0].get()
    assert 20 <= len(found.ids) <= 80
    near = similarity(torch.from_numpy(moved), torch.from_numpy(vectors()[found.ids]).float(), metric)
    rows = torch.from_numpy(vectors()[found.ids]).float()
    assert all(view.passes(moved, rows, searched.threshold)) or metric == "cosine"
    assert len(view.scores(moved, near)) == len(found.ids)
