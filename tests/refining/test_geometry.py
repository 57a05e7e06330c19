"""Each distance in normal form orders documents as the collection does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.refining.geometry import normal_form
from llama_index_refine.similarity import METRICS, score_of_similarity, similarity, similarity_of_score


def vectors(seed: int, count: int = 7, size: int = 4):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, size, generator=generator) * 3
    documents = torch.randn(2, count, size, generator=generator) * 2
    background = torch.randn(3, size, generator=generator) * 2
    return query, documents, background


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), metric=st.sampled_from(METRICS))
def test_scores_are_the_collections_similarity(seed, metric):
    query, documents, background = vectors(seed)
    form = normal_form(query, documents, background, metric)
    step = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed + 1)) * 0.3
    moved = form.start + step
    scores = form.similarity(form.scores(moved), moved)
    everything = torch.cat([documents, background.expand(2, *background.shape[-2:])], dim=1)
    for at in range(2):
        expected = similarity(form.to_collection(moved)[at], everything[at], metric)
        torch.testing.assert_close(scores[at], expected, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_gram_and_combination_belong_to_the_rows(metric):
    query, documents, background = vectors(5)
    form = normal_form(query, documents, background, metric)
    rows = torch.cat([form.graded, form.background.expand(2, *form.background.shape[-2:])], dim=1)
    rows = rows / form.lengths[..., None]
    torch.testing.assert_close(torch.from_numpy(form.gram()).float(), rows @ rows.mT, atol=1e-5, rtol=1e-4)
    weights = torch.randn(2, 10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(form.combine(weights), (weights[:, None] @ rows)[:, 0], atol=1e-5, rtol=1e-4)


def test_scores_of_qdrant_are_distances_for_euclid_and_similarities_else():
    scores = torch.tensor([0.5, 2.0])
    assert similarity_of_score(scores, "euclid").tolist() == [-0.125, -2.0]
    torch.testing.assert_close(score_of_similarity(similarity_of_score(scores, "euclid"), "euclid"), scores)
    assert similarity_of_score(scores, "cosine") is scores
