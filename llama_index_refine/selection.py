"""What one selection found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llama_index_refine.selecting.cut import Interval

if TYPE_CHECKING:
    import numpy as np
    from llama_index.core.schema import NodeWithScore
    from matplotlib.figure import Figure

    from llama_index_refine.refinement import Refinement

UNKNOWN = Interval(0.0, float("nan"), 1.0)


@dataclass(repr=False)
class Selection:
    """The nodes of a collection that belong to a query.

    Relevant is what the teacher calls so, with a grade of at least 0.5. How sure the numbers are towards the truth, its
    errors decide.

    :param nodes: the nodes, most probable first; their score is the probability that they are relevant.
    :param threshold: with `vector` a query that can be stored: Qdrant's score that separates what nobody graded.
    :param vector: (d,) the refined vector.
    :param precision: the share of the nodes that is relevant: low, estimate, high.
    :param recall: the share of the collection's relevant nodes that is selected: low, estimate, high.
    :param expected_total: how many nodes of the collection are relevant, as estimated.
    :param graded: how many nodes were graded for it.
    :param certified: whether documents drawn at random have shown that the target is reached, with the confidence that
        was asked for. Then the low end of precision or recall is that bound; otherwise it is what the probabilities
        say.
    :param reason: why it is not certified, None where it is.
    :param refinement: how the query moved, and what the grading cost.
    :param cuts: the expected precision and recall of every cut, for the picture.
    """

    nodes: Sequence[NodeWithScore]
    threshold: float
    vector: np.ndarray
    precision: Interval
    recall: Interval
    expected_total: float
    graded: int
    certified: bool
    reason: str | None
    refinement: Refinement
    cuts: Cuts = field(default_factory=lambda: Cuts((), (), (), 0))

    def __repr__(self) -> str:
        from llama_index_refine.display.moves import clean

        said = "certified" if self.certified else f"not certified: {self.reason}"
        return (
            f"<{type(self).__name__} for {clean(self.refinement.query_str, 80)!r}. {len(self.nodes)} nodes of about "
            f"{self.expected_total:.0f} that are relevant; precision {_written(self.precision)}, recall "
            f"{_written(self.recall)}; {self.graded} graded; {said}>"
        )

    def plot(self) -> Figure:
        """Draw the expected precision and recall against the cut, and where it was made.

        :return: a matplotlib figure.
        :raises ImportError: matplotlib is missing; the message says how to install it.
        :raises ValueError: nothing was selected from.
        """
        from llama_index_refine.display.cuts import draw_cuts

        return draw_cuts(self.cuts, self.precision, self.recall)


@dataclass(frozen=True)
class Cuts:
    """What is expected of every cut.

    :param counts: how many nodes are above it, ascending.
    :param precision: the share of them that is relevant.
    :param recall: the share of the relevant ones that is above it.
    :param chosen: how many nodes were selected.
    """

    counts: Sequence[int]
    precision: Sequence[float]
    recall: Sequence[float]
    chosen: int


def _written(interval: Interval) -> str:
    return f"{interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})"
