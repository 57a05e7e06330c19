"""Any search, ranked by a formula over its score and the payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdrant_client import models
from torch import Tensor

from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.qdrant.views.dense import Query, Row, View

if TYPE_CHECKING:
    from llama_index_refine.qdrant.background import Background

# The best by a formula may lie further down by similarity.
DEEPER, LEAST_DEPTH = 4, 200


class BoostedQuery(Query):
    """The best by a formula among the first of a search. What it says only tells in which order points come.

    :param near: the search, whose score is "$score".
    :param boost: the formula.
    """

    ranks = True
    fuses = True

    def __init__(self, near: Query, boost: models.FormulaQuery) -> None:
        self.near, self.boost = near, boost
        self.finds_all, self.threshold, self.dense = near.finds_all, near.threshold, near.dense

    @property
    def telling(self) -> Query | None:
        """What tells of the search."""
        return self.near.telling

    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write the search as a prefetch. See `Query`."""
        depth = max(DEEPER * depth, LEAST_DEPTH)
        return {
            "prefetch": [models.Prefetch(**self.near.fields(space, restricted, depth), limit=depth)],
            "query": self.boost,
        }

    def vectors(self, space: Space) -> dict[str, Any]:
        """See `Query`."""
        return self.near.vectors(space)

    def view(self, space: Space) -> BoostedView:
        """See `Query`."""
        return BoostedView(self, space)

    def misfit(self, space: Space) -> str | None:
        """Say why the search cannot search there."""
        return self.near.misfit(space)


class BoostedView(View):
    """Rows are the search's."""

    _first: BoostedQuery

    # What a row says is not what points are ranked by: scores are the formula's.
    lasts = False

    def __init__(self, first: BoostedQuery, space: Space) -> None:
        super().__init__(first, space)
        self._near = first.near.view(space)
        self.metric, self.distance, self.heavy = self._near.metric, self._near.distance, self._near.heavy
        self.ahead, self.shape, self.whole = self._near.ahead, self._near.shape, self._near.whole

    def meet(self, shown: Vectors, background: Background | None) -> None:
        """See `View`."""
        self._near.meet(shown, background)
        self.scatter, self.ahead = self._near.scatter, self._near.ahead

    @property
    def row(self) -> Row:
        """(D,) the first query of the search."""
        return self._near.row

    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return the search's rows."""
        return self._near.rows(*some)

    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the refined search with the formula; the first query where nothing has moved."""
        near = self._near.refined(row, ahead)
        return self._first if near is self._first.near else BoostedQuery(near, self._first.boost)

    def unit(self, row: Row) -> float:
        """See `View`."""
        return self._near.unit(row)

    def passes(self, row: Row, rows: Tensor, threshold: float) -> list[bool]:
        """See `View`."""
        return self._near.passes(row, rows, threshold)
