"""Whether a collection is still the one that is known: each search looks again at a few points of the background."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.connection import Connection
from llama_index_refine.qdrant.points import Found, Points, with_vectors
from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.views.base import Query
from llama_index_refine.steps import Steps


@dataclass(frozen=True)
class Probing:
    """Looks at points again.

    :param connection: reaches the collection.
    :param check_after: seconds to go by before scores are wondered at again.
    """

    connection: Connection
    check_after: float

    def choose(self) -> Background | None:
        """Choose what of the background is looked at again with this search, None for nothing."""
        known = self.connection.known
        if known.background is None or not known.background.ids:
            return None
        if not known.limits.may_narrow(self.connection.options.filter):
            self.connection.tell(
                "a collection that is rebuilt with another model may go unnoticed for as long as its size is the same "
                "(filter_max_conditions)"
            )
            return None
        known.turn += 1
        return known.background.a_few(known.turn - 1, known.limits.condition_max_size)

    def holds(self, space: Space, query: Query, probe: Background | None, shown: Found, probed: Points) -> Steps[bool]:
        """Say whether what a search brought agrees with what is known.

        :param space: what was searched.
        :param query: what for.
        :param probe: what of the background was looked at again, None for nothing.
        :param shown: the points found.
        :param probed: what is there of the probe, where the search's request brought it.
        """
        if probe and self.connection.is_local:
            there = yield from self.connection.retrieve(probe.ids, space.names)
            if not probe.is_still(*with_vectors(there, space)):
                return False
        elif probe:
            if query.telling is None:
                return probe.is_still(*with_vectors(probed, space))
            return probe.unchanged(probed, query.telling, space)
        # Scores by compressed vectors are never quite right: no need to wonder at each query.
        wonder = time.monotonic() - self.connection.known.doubted > self.check_after
        return not wonder or query.agrees(shown.vectors, shown.scores, space)
