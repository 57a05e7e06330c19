"""Sparse and dense vectors as rows of one problem, on arrays alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from llama_index_refine import QueryRefiner
from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.requests import Hybrid, Requests, SearchOptions
from llama_index_refine.qdrant.vectors import Space, SparseVectors
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.qdrant.views.hybrid import Half, HybridQuery, Linear
from llama_index_refine.qdrant.views.sparse import MOST_TERMS, SparseQuery, Words
from llama_index_refine.similarity import METRICS, score_of_similarity, similarity

SIZE, GRADED, OTHERS = 6, 8, 30
DISTANCE = {"cosine": models.Distance.COSINE, "dot": models.Distance.DOT, "euclid": models.Distance.EUCLID}


def sparse(rng: np.random.Generator, terms: int = 40, most: int = 8) -> models.SparseVector:
    indices = rng.choice(terms, int(rng.integers(1, most)), replace=False)
    return models.SparseVector(indices=indices.tolist(), values=(0.2 + rng.random(len(indices))).tolist())


def many(rng: np.random.Generator, words: list[models.SparseVector]) -> Vectors:
    dense = torch.from_numpy(rng.normal(size=(len(words), SIZE)).astype(np.float32))
    return Vectors(dense, sparse=SparseVectors.of(words))


class Case:
    """One query, its graded documents and a background."""

    def __init__(self, seed: int, metric: str, alpha: float | None, idf: bool, alone: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.sparse = [sparse(rng) for _ in range(GRADED + OTHERS)]
        self.shown, self.others = many(rng, self.sparse[:GRADED]), many(rng, self.sparse[GRADED:])
        self.words = Words(SparseVectors.of([sparse(rng) for _ in range(100)]), 5000)
        background = Background(self.others, [*range(OTHERS)], 5000, self.words)
        self.space = Space(None if alone else "dense", 0 if alone else SIZE, metric, "words", idf=idf)
        near, words = DenseQuery(rng.normal(size=SIZE).astype(np.float32)), sparse(rng)
        self.query = SparseQuery(words) if alone else HybridQuery(near, words, Hybrid(alpha=alpha))
        self.view = self.query.view(self.space)
        self.view.meet(self.shown, background)
        self.grades = rng.random(GRADED).astype(np.float32)

    def refined(self, trust: float = 1.0):
        documents, others = self.view.rows(self.shown, self.others)
        return QueryRefiner("dot").refine(
            self.view.row, documents, self.grades, others, population=5000, trust=trust, scatter=self.view.scatter
        )


cases = {
    "seed": st.integers(0, 10_000),
    "metric": st.sampled_from(METRICS),
    "alpha": st.none() | st.floats(0, 1),
    "idf": st.booleans(),
    "alone": st.booleans(),
}


@settings(max_examples=15, deadline=None)
@given(**cases)
def test_the_objective_does_not_rise(seed, metric, alpha, idf, alone):
    refinement = Case(seed, metric, alpha, idf, alone).refined()
    assert refinement.converged
    assert refinement.kl_after <= refinement.kl_before + 1e-6


@settings(max_examples=15, deadline=None)
@given(**cases)
def test_zero_trust_gives_the_first_query_back(seed, metric, alpha, idf, alone):
    case = Case(seed, metric, alpha, idf, alone)
    assert case.view.refined(np.asarray(case.refined(trust=0.0).vector)) is case.query


@settings(max_examples=15, deadline=None)
@given(**cases)
def test_a_row_stays_what_it_was_when_more_terms_are_met(seed, metric, alpha, idf, alone):
    case = Case(seed, metric, alpha, idf, alone)
    (before,) = case.view.rows(case.shown)
    first = case.view.row
    later = Vectors(
        case.shown.dense, sparse=SparseVectors.of([models.SparseVector(indices=[999], values=[1.0])] * GRADED)
    )
    after, _ = case.view.rows(case.shown, later)
    assert torch.equal(before, after[:, : before.shape[1]])
    assert not after[:, before.shape[1] :].any()
    assert np.array_equal(case.view.row[: len(first)], first)


@settings(max_examples=10, deadline=None)
@example(seed=0, metric="euclid", alpha=5e-324)
@given(**{name: strategy for name, strategy in cases.items() if name not in ("idf", "alone")})
def test_qdrant_adds_up_what_rows_say(seed, metric, alpha):
    """One request with two prefetches gives documents the inner products of their rows with the refined one."""
    case = Case(seed, metric, alpha, idf=False)
    row = np.asarray(case.refined().vector)
    # What speaks against a document is not searched for.
    width = len(row) - len(case.view._terms.row)
    row[width:] = row[width:].clip(min=0)
    query = case.view.refined(row)
    client = QdrantClient(":memory:")
    params = {"dense": models.VectorParams(size=SIZE, distance=DISTANCE[metric])}
    client.create_collection("c", params, sparse_vectors_config={"words": models.SparseVectorParams()})
    everyone = case.shown.beside(case.others)
    client.upsert(
        "c",
        [
            models.PointStruct(id=at, vector={"dense": row, "words": words})
            for at, (row, words) in enumerate(zip(everyone.dense.tolist(), case.sparse, strict=True))
        ],
    )
    request = Requests(case.space, SearchOptions(), False).nearest(query, 100)
    (found,) = client.query_batch_points("c", [request])
    (rows,) = case.view.rows(everyone)
    expected = (rows @ torch.from_numpy(row)).numpy()
    assert len(found.points) == len(everyone.dense)
    scale = float(np.abs(expected).max()) + 1e-3
    for point in found.points:
        missed = {*case.sparse[point.id].indices}.isdisjoint(query.words.indices)
        # A document with none of the words is missed by that half, and has the worst of a sample there.
        if not missed:
            assert point.score == pytest.approx(expected[point.id], abs=2e-3 * scale)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(METRICS))
def test_a_dense_similarity_is_an_inner_product_but_for_a_constant(seed, metric):
    rng = np.random.default_rng(seed)
    first, moved = rng.normal(size=(2, SIZE)).astype(np.float32)
    documents = torch.from_numpy(rng.normal(size=(12, SIZE)).astype(np.float32))
    linear = Linear(first, metric)
    linear.meet(documents)
    rows, step = linear.rows(documents), torch.from_numpy(moved)
    row = linear.row + (torch.cat([step, torch.zeros(1)]) if metric == "euclid" else step)
    near = similarity(torch.from_numpy(linear.vector(row)), documents, metric)
    products = rows @ row / linear.length(row) - linear.constant(row)
    assert torch.allclose(products, near, atol=1e-3)
    assert torch.allclose(linear.scores(row, rows), score_of_similarity(near, metric), atol=2e-2)


def test_idf_is_qdrants_where_the_sample_is_the_collection():
    rng = np.random.default_rng(3)
    vectors = [sparse(rng) for _ in range(200)]
    client = QdrantClient(":memory:")
    idf = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}
    client.create_collection("c", {}, sparse_vectors_config=idf)
    client.upsert("c", [models.PointStruct(id=at, vector={"words": one}) for at, one in enumerate(vectors)])
    words = Words(SparseVectors.of(vectors), len(vectors))
    query = sparse(rng)
    found = client.query_points("c", query=query, using="words", limit=200).points
    terms = np.array(query.indices)
    scores = words.scores(query, words.idf(terms))
    assert found
    for point in found:
        assert point.score == pytest.approx(scores[point.id], rel=0.02)
    plain = words.scores(query)
    dense = [dict(zip(one.indices, one.values, strict=True)) for one in vectors]
    wanted = [
        sum(weight * one.get(term, 0) for term, weight in zip(query.indices, query.values, strict=True))
        for one in dense
    ]
    assert np.allclose(plain, wanted, atol=1e-5)


def test_a_term_that_no_document_of_the_sample_has_is_rare():
    words = Words(SparseVectors.of([models.SparseVector(indices=[1, 2], values=[1.0, 1.0])] * 100), 10_000)
    common, rare = words.idf(np.array([1, 77]))
    assert common < 0.02
    assert rare > 4
    assert words.scores(models.SparseVector(indices=[], values=[])).tolist() == [0.0] * 100


def test_the_scatter_of_sparse_scores_reaches_as_far_as_the_best():
    case = Case(1, "cosine", None, idf=False, alone=True)
    scores = case.words.scores(case.query.words)
    assert case.view.scatter >= scores.std() - 1e-9
    assert case.view.scatter >= (np.quantile(scores, 0.99) - scores.mean()) / 2.33


@pytest.mark.parametrize("alpha", [None, 0.0, 0.5])
def test_two_similarities_scatter_as_the_sum_of_their_shares_wherever_documents_were_drawn(alpha):
    case = Case(1, "cosine", alpha, idf=False)
    assert case.view.scatter == 1.0
    assert Case(1, "cosine", 1.0, idf=False).view.scatter is None
    bare = case.query.view(case.space)
    bare.meet(case.shown, None)
    assert bare.scatter is None


def test_a_refined_sparse_query_is_cut_to_its_largest_weights():
    words = models.SparseVector(indices=[*range(300)], values=[*np.linspace(-1, 2, 300).tolist()])
    view = SparseQuery(words).view(Space(None, 0, "dot", "words"))
    row = view.row * 2
    query = view.refined(row)
    assert len(query.words.indices) == MOST_TERMS
    assert {*query.words.indices} == {*range(300 - MOST_TERMS, 300)}
    assert min(query.words.values) > 0
    assert view.refined(view.row).words is words


def test_what_a_prefetch_misses_is_taken_for_its_last():
    sample = np.linspace(0, 1, 1001)
    half = Half(models.MultExpression(mult=[1.0, "$score[0]"]), sample)
    assert half.lowest(1000, 1000) == 0
    assert half.lowest(10, 1000) > half.lowest(100, 1000) > half.lowest(900, 1000) >= 0
    distances = Half(half.expression, sample, falls=True)
    assert distances.lowest(1000, 1000) == 1
    assert distances.lowest(10, 1000) < distances.lowest(100, 1000)
    assert Half(half.expression, np.empty(0)).lowest(10, 1000) == 0


def test_sparse_vectors_are_kept_apart():
    rng = np.random.default_rng(0)
    given = [sparse(rng) for _ in range(6)] + [models.SparseVector(indices=[], values=[])]
    vectors = SparseVectors.of(given)
    assert len(vectors) == 7
    some = vectors.at([6, 2, 0])
    assert some.terms.tolist() == [*given[2].indices, *given[0].indices]
    assert some.ends.tolist() == [0, len(given[2].indices), len(given[2].indices) + len(given[0].indices)]
    both = some.beside(vectors)
    assert both.at([4]).terms.tolist() == given[1].indices
    assert both.near(both, 0)
    assert not both.near(vectors, 0.1)
    changed = SparseVectors(vectors.terms, vectors.values * 1.5, vectors.ends)
    assert not changed.near(vectors, 0.005)
    assert not Vectors(torch.empty(7, 0), sparse=changed).near(Vectors(torch.empty(7, 0), sparse=vectors), 0.005)
