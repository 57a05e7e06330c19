"""Each distance in normal form orders documents as the collection does."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.refining.problem import Problem, normal_form
from llama_index_refine.similarity import METRICS, score_of_similarity, similarity, similarity_of_score


def vectors(seed: int, count: int = 7, size: int = 4):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, size, generator=generator) * 3
    documents = torch.randn(2, count, size, generator=generator) * 2
    background = torch.randn(3, size, generator=generator) * 2
    return query, documents, background


def posed(query, documents, background, metric):
    marks = torch.ones(2, documents.shape[1], dtype=torch.float64)
    parts = normal_form(query, documents, background, metric)
    return Problem(metric, query, *parts, torch.zeros(10), marks, marks, marks, [1.0, 1.0], None)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), metric=st.sampled_from(METRICS))
def test_scores_are_the_collections_similarity(seed, metric):
    """At the query moved by any sum of the rows."""
    query, documents, background = vectors(seed)
    problem = posed(query, documents, background, metric)
    weights = 0.1 * torch.randn(2, 10, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    scores = problem.start + (problem.kernel[:, :-1, :-1] @ weights[:, :, None]).squeeze(-1)
    vectors_after = problem.moved(weights)
    unit, rest = problem.scale(vectors_after)
    near = unit * scores + rest
    everything = torch.cat([documents, background.expand(2, *background.shape[-2:])], dim=1)
    for moved, found, rows in zip(vectors_after, near.float(), everything, strict=True):
        torch.testing.assert_close(found, similarity(moved, rows, metric), atol=2e-4, rtol=2e-3)


def test_scores_of_qdrant_are_distances_for_euclid_and_similarities_else():
    scores = torch.tensor([0.5, 2.0])
    assert similarity_of_score(scores, "euclid").tolist() == [-0.125, -2.0]
    torch.testing.assert_close(score_of_similarity(similarity_of_score(scores, "euclid"), "euclid"), scores)
    assert similarity_of_score(scores, "cosine") is scores
