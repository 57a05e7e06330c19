"""Refinement of a query that is a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine import QueryRefiner
from llama_index_refine.similarity import METRICS, maxsim
from tests.refining.spoiling import put

TOKENS, SIZE = 4, 16


def lesson(seed: int = 0, graded: int = 20, background: int = 30):
    """A query of four tokens; relevant documents have a vector near a hidden topic, and the grades know it."""
    rng = np.random.default_rng(seed)
    topic, query = rng.normal(size=SIZE), rng.normal(size=(TOKENS, SIZE))
    relevant = rng.random(graded) < 0.4

    def document(about: bool) -> np.ndarray:
        rows = rng.normal(size=(rng.integers(3, 9), SIZE)) + query[rng.integers(TOKENS)] / 2
        rows[0] = query[0] / 2 + 0.3 * rng.normal(size=SIZE) + (topic if about else 0)
        return rows

    documents = [document(about) for about in relevant]
    return query, documents, relevant.astype(float), [document(False) for _ in range(background)]


def scores(query, documents, metric="dot"):
    tensors = [torch.from_numpy(np.asarray(document, dtype=np.float32)) for document in documents]
    return maxsim(torch.from_numpy(np.asarray(query, dtype=np.float32)), tensors, metric).numpy()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("background", [True, False])
def test_moves_towards_what_was_graded_relevant(metric, background):
    query, documents, grades, around = lesson()
    around = around if background else None
    found = QueryRefiner(metric).refine(query, documents, grades, around, population=1000 if background else None)
    assert found.converged
    assert found.metric == metric
    assert found.vector.shape == found.query.shape == found.path[-1].shape == (TOKENS, SIZE)
    assert found.documents.shape == (20, TOKENS, SIZE)
    assert found.background.shape == (30 if background else 0, TOKENS, SIZE)
    assert found.kl_after < found.kl_before
    before, after = (np.corrcoef(grades, scores(vector, documents, metric))[0, 1] for vector in (query, found.vector))
    assert after > before + 0.1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), trust=st.floats(0, 1), metric=st.sampled_from(["dot", "euclid"]))
def test_the_objective_does_not_rise(seed, trust, metric):
    """The formula of QueryRefiner's docstring, on the matches of the first query."""
    query, documents, grades, around = lesson(seed)
    refiner = QueryRefiner(metric)
    found = refiner.refine(query, documents, grades, around, population=1000, trust=trust)
    rows = np.concatenate([found.documents, found.background]).reshape(50, -1).astype(float)
    radius = np.square(rows - rows.mean(0)).sum(1).mean()
    penalty = radius * np.square(found.vector - found.query).sum() / (2 * (refiner.reach * found.tau) ** 2)
    assert found.kl_after + penalty <= found.kl_before + 1e-4


@pytest.mark.parametrize("metric", METRICS)
def test_no_trust_moves_nothing_and_reorders_nothing(metric):
    query, documents, grades, around = lesson()
    found = QueryRefiner(metric).refine(query, documents, grades, around, trust=0)
    first = query / np.linalg.norm(query, axis=1, keepdims=True) if metric == "cosine" else query
    np.testing.assert_allclose(found.vector, first, atol=1e-4)
    np.testing.assert_allclose(found.fused, scores(query, documents, metric), atol=1e-3)


def test_a_matrix_of_one_token_and_documents_of_one_vector_are_the_vectors():
    query, documents, grades, around = lesson()
    vectors, others = np.stack([one[0] for one in documents]), np.stack([one[0] for one in around])
    for metric in ("dot", "euclid"):
        plain = QueryRefiner(metric).refine(query[0], vectors, grades, others)
        matrix = QueryRefiner(metric).refine(query[:1], vectors[:, None], grades, others[:, None])
        np.testing.assert_allclose(matrix.vector[0], plain.vector, atol=1e-4)
        np.testing.assert_allclose(matrix.fused, plain.fused, atol=1e-3)


def test_cosine_minds_no_lengths_and_gives_tokens_a_length_of_1_on_average():
    query, documents, grades, around = lesson()
    plain = QueryRefiner().refine(query, documents, grades, around)
    lengths = np.random.default_rng(1).uniform(0.5, 3, size=20)
    scaled = [document * length for document, length in zip(documents, lengths, strict=True)]
    again = QueryRefiner().refine(query * np.array([[2.0], [0.5], [1.0], [3.0]]), scaled, grades, around)
    np.testing.assert_allclose(again.vector, plain.vector, atol=1e-4)
    assert np.linalg.norm(plain.vector, axis=1).mean() == pytest.approx(1, abs=1e-5)


def test_comes_back_in_the_kind_it_came_in():
    query, documents, grades, around = lesson()
    arrays = QueryRefiner("dot").refine(query, documents, grades, around)
    lists = QueryRefiner("dot").refine(
        query.tolist(), [one.tolist() for one in documents], grades.tolist(), [one.tolist() for one in around]
    )
    tensors = QueryRefiner("dot").refine(
        torch.from_numpy(query), [torch.from_numpy(one) for one in documents], torch.from_numpy(grades), around
    )
    assert isinstance(arrays.vector, np.ndarray)
    assert arrays.vector.dtype == np.float32
    assert isinstance(tensors.vector, torch.Tensor)
    assert isinstance(tensors.documents, torch.Tensor)
    np.testing.assert_allclose(lists.vector, arrays.vector, atol=1e-6)
    np.testing.assert_allclose(tensors.vector.numpy(), arrays.vector, atol=1e-6)


def test_padding_stays_where_it_is():
    query, documents, grades, around = lesson()
    query[-1] = 0
    for metric in ("cosine", "dot"):
        assert (QueryRefiner(metric).refine(query, documents, grades, around).vector[-1] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": lambda q: q[:, :-1]}, r"documents\[0\] must have the shape \(any, 15\)"),
        ({"query": lambda q: q[:0]}, "query must be a matrix of at least one vector"),
        ({"query": put(np.nan, 0, 0)}, "query holds NaN"),
        ({"query": lambda q: q * 0}, "query holds a zero vector"),
        ({"query": lambda q: [["a"], ["b"]]}, "query is not an array"),
        ({"documents": lambda d: [*d[:3], d[3][:0], *d[4:]]}, r"documents\[3\] is empty"),
        ({"documents": lambda d: [*d[:3], d[3][0], *d[4:]]}, r"documents\[3\] must have the shape"),
        ({"documents": lambda d: [*d[:3], put(np.inf, 0, 0)(d[3]), *d[4:]]}, r"documents\[3\] holds NaN or infinity"),
        ({"documents": lambda d: None}, "documents must be a list of matrices"),
        ({"documents": lambda d: d[:-1]}, "grades must have the shape"),
        ({"grades": lambda g: g + 1}, "grades must be in"),
        ({"background": lambda b: []}, "background is empty"),
        ({"background": lambda b: [*b[:2], b[2][:, :-1]]}, r"background\[2\] must have the shape"),
        ({"background": lambda b: 3}, "background must be a list of matrices"),
    ],
)
def test_bad_input_is_named(changes, message):
    names = ("query", "documents", "grades", "background")
    parts = dict(zip(names, lesson(), strict=True))
    parts |= {name: change(parts[name]) for name, change in changes.items()}
    with pytest.raises(ValueError, match=message):
        QueryRefiner("dot").refine(**parts)


def test_the_published_procedure_takes_vectors_only():
    with pytest.raises(ValueError, match="query must have the shape"):
        QueryRefiner.paper().refine(*lesson()[:3])
