"""How far a teacher's grades can be trusted, learned from the grades of all its queries so far."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_index_refine.locks import Lock
from llama_index_refine.refining.base import TYPICAL_SIGNAL
from llama_index_refine.refining.evidence import RATIOS, evidence
from llama_index_refine.refining.relevance import CHANGE, Abundance, Errors

Vector = NDArray[np.float64]

# Beforehand. Most teachers that someone chose to use know something, and following a guesser until it is found out
# costs less than not following one that knows. Where few documents are relevant, grades follow the vectors little even
# if they are exact.
CHANCE, INVERTED = 0.25, 0.01
SHARES = np.array([0.5, 0.25, 0.15, 0.1])
PRIOR = np.r_[CHANCE, np.full(len(RATIOS), INVERTED / len(RATIOS)), (1 - CHANCE - INVERTED) * SHARES]
# The least that a teacher's odds are lowered to for saying itself that it knows little.
LEAST_CLAIM = 0.25
# Bits of information in a grade, below which grades do not say what to grade next. results/llm has those of two small
# models, which are below it on most collections; a bare verdict has 1.
UNDECIDED = 0.15
# A teacher is known after two queries; a little of each is forgotten.
WATCHED = 1.5
# Grades that differ by less are alike.
ALIKE = 1e-6
# Grades of one query that all lie within a tenth are not stretched any further: they say that its documents are alike.
NARROW = 0.1


@dataclass(frozen=True)
class Belief:
    """What is believed about a teacher, at first one that nobody has seen.

    :param hypotheses: (9,) probabilities of chance, of each of RATIOS upside down, of each of RATIOS upright.
    :param claim: mean information of a grade in bits, over `queries`.
    :param variance: mean variance of a query's grades, over the `varied` queries in which they differed.
    """

    hypotheses: Vector = field(default_factory=PRIOR.copy)
    claim: float = 0.0
    queries: float = 0.0
    variance: float = 0.0
    varied: float = 0.0

    def valid(self) -> bool:
        """Whether these are probabilities and counts, as they must be where they come from a file."""
        numbers = [self.claim, self.queries, self.variance, self.varied]
        hypotheses = self.hypotheses
        return (
            hypotheses.shape == (1 + 2 * len(RATIOS),)
            and bool(np.isfinite(hypotheses).all() and (hypotheses >= 0).all() and abs(hypotheses.sum() - 1) < ALIKE)
            and all(math.isfinite(number) and number >= 0 for number in numbers)
        )

    def trust(self) -> float:
        """Say how far to follow the teacher: the probability that it sees relevance, upright.

        There is no threshold below which a teacher is not followed at all: the small pushes of a guesser, which point
        in no direction, help about as often as they hurt, while those of a teacher that knows add up.

        :return: in [0, 1]; 0 for a teacher that has graded everything alike so far.
        """
        if not self.varied:
            return 0.0
        upright = self.hypotheses[1 + len(RATIOS) :].sum()
        odds = upright / max(1 - upright, 1e-12) * min(1.0, max(LEAST_CLAIM, self.claim))
        return float(odds / (1 + odds))

    def signal(self) -> float:
        """Say how well the vectors explain the teacher's grades, should it know anything.

        :return: the geometric mean of the signal-to-noise ratio, between the least and the greatest of RATIOS.
        """
        upright = self.hypotheses[1 + len(RATIOS) :]
        return float(np.exp(upright @ np.log(RATIOS) / upright.sum())) if upright.sum() > 0 else float(RATIOS[0])

    def after(self, documents: Vector, grades: Vector, similarities: Vector) -> Belief:
        """Return the belief once a query has been graded, by Bayes' rule.

        :param documents: (K, d) vectors.
        :param grades: (K,) in [0, 1].
        :param similarities: (K,) to the query, before it moved; larger is nearer.
        :return: the belief; grades that are all alike are evidence of nothing.
        """
        keep = 1 - CHANGE
        belief = replace(
            self,
            hypotheses=keep * self.hypotheses + CHANGE * PRIOR,
            queries=keep * self.queries + 1,
        )
        inside = np.clip(grades, 1e-9, 1 - 1e-9)
        entropy = -np.mean(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
        belief = replace(belief, claim=self.claim + (1 - float(entropy) - self.claim) / belief.queries)
        if len(grades) < 2 or np.ptp(grades) <= ALIKE:
            return belief
        varied = keep * self.varied + 1
        variance = self.variance + (float(grades.var()) - self.variance) / varied
        logs = evidence(documents, grades / np.sqrt(variance), similarities)
        hypotheses = belief.hypotheses * np.exp(logs - logs.max())
        return replace(
            belief,
            hypotheses=hypotheses / hypotheses.sum(),
            varied=varied,
            variance=variance,
        )


@dataclass
class Reliability:
    """One teacher's record: what all its queries so far say of it. Small, and safe to share between threads.

    Its `rates` are what people's labels say of its errors, None where there are none.
    """

    belief: Belief = field(default_factory=Belief)
    abundance: Abundance = field(default_factory=Abundance.unknown)
    rates: Errors | None = field(default=None, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def observe(self, documents: ArrayLike, grades: ArrayLike, similarities: ArrayLike) -> float:
        """Take in the grades of one query.

        :param documents: (K, d) vectors of all the graded documents.
        :param grades: (K,) in [0, 1].
        :param similarities: (K,) to the query, before it moved; larger is nearer.
        :return: the trust that these grades deserve, in [0, 1], in the light of all before and of themselves.
        """
        arrays = [np.asarray(values, dtype=np.float64) for values in (documents, grades, similarities)]
        with self._lock:
            self.belief = self.belief.after(*arrays)
            return self.belief.trust()

    @property
    def varied(self) -> bool:
        """Whether it has seen grades that differ, which alone tell anything of the teacher."""
        return self.belief.varied > 0

    def trust(self) -> float:
        """Say how far to follow the teacher by all that was taken in so far, in [0, 1]."""
        return self.belief.trust()

    def sees(self) -> float:
        """Say how likely it is that the teacher sees relevance, upright: 1 less guessing and less upside down."""
        return float(self.belief.hypotheses[1 + len(RATIOS) :].sum())

    def foresee(self, documents: ArrayLike, grades: ArrayLike, similarities: ArrayLike) -> tuple[float, float]:
        """Say what would follow from the grades of one query, without taking them in: it is not over.

        :return: the trust, as of `observe`, and how well the vectors explain the teacher's grades, as of `signal`.
        """
        arrays = [np.asarray(values, dtype=np.float64) for values in (documents, grades, similarities)]
        belief = self.belief.after(*arrays)
        return belief.trust(), belief.signal()

    def known(self) -> bool:
        """Say whether enough was seen of the teacher to go by a part of a query's grades."""
        return self.belief.queries >= WATCHED

    def decides(self) -> bool:
        """Say whether its grades say enough to choose by them what is graded next.

        A model whose grades all lie near one half errs where documents look alike. What is chosen by such grades lies
        where it erred, and gets the same grades again.
        """
        belief = self.belief
        return not belief.queries or belief.claim >= UNDECIDED

    def signal(self) -> float:
        """Say how well the vectors explain the teacher's grades so far: a signal-to-noise ratio, 0.1 to 3."""
        return self.belief.signal()

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, for another process to begin with: see `load`.

        :param path: the file, which is replaced.
        :raises OSError: it cannot be written.
        """
        record, path = self.to_dict(), Path(path)
        # Whoever reads it meanwhile finds the old record or the new one.
        with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(record, file, allow_nan=False)
        Path(file.name).replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Reliability:
        """Read what `save` wrote.

        :param path: the file.
        :return: the record, to be given to a retriever as its `trust`.
        :raises OSError: there is no such file, or it cannot be read.
        :raises ValueError: the file was not written by `save`.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} is not a record that Reliability.save wrote: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Write the record in what JSON knows."""
        with self._lock:
            belief = {**vars(self.belief), "hypotheses": self.belief.hypotheses.tolist()}
            return {
                "ratios": RATIOS.tolist(),
                "belief": belief,
                "abundance": self.abundance.counts.tolist(),
            }

    @classmethod
    def from_dict(cls, record: Any) -> Reliability:
        """Read what `to_dict` wrote.

        :param record: the dictionary.
        :return: the record.
        :raises ValueError: it is none.
        """
        try:
            belief = Belief(**{**record["belief"], "hypotheses": np.array(record["belief"]["hypotheses"], dtype=float)})
            abundance = Abundance(np.array(record["abundance"], dtype=float))
            if record["ratios"] != RATIOS.tolist() or not belief.valid() or not abundance.valid():
                raise ValueError("its numbers are not the probabilities of these hypotheses")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(str(error)) from error
        return cls(belief, abundance)

    def knows_more_than(self, other: Reliability) -> bool:
        """Say whether more queries stand behind this record than behind another."""
        return self.belief.queries > other.belief.queries

    def adopt(self, other: Reliability) -> None:
        """Take over another record of the same teacher, if more queries stand behind it.

        :param other: the record.
        """
        if other.knows_more_than(self):
            with self._lock:
                self.belief, self.abundance = other.belief, other.abundance

    def count(self, numbers: ArrayLike, weights: ArrayLike) -> None:
        """Take in how many documents were relevant to a query.

        :param numbers: (n,) how many may be.
        :param weights: (n,) their probabilities.
        """
        with self._lock:
            self.abundance = self.abundance.after(numbers, weights)


class FixedTrust:
    """A teacher that is followed by a share that the user knows: a `Reliability` that learns nothing.

    :param share: how far to follow the teacher, in [0, 1].
    :raises ValueError: a share outside that.
    """

    varied = True
    abundance = Abundance.unknown()
    rates: Errors | None = None

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"trust must be in [0, 1], got {share}")
        self.share = float(share)

    def trust(self) -> float:
        """Return the share."""
        return self.share

    def sees(self) -> float:
        """Return the share."""
        return self.share

    def observe(self, documents: ArrayLike, grades: ArrayLike, similarities: ArrayLike) -> float:
        """Return the share, whatever was graded."""
        return self.share

    def foresee(self, documents: ArrayLike, grades: ArrayLike, similarities: ArrayLike) -> tuple[float, float]:
        """Return the share and what is typical, whatever was graded."""
        return self.share, TYPICAL_SIGNAL

    def known(self) -> bool:
        """Return True: the user knows the teacher."""
        return True

    def decides(self) -> bool:
        """Return True: the user knows the teacher."""
        return True

    def signal(self) -> float:
        """Return the signal-to-noise ratio that is typical."""
        return TYPICAL_SIGNAL

    def count(self, numbers: ArrayLike, weights: ArrayLike) -> None:
        """Take nothing in."""


Teacher = Reliability | FixedTrust


def shrink(grades: Sequence[float], spread: Sequence[float | None]) -> list[float]:
    """Draw uncertain grades towards the mean, the more the less sure the teacher was of them.

    Kelley's formula for a true score (1927): mean + (grade - mean) v / (v + spread^2), with v the variance of the
    grades that their spread does not explain.

    :param grades: (K,) in [0, 1].
    :param spread: (K,) one standard deviation of each grade, None where it is not known.
    :return: (K,) in [0, 1].
    """
    if not any(spread):
        return [float(grade) for grade in grades]
    values = np.asarray(grades, dtype=np.float64)
    noise = np.square([deviation or 0.0 for deviation in spread])
    true = max(0.0, float(values.var() - noise.mean()))
    share = np.divide(true, true + noise, out=np.ones_like(noise), where=noise > 0)
    return [float(value) for value in values.mean() + share * (values - values.mean())]


def stretch(grades: ArrayLike, among: ArrayLike) -> Vector:
    """Spread one query's grades, so that they span the whole scale.

    An LLM's probability of a yes has an offset and a width of its own for each query. What tells documents apart is how
    a grade stands among the others of its query. Bare verdicts stay what they are, and so do grades that are all alike.
    Those within a tenth are spread tenfold, about their mean as far as the scale leaves room.

    :param grades: (n,) in [0, 1].
    :param among: (K,) all grades of the query.
    :return: (n,) in [0, 1], in the same order.
    """
    every, values = (np.asarray(some, dtype=np.float64) for some in (among, grades))
    if not every.size:
        return values
    width, middle = max(np.ptp(every), NARROW), every.mean()
    lowest, highest = (middle + (end - middle) / width for end in (every.min(), every.max()))
    inside = max(-lowest, 0.0) - max(highest - 1, 0.0)
    stretched: Vector = np.clip(middle + (values - middle) / width + inside, 0.0, 1.0)
    return stretched


def certainty(grades: ArrayLike) -> float:
    """Say how decided one query's grades are: how wide they lie, or how far from one half.

    :param grades: (K,) in [0, 1], as the teacher gave them.
    :return: from 0, where all are one half, to 1, for bare verdicts.
    """
    values = np.asarray(grades, dtype=np.float64)
    if not values.size:
        return 1.0
    return float(max(np.ptp(values), np.abs(2 * values - 1).mean()))
