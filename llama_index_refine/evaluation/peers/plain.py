"""The two that leave the query where it is."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index_refine.evaluation.peers.base import Evidence, Floats, Peer, VectorPeer


class NoFeedback(VectorPeer):
    """The first search."""

    name = "no feedback"
    uses_grades = False

    def vectors(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Leave the queries where they are."""
        return [query.query for query in queries]


class Rerank(Peer):
    """The graded documents first, sorted by grade and then by similarity; the others as they were."""

    name = "rerank"
    similarities = False

    def scores(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Similarities, those of graded documents raised above all others."""
        found = []
        for query in queries:
            scores = query.documents @ query.query
            scores[query.graded] += 10 + 100 * query.grades
            found.append(scores)
        return found
