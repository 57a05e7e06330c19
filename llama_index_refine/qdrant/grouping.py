"""What of a ranking is returned: so many points of a document, and none that says what others have said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qdrant_client.local.payload_value_extractor import value_by_key

from llama_index_refine.qdrant.points import Points


@dataclass(frozen=True)
class Grouping:
    """How many points of one group a ranking may hold.

    :param by: the payload field whose value names a point's group, "a.b" for b inside a; None for no groups.
    :param size: the most points of a group, at least 1.
    """

    by: str | None = None
    size: int = 1

    def of(self, points: Points) -> list[str | None]:
        """Say to which group each point belongs, None to none: it lacks the field, or came without its payload."""
        if self.by is None:
            return [None] * len(points)
        values = [value_by_key(point.payload or {}, self.by) for point in points]
        return [None if value is None else repr(value) for value in values]

    def first(self, groups: Sequence[str | None]) -> list[int]:
        """Return the places of a ranking that stay: the first points of each group, and all that belong to none."""
        seen: Counter[str | None] = Counter()
        kept = []
        for place, group in enumerate(groups):
            seen[group] += 1
            if group is None or seen[group] <= self.size:
                kept.append(place)
        return kept


def diverse(relevance: np.ndarray, overlap: np.ndarray, threshold: float, limit: int) -> list[int]:
    """Choose by maximal marginal relevance (Carbonell and Goldstein 1998).

    The next is always the one with the greatest t r - (1 - t) s, with r its own relevance and s the greatest similarity
    to what has been chosen.

    :param relevance: (n,) how near each one is to the query.
    :param overlap: (n, n) how near they are to each other, on the same scale.
    :param threshold: t, in [0, 1]: 1 goes by relevance alone, 0 by difference alone.
    :param limit: the most to choose.
    :return: places, in the order in which they were chosen.
    """
    chosen: list[int] = []
    left, nearest = np.ones(len(relevance), dtype=bool), np.zeros(len(relevance))
    for _ in range(min(limit, len(relevance))):
        # The first is the most relevant, however little that counts.
        value = threshold * relevance - (1 - threshold) * nearest if chosen else relevance
        chosen.append(int(np.where(left, value, -np.inf).argmax()))
        left[chosen[-1]] = False
        nearest = overlap[:, chosen].max(-1)
    return chosen
