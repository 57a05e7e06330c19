"""The part of the scale that a teacher uses."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

STEPS = 100
# One relevant document in a hundred still marks the top of the scale, whatever the others got.
TAIL = 0.01
# A teacher whose grades all lie within this says nothing that stretching would make clearer.
NARROW = 0.1


class GradeRange:
    """Stretches a teacher's grades to [0, 1] by the range that nearly all of its grades lie in.

    An LLM whose probabilities never leave 0.6 to 0.95 tells documents apart as well as one that uses the whole scale,
    and would else be taken for one that finds everything relevant. The range is that of everything graded so far and
    one imagined grade at 0 and one at 1, so that a new teacher's scale is taken as it is.

    :param counts: (101,) how many grades fell on each hundredth, 0 first; None for a new teacher.
    :raises ValueError: counts of another form.
    """

    def __init__(self, counts: NDArray[np.float64] | None = None) -> None:
        if counts is None:
            counts = np.zeros(STEPS + 1)
            counts[[0, STEPS]] = 1
        if counts.shape != (STEPS + 1,) or not np.isfinite(counts).all() or (counts < 0).any() or not counts.sum():
            raise ValueError(f"counts must be {STEPS + 1} numbers of grades")
        self.counts = counts

    def add(self, grades: ArrayLike) -> None:
        """Take in grades.

        :param grades: (n,) in [0, 1].
        """
        places = np.rint(STEPS * np.asarray(grades, dtype=np.float64)).astype(int)
        np.add.at(self.counts, places, 1)

    def stretch(self, grades: ArrayLike) -> NDArray[np.float64]:
        """Put grades on the whole scale.

        :param grades: (n,) in [0, 1].
        :return: (n,) in [0, 1], in the same order.
        """
        values = np.asarray(grades, dtype=np.float64)
        share = np.cumsum(self.counts) / self.counts.sum()
        low, high = (np.searchsorted(share, tail) / STEPS for tail in (TAIL, 1 - TAIL))
        if high - low < NARROW:
            return values
        return np.clip((values - low) / (high - low), 0, 1)
