"""Peers that follow a gradient: the published procedure and ReFIT, for all queries of a data set at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llama_index_refine.evaluation.peers.base import Evidence, Floats, Peer, VectorPeer

_TINY = 1e-8
_LARGE = 1e9
_STEPS = 100
_PUBLISHED_RATE = 1e-4
_RATES = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)


class _Gradient(VectorPeer):
    """Adam on the query, minimising KL(target || softmax of the similarities) over the graded documents.

    Adam works on each coordinate by itself, so the sum of the queries' losses gives each the steps that it would take
    alone.
    """

    def __init__(self, rate: float) -> None:
        """:param rate: Adam's learning rate, above 0."""
        self.rate = rate

    @property
    def settings(self) -> str:
        """The learning rate."""
        return f"rate {self.rate:g}"

    def target_logits(self, grades: Tensor, mask: Tensor) -> Tensor:
        """(B, K) grades to the logits of the target; `mask` says which entries are graded documents."""
        return grades

    def student_logits(self, similarities: Tensor, mask: Tensor) -> Tensor:
        """(B, K) cosine similarities to the logits of the student."""
        return similarities

    def vectors(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Move the queries by 100 steps."""
        documents, grades, mask = _stack(queries)
        vectors = torch.from_numpy(np.stack([query.query for query in queries])).clone().requires_grad_(True)
        target = _softmax(self.target_logits(grades, mask), mask)
        adam = torch.optim.Adam([vectors], lr=self.rate)
        for _ in range(_STEPS):
            similarities = functional.cosine_similarity(documents, vectors[:, None], dim=-1)
            student = _softmax(self.student_logits(similarities, mask), mask)
            adam.zero_grad(set_to_none=True)
            loss = torch.where(mask, target * ((target + _TINY).log() - (student + _TINY).log()), 0.0).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        return list(vectors.detach().numpy())


class Paper(_Gradient):
    """The published procedure as published: 100 steps of 1e-4, no temperature (arXiv 2605.12487)."""

    name = "paper"

    def __init__(self, rate: float = _PUBLISHED_RATE) -> None:
        """:param rate: Adam's learning rate, above 0."""
        super().__init__(rate)


class PaperTuned(Peer):
    """The published procedure with the best of five rates, picked in hindsight by the labels: an upper bound."""

    name = "paper tuned"

    def candidates(self) -> Sequence[Peer]:
        """The published procedure at each rate."""
        return [Paper(rate) for rate in _RATES]

    def scores(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Not ranked by itself: one of its candidates is picked."""
        raise TypeError("PaperTuned is a choice among its candidates()")


class ReFIT(_Gradient):
    """ReFIT (arXiv 2305.11744): scores scaled to [0, 1], the target at temperature 2, 100 steps of 0.005.

    As measured beside the published procedure: both the grades and the similarities are min-max scaled, the
    temperature divides the grades only.
    """

    name = "refit"

    def __init__(self, rate: float = 0.005) -> None:
        """:param rate: Adam's learning rate, above 0."""
        super().__init__(rate)

    def target_logits(self, grades: Tensor, mask: Tensor) -> Tensor:
        """Scaled grades at temperature 2."""
        return _scaled(grades, mask) / 2

    def student_logits(self, similarities: Tensor, mask: Tensor) -> Tensor:
        """Scaled similarities."""
        return _scaled(similarities, mask)


def _stack(queries: Sequence[Evidence]) -> tuple[Tensor, Tensor, Tensor]:
    """(B, K, d) documents, (B, K) grades and the (B, K) mask of what is there: queries may have fewer than K."""
    most = max(1, *(len(query.grades) for query in queries))
    documents = torch.zeros(len(queries), most, len(queries[0].query))
    grades, mask = torch.zeros(len(queries), most), torch.zeros(len(queries), most, dtype=torch.bool)
    for row, query in enumerate(queries):
        count = len(query.grades)
        documents[row, :count] = torch.from_numpy(query.graded_documents)
        grades[row, :count] = torch.from_numpy(query.grades)
        mask[row, :count] = True
    return documents, grades, mask


def _softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Over what is there; all 0 for a query without grades, which then stays where it is."""
    return logits.masked_fill(~mask, -_LARGE).softmax(-1) * mask


def _scaled(values: Tensor, mask: Tensor) -> Tensor:
    low = values.masked_fill(~mask, _LARGE).amin(-1, keepdim=True)
    high = values.masked_fill(~mask, -_LARGE).amax(-1, keepdim=True)
    return (values - low) / (high - low + _TINY)
