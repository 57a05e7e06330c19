"""How likely a document is relevant, from its similarity to the refined query and the grades in hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Midpoints and slopes, in standard deviations of the collection's similarities.
LOWEST, HIGHEST, STEP = -3.0, 30.0, 0.25
ABOVE = 3.0
SLOPES = np.exp(np.linspace(np.log(0.3), np.log(6.0), 13))
# A slope is expected to be about this, give or take this many e-folds.
USUAL_SLOPE, SLOPE_SPREAD = 1.7, 0.6
# A document that is taken for irrelevant counts as so much of one that a teacher would have found so.
BACKGROUND = 0.15
# Where a curve is kept for later, in standard deviations of the collection's similarities.
PLACES = np.linspace(-8.0, 32.0, 321)
# How finely the collection's similarities are told apart where they are added up.
BINS = 400
# Curves that are less likely than this are left out.
NEGLIGIBLE = 1e-4
# Probabilities of a yes to an irrelevant document, and of a no to a relevant one; the last pair is a guesser's.
FALSE_YES = np.array([0.01, 0.05, 0.15, 0.15, 0.05, 0.3, 0.5])
FALSE_NO = np.array([0.01, 0.05, 0.15, 0.05, 0.15, 0.3, 0.5])
SHARES = np.array([0.2, 0.4, 0.1, 0.1, 0.1, 0.1])
# A teacher that is trusted entirely may still be one that guesses.
LEAST_CHANCE = 0.01
# What the 5 %, 50 % and 95 % points of a rate weigh.
POINTS = np.array([0.185, 0.63, 0.185])
# Numbers of documents that are told apart, two for each doubling, from a quarter of a document to a million.
EDGES = 2.0 ** np.arange(-2, 20.5, 0.5)
# How many queries' worth the belief counts that all of them are equally likely.
BEFOREHAND = 2.0
# Other questions are asked, or another collection, once in some two hundred queries.
CHANGE = 0.005


@dataclass(frozen=True)
class Errors:
    """What a teacher's error rates may be; the last pair is a guesser's.

    :param false_yes: (E,) probabilities of a yes to an irrelevant document.
    :param false_no: (E,) probabilities of a no to a relevant one.
    :param weights: (E,) each pair's probability.
    """

    false_yes: Array
    false_no: Array
    weights: Array

    @classmethod
    def usual(cls, trust: float) -> Errors:
        """Return what is usual. :param trust: the probability that the teacher sees relevance at all, in [0, 1]."""
        chance = max(1 - trust, LEAST_CHANCE)
        return cls(FALSE_YES, FALSE_NO, np.r_[(1 - chance) * SHARES, chance])

    @classmethod
    def measured(cls, false_yes: ArrayLike, false_no: ArrayLike) -> Errors:
        """Take rates from labels, each by its 5 %, 50 % and 95 % points (Keefer and Bodily 1983).

        :param false_yes: (3,) those points of the one rate.
        :param false_no: (3,) those of the other.
        :return: the nine pairs and a guesser's.
        """
        yes, no = (np.clip(np.asarray(rate, dtype=np.float64), 0.005, 0.995) for rate in (false_yes, false_no))
        weights = (1 - LEAST_CHANCE) * np.outer(POINTS, POINTS).ravel()
        return cls(np.r_[np.repeat(yes, 3), 0.5], np.r_[np.tile(no, 3), 0.5], np.r_[weights, LEAST_CHANCE])

    def answers(self, grades: ArrayLike) -> tuple[Array, Array]:
        """Say how likely a teacher gives these grades, for each pair of error rates.

        A grade counts as the share of yeses among its answers.

        :param grades: (K,) in [0, 1].
        :return: (E, K) for relevant documents, and for irrelevant ones, up to a factor that both share.
        """
        yes = np.asarray(grades, dtype=np.float64)[None]
        relevant = yes * (1 - self.false_no[:, None]) + (1 - yes) * self.false_no[:, None]
        irrelevant = yes * self.false_yes[:, None] + (1 - yes) * (1 - self.false_yes[:, None])
        return relevant, irrelevant


@dataclass(frozen=True)
class Ranking:
    """The similarities of a whole collection to one query, as far as they are known.

    :param similarities: (n,) larger is nearer; in any order.
    :param weights: (n,) how many documents each one stands for.
    """

    similarities: Array
    weights: Array

    @classmethod
    def of(cls, found: ArrayLike, sample: ArrayLike, population: int) -> Ranking:
        """Put a ranking's beginning and a random sample together.

        :param found: (m,) similarities of the first documents, best first.
        :param sample: (N,) similarities of documents drawn at random.
        :param population: how many documents there are.
        :return: the ranking; those of the sample that lie below what was found stand for the rest.
        """
        first, drawn = (np.asarray(values, dtype=np.float64) for values in (found, sample))
        rest = population - len(first)
        if rest <= 0 or not len(first):
            return cls(first, np.ones(len(first)))
        below = drawn[drawn < first[-1]]
        if not len(below):
            below = first[-1:]
        return cls(np.r_[first, below], np.r_[np.ones(len(first)), np.full(len(below), rest / len(below))])


@dataclass(frozen=True)
class Relevance:
    """The probability of relevance, which rises with the similarity: logistic curves, each with its own probability.

    :param centre: the similarity that curves are measured from, and `scale`, the one that counts as 1.
    :param midpoints: (T,) where each curve passes 1/2, in that scale.
    :param slopes: (T,) its steepness, above 0.
    :param weights: (T,) its probability.
    :param errors: (E, T) probabilities of curve and error rates together.
    :param numbers: (T,) how many documents of the collection each curve expects to be relevant.
    :param rates: the error rates.
    """

    centre: float
    scale: float
    midpoints: Array
    slopes: Array
    weights: Array
    errors: Array
    numbers: Array
    rates: Errors

    def each(self, similarities: ArrayLike) -> Array:
        """(T, n) the probability that each curve gives to documents with these similarities, (n,)."""
        standard = (np.asarray(similarities, dtype=np.float64) - self.centre) / self.scale
        # Torch takes a third of the time that scipy's expit does.
        logits = torch.from_numpy(self.slopes[:, None] * (standard - self.midpoints[:, None]))
        curve: Array = logits.sigmoid_().numpy()
        return curve

    def guesser(self) -> float:
        """Say how likely the grades are a guesser's."""
        return float(self.errors[-1].sum())

    def probability(self, similarities: ArrayLike) -> Array:
        """Say how likely documents that nobody has graded are relevant.

        :param similarities: (n,) to the refined query.
        :return: (n,) in [0, 1], rising with the similarity.
        """
        values = np.asarray(similarities, dtype=np.float64)
        if len(values) <= BINS:
            return self.weights @ self.each(values)
        places = np.linspace(values.min(), values.max(), BINS)
        return np.interp(values, places, self.weights @ self.each(places))

    def curve(self) -> Array:
        """(2, 321) similarities, rising, and the probability at each: what is needed of it to judge new documents."""
        similarities = self.centre + self.scale * PLACES
        return np.stack([similarities, self.weights @ self.each(similarities)])

    def of_graded(self, similarities: ArrayLike, grades: ArrayLike) -> Array:
        """Say how likely graded documents are relevant, by Bayes' rule from curve, error rates and grade.

        :param similarities: (K,) to the refined query, as the other documents' grades have it.
        :param grades: (K,) in [0, 1].
        :return: (K,) in [0, 1].
        """
        relevant, irrelevant = self.rates.answers(grades)
        curve = self.each(similarities)[None]
        hits = curve * relevant[:, None]
        posterior: Array = np.einsum("et,etk->k", self.errors, hits / (hits + (1 - curve) * irrelevant[:, None]))
        return posterior

    def of_any(self, similarities: ArrayLike, places: ArrayLike = (), grades: ArrayLike = ()) -> float:
        """Say how likely at least one of some documents is relevant.

        Documents are relevant independently of each other by each curve and pair of error rates, but not when these are
        unsure: what speaks against one document speaks against all. So none is relevant with the mean, over curves and
        error rates, of the product of each document's probability not to be.

        :param similarities: (n,) to the refined query, of documents that nobody has graded.
        :param places: (K,) similarities of graded ones, as the other documents' grades have it.
        :param grades: (K,) theirs, in [0, 1].
        :return: in [0, 1]; 0 of no document.
        """
        relevant, irrelevant = self.rates.answers(grades)
        curve = self.each(places)[None]
        misses = (1 - curve) * irrelevant[:, None]
        none = (misses / (misses + curve * relevant[:, None])).prod(-1) * (1 - self.each(similarities)).prod(-1)
        return float((self.errors * (1 - none)).sum().clip(0, 1))


