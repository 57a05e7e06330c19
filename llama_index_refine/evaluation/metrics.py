"""Ranking quality through ir-measures, separation of the classes, and intervals for differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

METRICS = {"MAP": "AP", "nDCG@10": "nDCG@10", "recall@10": "R@10", "recall@100": "R@100", "P@10": "P@10"}
"""Our names for the measures of ir-measures."""

CUTOFF = 1000
"""Documents of a ranking that count."""


def score_rankings(
    rankings: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Score rankings with every measure of `METRICS`.

    :param rankings: query id to document ids, best first; what comes after `CUTOFF` is ignored.
    :param qrels: query id to document id to label, above 0 for relevant; fractions are rounded up.
    :return: metric to query id to value in [0, 1]; a query with an empty ranking scores 0.
    :raises ImportError: ir-measures is missing.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError('ranking metrics need: pip install "llama-index-refine[bench]"') from error
    # The measures know whole labels, and cut fractions off.
    judged = {query: {document: ceil(label) for document, label in qrels[query].items()} for query in rankings}
    run = {
        query: {document: float(CUTOFF - rank) for rank, document in enumerate(ranking[:CUTOFF])}
        for query, ranking in rankings.items()
    }
    measures = {ir_measures.parse_measure(measure): name for name, measure in METRICS.items()}
    scores: dict[str, dict[str, float]] = {name: dict.fromkeys(rankings, 0.0) for name in METRICS}
    for value in ir_measures.iter_calc(list(measures), judged, run):
        scores[measures[value.measure]][value.query_id] = float(value.value)
    return scores


def area_under_roc(relevant: NDArray[np.floating], irrelevant: NDArray[np.floating]) -> float:
    """Chance that a relevant document scores above an irrelevant one; ties count half.

    :param relevant: (n,) scores of the relevant documents.
    :param irrelevant: (m,) scores of the others.
    :return: in [0, 1]; NaN where a class is empty.
    """
    if not len(relevant) or not len(irrelevant):
        return float("nan")
    others = np.sort(irrelevant)
    below, not_above = np.searchsorted(others, relevant, "left"), np.searchsorted(others, relevant, "right")
    return float((below + not_above).mean() / (2 * len(others)))


def class_gap(relevant: NDArray[np.floating], irrelevant: NDArray[np.floating]) -> float:
    """Distance of the two classes' means in pooled standard deviations (Cohen's d).

    :param relevant: (n,) scores of the relevant documents.
    :param irrelevant: (m,) scores of the others.
    :return: positive where the relevant score higher; NaN where it is not defined.
    """
    n, m = len(relevant), len(irrelevant)
    if n < 1 or m < 1 or n + m < 3:
        return float("nan")
    squares = ((relevant - relevant.mean()) ** 2).sum() + ((irrelevant - irrelevant.mean()) ** 2).sum()
    pooled = float(np.sqrt(squares / (n + m - 2)))
    return float((relevant.mean() - irrelevant.mean()) / pooled) if pooled > 0 else float("nan")


def p_mrr(rankings: Mapping[str, Sequence[str]], changed: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How far documents that a changed instruction makes irrelevant fall (FollowIR, arXiv 2403.15246).

    For a document at rank r with the original and r' with the changed instruction: r'/r made into 1 - r/r' where it
    fell, r'/r - 1 where it rose; averaged over a query's documents.

    :param rankings: ids stem-og and stem-changed to document ids, best first.
    :param changed: stem to the documents that are no longer relevant.
    :return: stem to a value in [-1, 1], 0 where nothing moved, for the stems with both rankings.
    """
    scores = {}
    for stem, documents in changed.items():
        if f"{stem}-og" not in rankings or f"{stem}-changed" not in rankings or not documents:
            continue
        before, after = _ranks(rankings[f"{stem}-og"]), _ranks(rankings[f"{stem}-changed"])
        moves = [_move(before.get(d, len(before) + 1), after.get(d, len(after) + 1)) for d in documents]
        scores[stem] = float(np.mean(moves))
    return scores


def _ranks(ranking: Sequence[str]) -> dict[str, int]:
    return {document: rank for rank, document in enumerate(ranking, 1)}


def _move(before: int, after: int) -> float:
    return after / before - 1 if before >= after else 1 - before / after


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its interval.

    :param low: lower end of the interval.
    :param high: upper end.
    """

    mean: float
    low: float
    high: float


def paired_bootstrap(
    ours: Sequence[float], theirs: Sequence[float], resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Percentile bootstrap interval for the mean difference over the same queries.

    :param ours: one value per query.
    :param theirs: one value per query, in the same order. A pair with a NaN is left out.
    :param level: coverage of the interval, in (0, 1).
    :return: ours minus theirs; all NaN where no pair is left.
    :raises ValueError: lengths differ.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"ours has {len(ours)} queries and theirs {len(theirs)}: they must be the same queries")
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return Difference(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(0, len(differences), (resamples, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(differences.mean()), float(low), float(high))
