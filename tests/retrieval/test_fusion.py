"""The final order."""

import pytest
import torch
from llama_index.core.schema import TextNode

from llama_index_refine.qdrant.points import Found
from llama_index_refine.qdrant.vectors import Vectors
from llama_index_refine.retrieval.fusion import fuse


def found(**scores: float) -> Found:
    return Found(
        list(scores), list(scores.values()), [TextNode(id_=name, text=name) for name in scores], Vectors.none()
    )


def ids(ranking):
    return [point for point, _ in ranking]


def test_graded_documents_stand_where_their_fused_similarity_puts_them():
    graded = found(b=0, z=0)
    nodes = fuse(found(a=0.9, b=0.8, c=0.7), graded, torch.tensor([0.1, 0.85]), "cosine", 3)
    assert ids(nodes) == ["a", "z", "c"]
    assert [score for _, score in nodes] == pytest.approx([0.9, 0.85, 0.7])


def test_distances_ascend_for_euclid():
    nodes = fuse(found(a=1.0, b=2.0), found(z=0), torch.tensor([-0.5 * 1.5**2]), "euclid", 3)
    assert ids(nodes) == ["a", "z", "b"]
    assert [score for _, score in nodes] == pytest.approx([1.0, 1.5, 2.0])


def test_each_node_comes_once_and_no_more_than_asked_for():
    both = found(a=0.9, b=0.8)
    assert ids(fuse(both, both, torch.tensor([0.2, 0.3]), "cosine", 1)) == ["b"]


def test_scores_stay_in_the_range_of_a_cosine():
    nodes = fuse(found(a=0.9, b=0.8), found(z=0, y=0), torch.tensor([1.3, 1.2]), "cosine", 4)
    assert ids(nodes) == ["z", "y", "a", "b"]
    assert [score for _, score in nodes] == pytest.approx([1, 1, 0.9, 0.8])