def fit_relevance(
    ranking: Ranking,
    graded: ArrayLike,
    grades: ArrayLike,
    trust: float = 1.0,
    log_odds: Callable[[Array], Array] = np.zeros_like,
    background: ArrayLike = (),
    rates: Errors | None = None,
) -> Relevance:
    """Weigh logistic curves by how well they explain the grades.

    With the similarity z in standard deviations of the collection's, a curve is p(z) = 1 / (1 + exp(-b (z - c))) (Platt
    1999). All curves on a grid of c and b are kept, each with its posterior probability, so that few grades, or grades
    that any steep curve separates, leave doubt instead of certainty. Beforehand log b is normal, and the number of
    relevant documents, the sum of p over the collection, is as likely between 1 and 10 as between 10 and 100, unless
    past queries tell more of it.

    :param ranking: the collection's similarities to the refined query.
    :param graded: (K,) similarities of the graded documents, without the share of their own grade; K may be 0.
    :param grades: (K,) in [0, 1].
    :param trust: the probability that the teacher sees relevance at all, in [0, 1].
    :param log_odds: says how much likelier, in nats, numbers of relevant documents are than that.
    :param background: (N,) similarities of documents drawn at random, where they may be taken for irrelevant: as one of
        many classes holds few of them. Where a search is behind a filter, a good part of them may be relevant.
    :param rates: the teacher's error rates, as far as labels tell; None for what is usual with that trust.
    :return: the relevance.
    :raises ValueError: a ranking without documents.
    """
    if not len(ranking.similarities):
        raise ValueError("ranking holds no document")
    total = ranking.weights.sum()
    centre = float(ranking.weights @ ranking.similarities / total)
    variance = float(ranking.weights @ (ranking.similarities - centre) ** 2 / total)
    scale = np.sqrt(variance) if variance > 1e-12 * max(centre**2, 1e-12) else 1.0
    standard = (ranking.similarities - centre) / scale
    places = np.arange(LOWEST, np.clip(standard.max(), ABOVE, HIGHEST) + ABOVE, STEP)
    midpoints, slopes = np.repeat(places, len(SLOPES)), np.tile(SLOPES, len(places))
    rates = rates or Errors.usual(trust)
    curves = Relevance(centre, scale, midpoints, slopes, np.ones(len(slopes)), np.empty((0, 0)), np.empty(0), rates)
    similarities, counts = ranking.similarities, ranking.weights
    if len(similarities) > BINS:
        counts, edges = np.histogram(similarities, BINS, weights=counts)
        similarities = (edges[1:] + edges[:-1]) / 2
    numbers: Array = curves.each(similarities) @ counts
    # What is believed before any grade.
    logarithm = np.log(np.maximum(numbers, 1e-9)).reshape(len(places), len(SLOPES))
    density = np.abs(np.gradient(logarithm, places, axis=0)).ravel()
    slope = ((np.log(slopes) - np.log(USUAL_SLOPE)) / SLOPE_SPREAD) ** 2 / 2
    none = np.where(numbers >= 0.5, 0.0, -2.0)
    logs = np.log(density + 1e-12) + none - slope + log_odds(numbers)
    logs += BACKGROUND * np.log1p(-curves.each(background) * (1 - 1e-9)).sum(1)
    relevant, irrelevant = (answer.T[:, :, None] for answer in rates.answers(grades))
    likelihood = irrelevant + curves.each(graded).T[:, None].copy() * (relevant - irrelevant)
    # A product takes a tenth of the time that logarithms do, and so many of at least 0.01 each do not vanish.
    for at in range(0, len(likelihood), 100):
        logs = logs + np.log(likelihood[at : at + 100].prod(0))
    weights = rates.weights[:, None] * np.exp(logs - logs.max())
    weights /= weights.sum()
    kept = weights.sum(0) > NEGLIGIBLE
    weights = weights[:, kept] / weights[:, kept].sum()
    return Relevance(centre, scale, midpoints[kept], slopes[kept], weights.sum(0), weights, numbers[kept], rates)


