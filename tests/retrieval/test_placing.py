"""The final order."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from llama_index.core.schema import QueryBundle, TextNode

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import Grades
from llama_index_refine.qdrant.points import Found, Vectors
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.refining.trust import FixedTrust
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.retrieval.ranking import RefinedRanking
from llama_index_refine.similarity import similarity


def found(**scores: float) -> Found:
    nodes = [TextNode(id_=name, text=name) for name in scores]
    return Found(list(scores), list(scores.values()), nodes, Vectors())


@dataclass
class Case:
    """A query (1, 0), and graded documents whose similarities to it are given with what their grades make of them."""

    metric: Any
    graded: dict[str, tuple[float, float]]
    threshold: float | None = None

    def place(self, others: Found, limit: int):
        query = DenseQuery(np.array([1, 0], dtype=np.float32), self.threshold)
        space = Space("", 2, self.metric)
        feedback = Feedback(QueryBundle("q"), query, query.view(space), Account())
        rows = torch.tensor([self._row(own) for own, _ in self.graded.values()]).reshape(-1, 2)
        names = list(self.graded)
        points = Found(names, [0.0] * len(names), [TextNode(id_=name, text=name) for name in names], Vectors(rows))
        feedback.take(points, Grades([1.0] * len(names)))
        refinement = SimpleNamespace(
            vector=query.dense,
            documents=rows.numpy(),
            fused=np.array([fused for _, fused in self.graded.values()], dtype=np.float32),
            tau=1.0,
        )
        return RefinedRanking(feedback, refinement, query, others, len(names), FixedTrust(1.0)).place(others, limit)

    def _row(self, own: float) -> list[float]:
        row = [own, max(1 - own**2, 0.0) ** 0.5] if self.metric == "cosine" else [1 - (-2 * own) ** 0.5, 0.0]
        (near,) = similarity(torch.tensor([1.0, 0.0]), torch.tensor([row], dtype=torch.float32), self.metric).tolist()
        assert near == pytest.approx(own, abs=1e-6)
        return row


def test_graded_documents_stand_where_their_fused_similarity_puts_them():
    ranking = Case("cosine", {"b": (0.8, 0.1), "z": (0.2, 0.85)}).place(found(a=0.9, b=0.8, c=0.7), 3)
    assert [point for point, _ in ranking] == ["a", "z", "c"]
    assert [score for _, score in ranking] == pytest.approx([0.9, 0.85, 0.7])


def test_distances_ascend_for_euclid():
    ranking = Case("euclid", {"z": (-1.5, -0.5 * 1.5**2)}).place(found(a=1.0, b=2.0), 3)
    assert [point for point, _ in ranking] == ["a", "z", "b"]
    assert [score for _, score in ranking] == pytest.approx([1.0, 1.5, 2.0])


def test_each_node_comes_once_and_no_more_than_asked_for():
    ranking = Case("cosine", {"a": (0.9, 0.2), "b": (0.8, 0.3)}).place(found(a=0.9, b=0.8), 1)
    assert [point for point, _ in ranking] == ["b"]


def test_scores_stay_in_the_range_of_a_cosine():
    ranking = Case("cosine", {"z": (0.5, 1.3), "y": (0.5, 1.2)}).place(found(a=0.9, b=0.8), 4)
    assert [point for point, _ in ranking] == ["z", "y", "a", "b"]
    assert [score for _, score in ranking] == pytest.approx([1, 1, 0.9, 0.8])


def test_a_threshold_holds_for_what_was_graded_too():
    ranking = Case("cosine", {"far": (0.1, 0.95), "near": (0.6, 0.55)}, threshold=0.5).place(found(a=0.9), 4)
    assert [point for point, _ in ranking] == ["a", "near"]
