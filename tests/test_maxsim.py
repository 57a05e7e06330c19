"""MaxSim, held to Qdrant's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from llama_index_refine.similarity import (
    METRICS,
    document_rows,
    maxsim,
    query_row,
    row_metric,
    score_of_similarity,
    similarity,
    token_length,
)

DISTANCE = {"cosine": models.Distance.COSINE, "dot": models.Distance.DOT, "euclid": models.Distance.EUCLID}


def matrices(seed: int, tokens: int, count: int = 7, size: int = 5):
    """A query and documents, of one to six vectors each."""
    rng = np.random.default_rng(seed)
    documents = [torch.from_numpy(rng.normal(size=(rng.integers(1, 7), size))).float() for _ in range(count)]
    return torch.from_numpy(rng.normal(size=(tokens, size))).float(), documents


@pytest.mark.parametrize("metric", METRICS)
def test_is_what_qdrant_scores(metric):
    query, documents = matrices(0, 4)
    client = QdrantClient(":memory:")
    comparator = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    params = models.VectorParams(size=5, distance=DISTANCE[metric], multivector_config=comparator)
    client.create_collection("docs", params)
    client.upsert("docs", [models.PointStruct(id=at, vector=one.tolist()) for at, one in enumerate(documents)])
    found = {point.id: point.score for point in client.query_points("docs", query.tolist(), limit=7).points}
    similarities = maxsim(query, documents, metric)
    scores = (-2 * similarities).sqrt() if metric == "euclid" else similarities
    np.testing.assert_allclose(scores.numpy(), [found[at] for at in range(7)], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), tokens=st.integers(1, 6), metric=st.sampled_from(METRICS))
def test_rows_stacked_at_a_query_give_its_maxsim(seed, tokens, metric):
    """Written out once more, a pair of vectors at a time."""
    query, documents = matrices(seed, tokens)
    best = []
    for document in documents:
        pairs = torch.stack([similarity(token, document, metric) for token in query])
        best.append(float(pairs.max(-1).values.sum()))
    rows = document_rows(query, documents, metric)
    assert rows.shape == (7, tokens * 5)
    stacked = similarity(query_row(query, metric), rows, row_metric(metric))
    np.testing.assert_allclose(stacked.numpy(), best, atol=1e-4)
    np.testing.assert_allclose(maxsim(query, documents, metric).numpy(), best, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), step=st.floats(0, 2))
def test_matches_that_are_held_are_at_most_the_best(seed, step):
    query, documents = matrices(seed, 3)
    moved = query + step * matrices(seed + 1, 3)[0]
    held = document_rows(query, documents, "dot") @ query_row(moved, "dot")
    assert (held <= maxsim(moved, documents, "dot") + 1e-4).all()


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_padding_matches_nothing(metric):
    query, documents = matrices(3, 3)
    padded = torch.cat([query, torch.zeros(2, 5)])
    rows = document_rows(padded, documents, metric)
    assert (rows.reshape(7, 5, 5)[:, 3:] == 0).all()
    np.testing.assert_allclose(maxsim(padded, documents, metric), maxsim(query, documents, metric), atol=1e-5)


def test_the_unit_of_a_query_whose_tokens_are_made_of_length_1():
    row = torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0, 1.0])
    assert token_length(row, 2, "cosine") == pytest.approx(3)
    assert token_length(row, 2, "dot") == 1
    assert token_length(torch.zeros(4), 2, "cosine") == 1


def test_scores_of_euclid_are_distances():
    query, documents = matrices(5, 2)
    scores = score_of_similarity(maxsim(query, documents, "euclid"), "euclid")
    assert (scores >= 0).all()
