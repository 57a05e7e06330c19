"""How a teacher errs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Probabilities of a yes to an irrelevant document, and of a no to a relevant one; the last pair is a guesser's.
FALSE_YES = np.array([0.01, 0.05, 0.15, 0.15, 0.05, 0.3, 0.5])
FALSE_NO = np.array([0.01, 0.05, 0.15, 0.05, 0.15, 0.3, 0.5])
SHARES = np.array([0.2, 0.4, 0.1, 0.1, 0.1, 0.1])
# A teacher that is trusted entirely may still be one that guesses.
LEAST_CHANCE = 0.01


@dataclass(frozen=True)
class Errors:
    """What is believed of a teacher's error rates: a probability for each pair of them.

    :param weights: (7,) probabilities of the pairs.
    """

    weights: Array

    @classmethod
    def of(cls, trust: float) -> Errors:
        """Return what is believed before a query's grades are seen.

        :param trust: the probability that the teacher sees relevance at all, in [0, 1].
        :return: the errors.
        """
        chance = max(1 - trust, LEAST_CHANCE)
        return cls(np.r_[(1 - chance) * SHARES, chance])


def answers(grades: ArrayLike) -> tuple[Array, Array]:
    """Say how likely a teacher gives these grades, for each pair of error rates.

    A grade counts as the share of yeses among its answers.

    :param grades: (K,) in [0, 1].
    :return: (7, K) for relevant documents, and for irrelevant ones, up to a factor that both share.
    """
    yes = np.asarray(grades, dtype=np.float64)[None]
    relevant = yes * (1 - FALSE_NO[:, None]) + (1 - yes) * FALSE_NO[:, None]
    irrelevant = yes * FALSE_YES[:, None] + (1 - yes) * (1 - FALSE_YES[:, None])
    return relevant, irrelevant