@dataclass(frozen=True)
class Abundance:
    """What past queries say of the number of documents that are relevant to the next one.

    Twenty grades at the top say little of how many documents are relevant further down. The queries of one application
    are alike in that, so what each one's grades say of its number, vague as it is, is added up, and is where the next
    one begins (empirical Bayes, Robbins 1956).

    :param counts: (47,) how many queries had so many, each shared out as its grades leave it open.
    """

    counts: Array

    @classmethod
    def unknown(cls) -> Abundance:
        """Return what is known before any query."""
        return cls(np.zeros(len(EDGES) + 1))

    def valid(self) -> bool:
        """Whether these are counts, as they must be where they come from a file."""
        counts = self.counts
        return counts.shape == (len(EDGES) + 1,) and bool(np.isfinite(counts).all() and (counts >= 0).all())

    def log_odds(self, numbers: ArrayLike) -> Array:
        """Say how much likelier numbers are than beforehand, when each doubling was as likely as another.

        :param numbers: (n,) numbers of relevant documents, at least 0.
        :return: (n,) in nats.
        """
        usual = 1 / len(self.counts)
        shares = (BEFOREHAND * usual + self.counts) / (BEFOREHAND + self.counts.sum())
        odds: Array = np.log(shares / usual)[np.digitize(np.asarray(numbers, dtype=np.float64), EDGES)]
        return odds

    def after(self, numbers: ArrayLike, weights: ArrayLike) -> Abundance:
        """Return what is known once another query has been graded.

        :param numbers: (n,) numbers of documents that may be relevant to it.
        :param weights: (n,) their probabilities; they add up to 1, or less where the grades may be a guesser's.
        :return: the same and one more query.
        """
        places = np.digitize(np.asarray(numbers, dtype=np.float64), EDGES)
        more = np.bincount(places, np.asarray(weights, dtype=np.float64), minlength=len(self.counts))
        return Abundance((1 - CHANGE) * self.counts + more)
