"""What one query's grades say of their teacher.

A teacher that grades by chance puts its grades on a query's documents in any order, all orders being equally likely. So
what chance looks like is known exactly, whatever the embedding, the number of documents or the scale: it is the
permutation distribution of the grades in hand (Fisher 1935, Pitman 1937). Every query is a test of that against a
teacher whose grades follow the vectors, and the tests of many queries add up.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# Signal to noise of the grades, one hypothesis each. Less cannot be told from chance within some fifty queries, and
# closer ones not from each other.
RATIOS = np.array([0.1, 0.3, 1.0, 3.0])
# Correlation of exact grades with the first similarity among the first K, which hardly differ in it.
AGREEMENT = 0.3
# No query's evidence can exceed one in this many.
PERMUTATIONS = 256


def evidence(documents: Vector, grades: Vector, similarities: Vector) -> Vector:
    """Weigh one query's grades.

    The hypothesis with signal-to-noise ratio r is a Gaussian process with linear kernel (Rasmussen and Williams 2006,
    chapter 2) that agrees with the first ranking:

        y ~ N(b z, (I + r K) / (1 + r) + b^2 z z'),    b = +-AGREEMENT sqrt(r / (1 + r))

    with y the grades less their mean, z the standardised similarities, K the linear kernel of the centred documents
    with trace K - 1, and the minus for a teacher that is upside down. Its evidence is f(y) / mean_P f(P y) over
    permutations P, which averages 1 over chance grades: an e-value (Ramdas, Grunwald, Vovk and Shafer 2023).

    :param documents: (K, d) vectors.
    :param grades: (K,) in units of the teacher's typical standard deviation.
    :param similarities: (K,)
    :return: (9,) log evidence of each hypothesis against chance.
    """
    count = len(grades)
    centred = documents - documents.mean(0)
    kernel = centred @ centred.T
    if np.trace(kernel) < 1e-12:
        return np.zeros(1 + 2 * len(RATIOS))
    kernel *= (count - 1) / np.trace(kernel)
    y, z = grades - grades.mean(), similarities - similarities.mean()
    z = z / z.std() if z.std() > 1e-9 else np.zeros_like(z)
    eigenvalues, basis = np.linalg.eigh(kernel)
    eigenvalues = np.maximum(eigenvalues, 0)
    y_basis, z_basis = y[_orders(count)] @ basis, z @ basis
    slopes = AGREEMENT * np.sqrt(RATIOS / (1 + RATIOS))
    precision = (1 + RATIOS) / (1 + np.outer(eigenvalues, RATIOS))
    # The quadratic forms of y, of y and z, and of z in each hypothesis' precision; the columns are RATIOS.
    yy, yz, zz = y_basis**2 @ precision, (y_basis * z_basis) @ precision, z_basis**2 @ precision
    slopes, yy, yz, zz = np.r_[-slopes, slopes], np.tile(yy, 2), np.tile(yz, 2), np.tile(zz, 2)
    rest, along = yy - slopes * (2 * yz - slopes * zz), yz - slopes * zz
    # The rank-one term b^2 z z' by Sherman and Morrison.
    density = 0.5 * ((slopes * along) ** 2 / (1 + slopes**2 * zz) - rest)
    most = density.max(0)
    logs: Vector = np.r_[0.0, density[0] - most - np.log(np.exp(density - most).mean(0))]
    return logs


@lru_cache(maxsize=64)
def _orders(count: int) -> NDArray[np.intp]:
    """(PERMUTATIONS, count) the same permutations for the same number of grades, the identity first."""
    orders = np.tile(np.arange(count), (PERMUTATIONS, 1))
    orders[1:] = np.random.default_rng(count).permuted(orders[1:], axis=1)
    return orders
