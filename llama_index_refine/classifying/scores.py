"""From similarities to labels and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llama_index_refine.refining.relevance import Ranking, fit_relevance
from llama_index_refine.similarity import Metric, similarity

Array = NDArray[np.float64]

# Where each label's probability is kept, in standard deviations of the collection's similarities.
PLACES = np.linspace(-4, 16, 81)
# Nats for one standard deviation that are tried, and what is taken where nothing was graded.
SHARPNESS, USUAL = np.geomspace(0.3, 12, 40), 3.0
# A scatter below this share of the similarities' size is rounding.
RESOLUTION = 1e-6
# No probability counts as smaller, so that one grade that errs does not decide.
LEAST = 0.01


@dataclass(frozen=True)
class Lesson:
    """What is known of one label.

    :param vector: (d,) its refined vector.
    :param held_out: (K,) similarities of its graded documents, as the other grades predict them.
    :param grades: (K,) in [0, 1].
    :param documents: (K, d) the graded documents.
    :param trust: the probability that who graded sees relevance at all.
    """

    vector: NDArray[np.float32]
    held_out: Array
    grades: Array
    documents: NDArray[np.float32]
    trust: float


@dataclass(frozen=True)
class Scores:
    """Tells C labels apart.

    :param metric: the collection's distance.
    :param vectors: (C, d) the labels' refined vectors.
    :param centres: (C,) mean similarity of the collection to each, and `scales`, its standard deviation.
    :param curves: (C, 81) probability at each of `PLACES` that a document is relevant to the label.
    :param sharpness: nats for one standard deviation.
    """

    metric: Metric
    vectors: NDArray[np.float32]
    centres: Array
    scales: Array
    curves: Array
    sharpness: float

    def standard(self, documents: NDArray[np.float32]) -> Array:
        """(n, C) similarities of documents, (n, d), in standard deviations of the collection's."""
        return (_similarities(self.vectors, documents, self.metric) - self.centres) / self.scales

    def probabilities(self, standard: Array, none: bool) -> Array:
        """Say how likely each label is.

        :param standard: (n, C) standardised similarities.
        :param none: whether a document may have none of the labels: the odds of each against that are its own curve's.
        :return: (n, C), rows that sum to 1, or with `none` to less.
        """
        logits = self.sharpness * standard
        shares: Array = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        return shares * self.any_of_them(standard)[:, None] if none else shares

    def any_of_them(self, standard: Array) -> Array:
        """(n,) probability that a document has one of the labels."""
        each = np.stack([np.interp(standard[:, at], PLACES, curve) for at, curve in enumerate(self.curves)], axis=1)
        odds: Array = (each / np.maximum(1 - each, 1e-9)).sum(1)
        return odds / (1 + odds)


def fit_scores(lessons: Sequence[Lesson], sample: NDArray[np.float32], population: int, metric: Metric) -> Scores:
    """Work out how similarities to the labels compare.

    :param lessons: what is known of each label.
    :param sample: (N, d) documents drawn at random from the collection.
    :param population: how many documents there are.
    :param metric: the collection's distance.
    :return: the scores.
    """
    vectors = np.stack([lesson.vector for lesson in lessons])
    drawn = _similarities(vectors, sample, metric)
    centres = drawn.mean(0)
    scales = np.maximum(drawn.std(0), RESOLUTION * np.maximum(np.abs(drawn).max(0), 1e-12))
    weight = np.full(len(sample), max(population, len(sample)) / len(sample))
    curves = []
    for at, lesson in enumerate(lessons):
        ranking = Ranking(np.sort(drawn[:, at])[::-1], weight)
        relevance = fit_relevance(ranking, lesson.held_out, lesson.grades, lesson.trust, background=drawn[:30, at])
        curves.append(relevance.probability(centres[at] + scales[at] * PLACES))
    scores = Scores(metric, vectors, centres, scales, np.stack(curves), USUAL)
    return Scores(metric, vectors, centres, scales, scores.curves, _sharpness(scores, lessons))


def _sharpness(scores: Scores, lessons: Sequence[Lesson]) -> float:
    """Choose it by the likelihood of the grades, each document's place for its own label being that without its grade.

    What was found irrelevant counts as well: it is what is hard to tell from the relevant, and keeps the easy relevant
    documents from making all too sure.
    """
    graded = [(at, lesson) for at, lesson in enumerate(lessons) if len(lesson.grades)]
    if not graded:
        return USUAL
    rows, own = [], []
    for at, lesson in graded:
        standard = scores.standard(lesson.documents)
        standard[:, at] = (lesson.held_out - scores.centres[at]) / scores.scales[at]
        rows.append(standard)
        own += [at] * len(lesson.grades)
    standard, places = np.concatenate(rows), np.array(own)
    grades = np.concatenate([lesson.grades for _, lesson in graded])
    gaps = standard - standard[np.arange(len(places)), places][:, None]
    costs = []
    for sharpness in SHARPNESS:
        against = np.logaddexp.reduce(sharpness * gaps, axis=1)
        missed = np.log(np.maximum(-np.expm1(-against), LEAST))
        costs.append((grades * against - (1 - grades) * missed).mean())
    return float(SHARPNESS[int(np.argmin(costs))])


def _similarities(vectors: NDArray[np.float32], documents: NDArray[np.float32], metric: Metric) -> Array:
    rows = torch.from_numpy(np.ascontiguousarray(documents))
    columns = [similarity(torch.from_numpy(vector), rows, metric).double().numpy() for vector in vectors]
    return np.stack(columns, axis=1)
