"""Peers for documents that are matrices, compared by MaxSim: what else can be done with the same grades."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from llama_index_refine.evaluation.peers.base import Floats
from llama_index_refine.similarity import maxsim

STEPS = 100
"""Adam steps, as published (arXiv 2605.12487)."""

RATE = 1e-3
"""Adam's learning rate: the best of the published ones for whole vectors."""

_ABSENT = -1e9


@dataclass(frozen=True)
class MatrixEvidence:
    """One query, the documents it searches, and the grades of the first of them.

    :param query: (T, d) unit vectors, one a token.
    :param documents: n matrices of unit vectors, (n_i, d) each: all documents that the query searches.
    :param graded: (K,) rows of the graded documents, best first in the first search.
    :param grades: (K,) their grades in [0, 1].
    """

    query: Floats
    documents: Sequence[Floats]
    graded: NDArray[np.intp]
    grades: Floats

    def similarities(self, query: Floats) -> Floats:
        """(n,) sums over the tokens of their best cosines, for a query that has moved."""
        documents = [torch.from_numpy(document) for document in self.documents]
        found: Floats = maxsim(torch.from_numpy(query), documents, "cosine").numpy()
        return found


class MatrixPeer(ABC):
    """A method that ranks by the first search's matrices and the grades."""

    name: ClassVar[str]
    """What it is called in tables."""

    @abstractmethod
    def scores(self, query: MatrixEvidence) -> Floats:
        """Score the documents: (n,), higher is better."""


class MaxSim(MatrixPeer):
    """The first search."""

    name = "MaxSim"

    def scores(self, query: MatrixEvidence) -> Floats:
        """Leave the query where it is."""
        return query.similarities(query.query)


class MatrixRerank(MatrixPeer):
    """The graded documents first, sorted by grade and then by similarity; the others as they were."""

    name = "rerank"

    def scores(self, query: MatrixEvidence) -> Floats:
        """Similarities, those of graded documents raised above all others."""
        scores = query.similarities(query.query)
        above = 2 * len(query.query)
        scores[query.graded] += above + 10 * above * query.grades
        return scores


class MatrixGradient(MatrixPeer):
    """The published procedure on the matrix: Adam, every token matched anew in every step, no temperature.

    It minimises KL(softmax(grades) || softmax(MaxSim)) over the graded documents.
    """

    name = "gradient"

    def __init__(self, steps: int = STEPS, rate: float = RATE) -> None:
        """Set the pace.

        :param steps: Adam steps, at least 1.
        :param rate: Adam's learning rate, above 0.
        """
        self.steps = steps
        self.rate = rate

    def moved(self, query: MatrixEvidence) -> Floats:
        """(T, d) the query after the last step."""
        if not len(query.graded):
            return query.query
        vectors, there = _padded([query.documents[row] for row in query.graded])
        target = torch.from_numpy(query.grades).softmax(-1)
        tokens = torch.from_numpy(query.query).clone().requires_grad_()
        adam = torch.optim.Adam([tokens], lr=self.rate)
        for _ in range(self.steps):
            cosines = vectors @ functional.normalize(tokens, dim=-1).mT
            best = cosines.masked_fill(~there[:, :, None], _ABSENT).amax(1).sum(-1)
            adam.zero_grad(set_to_none=True)
            (target * (target.log() - best.log_softmax(-1))).sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
        return tokens.detach().numpy()

    def scores(self, query: MatrixEvidence) -> Floats:
        """Search again with the moved matrix."""
        return query.similarities(self.moved(query))


def _padded(documents: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """(K, n, d) the matrices, and (K, n) which of their rows are there."""
    most = max(map(len, documents))
    vectors = torch.zeros(len(documents), most, documents[0].shape[1])
    there = torch.zeros(len(documents), most, dtype=torch.bool)
    for row, document in enumerate(documents):
        vectors[row, : len(document)] = torch.from_numpy(document)
        there[row, : len(document)] = True
    return vectors, there
