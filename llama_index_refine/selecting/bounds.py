"""How many documents of a set are relevant at least or at most, after some drawn at random were graded."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=4096)
def most_hits(size: int, drawn: int, hits: int, risk: float) -> int:
    """Bound the number of relevant documents in a set from above.

    The exact bound for draws without replacement, from the hypergeometric distribution: the greatest number at which no
    more than `hits` among `drawn` still has a probability above `risk`. It is what Clopper and Pearson (1934) do with
    the binomial distribution, which is the limit for a large set.

    :param size: documents in the set.
    :param drawn: how many of them were drawn, all alike, and graded.
    :param hits: how many of those are relevant.
    :param risk: the probability that the bound is wrong, in (0, 1).
    :return: from `hits` to `size` - `drawn` + `hits`.
    """
    from scipy.stats import hypergeom  # type: ignore[import-untyped]

    low, high = hits, size - drawn + hits
    while low < high:
        middle = (low + high + 1) // 2
        if hypergeom.cdf(hits, size, middle, drawn) > risk:
            low = middle
        else:
            high = middle - 1
    return low


def least_hits(size: int, drawn: int, hits: int, risk: float) -> int:
    """Bound the number of relevant documents in a set from below. See `most_hits`.

    :return: from `hits` to `size` - `drawn` + `hits`.
    """
    return size - most_hits(size, drawn, drawn - hits, risk)


def least_share(drawn: float, hits: float, risk: float) -> float:
    """Bound from below how often draws are hits, where there are endlessly many: Clopper and Pearson (1934).

    :param drawn: how many were drawn; an effective number may be broken.
    :param hits: how many of those are hits.
    :param risk: the probability that the bound is wrong, in (0, 1).
    :return: in [0, 1].
    """
    from scipy.stats import beta

    return float(beta.ppf(risk, hits, drawn - hits + 1)) if hits > 0 else 0.0
