"""What a peer is given, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """One query, the documents it searches, and the grades of the first of them.

    :param query: (d,) unit vector.
    :param documents: (n, d) unit vectors of all documents that the query searches.
    :param graded: (K,) rows of the graded documents, best first in the first search.
    :param grades: (K,) their grades in [0, 1].
    :param text: the query's text.
    :param graded_texts: the texts of the graded documents.
    :param relevant: (n,) the human labels, only for picking settings on other queries or in hindsight.
    """

    query: Floats
    documents: Floats
    graded: NDArray[np.intp]
    grades: Floats
    text: str = ""
    graded_texts: Sequence[str] = ()
    relevant: NDArray[np.bool_] | None = None

    @property
    def graded_documents(self) -> Floats:
        """(K, d) vectors of the graded documents."""
        found: Floats = self.documents[self.graded]
        return found


@dataclass
class Bill:
    """What a method asked of an LLM."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class Peer(ABC):
    """A method that ranks by the first search's vectors and the grades. Write `scores` and it is complete."""

    name: ClassVar[str]
    """What it is called in tables."""

    uses_grades: ClassVar[bool] = True
    """Whether it pays for the teacher."""

    needs_llm: ClassVar[bool] = False
    """Whether it asks an LLM for more than grades. Such a peer is made of the LLM, where its answers are kept, the
    model that embedded the documents, and what is called when a query is answered."""

    similarities: ClassVar[bool] = True
    """Whether its scores are of one kind for all documents, so that the distance between classes means something."""

    def candidates(self) -> Sequence[Peer]:
        """The settings among which to pick the best in hindsight, by MAP over all queries; itself where it has one."""
        return [self]

    @property
    def settings(self) -> str:
        """What distinguishes this candidate, for the tables."""
        return ""

    @classmethod
    def calls(cls, graded: int) -> int:
        """The most calls of an LLM that it makes for a query with so many graded documents, beside the teacher's."""
        return 0

    @property
    def bill(self) -> Bill:
        """What it asked of an LLM by itself, over all queries, beside the teacher's grades."""
        return Bill()

    @abstractmethod
    def scores(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Score the documents for every query.

        :param queries: all queries of one data set, so that what is fitted can be fitted on others.
        :return: (n,) for each query, higher is better.
        """


class VectorPeer(Peer):
    """A peer that moves the query vector and searches again. Write `vectors` and it is complete."""

    @abstractmethod
    def vectors(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Move the queries.

        :return: (d,) for each query, of any length: only the direction counts.
        """

    def scores(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Cosine similarities of the documents to the moved query."""
        return [
            query.documents @ (vector / max(float(np.linalg.norm(vector)), 1e-12))
            for query, vector in zip(queries, self.vectors(queries), strict=True)
        ]
