"""Whether a selection keeps what was asked of it, shown by documents drawn at random.

All draws go by one order of the documents that has nothing to do with their content. So the first of any set in that
order are a simple random sample of it, and sets within each other share theirs: permanent random numbers (Ohlsson
1995).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama_index_refine.selecting.bounds import least_hits, least_share, most_hits
from llama_index_refine.selecting.cut import Interval

# How far between the target and 1 the expected precision of the sets lies that are tried, strictest first, and the
# share of the budget that may be spent when each is tested. What is expected after few grades errs on the side of too
# little, so sets of less than the target are tried too.
MARGINS = (0.6, -0.2, -1.0, -2.0)
SPENT = (0.5, 0.7, 0.85, 1.0)

# Draws places of documents to be graded, and is sent whether each is relevant, None where there was no answer.
Draws = Generator[list[int], "list[bool | None]", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What the draws have shown.

    :param count: how many ungraded documents, from the first, the selection reaches down to.
    :param value: what was to be shown, precision or recall.
    :param certified: whether its lower bound reaches the target.
    :param drawn: how many documents were drawn.
    """

    count: int
    value: Interval
    certified: bool
    drawn: int


class Answers:
    """The answers to the draws so far.

    :param order: (n,) the documents' places in the order of the draws.
    :param known: answers that were given before, to documents chosen for other reasons than these.
    """

    def __init__(
        self, order: Sequence[int] | NDArray[np.int64], known: Mapping[int, bool | None] | None = None
    ) -> None:
        self.order = np.asarray(order)
        self.given: dict[int, bool | None] = {**(known or {})}
        self._known = len(self.given)

    @property
    def drawn(self) -> int:
        """How many documents were graded for the draws."""
        return len(self.given) - self._known

    def next_in(self, start: int, stop: int, fresh: int) -> tuple[list[int], list[int]]:
        """Take a sample of the documents from `start` to before `stop`, of which `fresh` at most are not drawn yet.

        :return: the sample, and those of it that are still to be graded.
        """
        inside = self.order[(self.order >= start) & (self.order < stop)].tolist()
        new = np.cumsum([place not in self.given for place in inside])
        sample = inside[: int(np.searchsorted(new, fresh, side="right"))]
        return sample, [place for place in sample if place not in self.given]

    def hits(self, sample: Sequence[int], unknown: bool) -> int:
        """Count the relevant documents of a sample, those without an answer as `unknown` says."""
        answers = [self.given[place] for place in sample]
        return sum(unknown if answer is None else answer for answer in answers)

    def ask(self, places: list[int]) -> Generator[list[int], list[bool | None], None]:
        """Have documents graded."""
        if places:
            self.given |= zip(places, (yield places), strict=True)


def certify_precision(
    order: Sequence[int] | NDArray[np.int64],
    cuts: Sequence[int],
    known: int,
    target: float,
    confidence: float,
    budget: int,
) -> Draws:
    """Find out how far down a selection may reach.

    The sets within each other are tested one after the other, each at the full risk, until one fails (fixed sequence:
    Maurer, Hothorn and Lehmacher 1995): the probability that any of those that pass has a lower precision is at most
    1 - `confidence`. The bound of each is exact, for draws without replacement. It is on all the documents of the set
    that were ungraded before: leaving out those that were found irrelevant makes a selection more precise than what was
    shown, and shows nothing by itself, as even a guesser's noes can be left out.

    :param order: (n,) the order of the draws: places of the ungraded documents in the ranking, shuffled.
    :param cuts: how many ungraded documents each set reaches down to, ascending.
    :param known: how many graded documents, all relevant, are in every set.
    :param target: the precision to be shown, in (0, 1).
    :param confidence: in (0, 1).
    :param budget: the most documents to draw.
    :return: the verdict on the last set that passed, or on the first where none did.
    """
    answers, risk = Answers(order), 1 - confidence

    def shown(cut: int, sample: list[int]) -> tuple[bool, Interval]:
        least = least_hits(cut, len(sample), answers.hits(sample, unknown=False), risk)
        return least >= target * cut, _precision(answers, sample, cut, known, risk)

    return _furthest(answers, cuts, target, budget, shown)


def certify_for_people(
    order: Sequence[int] | NDArray[np.int64],
    cuts: Sequence[int],
    known: Mapping[int, bool | None],
    target: float,
    needed: float,
    corrected: Callable[[Interval], Interval],
    risk: float,
    budget: int,
) -> Draws:
    """Find out how far down a selection may reach so that people would call it precise.

    See `certify_precision`. The teacher errs document by document, so a set's own yeses are draws too, and the bound is
    that of endlessly many (binomial): graded whole, a set is not known either. A set that people would call less
    precise than `target` has no more than `needed` yeses in expectation, unless the labels mislead.

    :param order: (n,) the order of the draws: places of all documents in the ranking, graded ones too, shuffled.
    :param cuts: how many documents each set reaches down to, ascending.
    :param known: by place whether the teacher said yes, where it was asked; no place depends on its own answer.
    :param target: the precision to be shown, in (0, 1).
    :param needed: the share of yeses that shows it. See `Calibration.needed`.
    :param corrected: takes the teacher's errors out of a share of yeses.
    :param risk: the probability that the share is lower than the draws show, in (0, 1).
    :param budget: the most documents to draw that have no answer yet.
    :return: the verdict on the last set that passed, or on the first where none did.
    """
    answers = Answers(order, known)

    def shown(cut: int, sample: list[int]) -> tuple[bool, Interval]:
        drawn, hits, possible = len(sample), *(answers.hits(sample, unknown) for unknown in (False, True))
        low, high = least_share(drawn, hits, risk), 1 - least_share(drawn, drawn - possible, risk)
        yes = Interval(low, hits / drawn if drawn else 0.5, high)
        return low >= needed, corrected(yes)

    return _furthest(answers, cuts, target, budget, shown)


def _furthest(
    answers: Answers,
    cuts: Sequence[int],
    target: float,
    budget: int,
    shown: Callable[[int, list[int]], tuple[bool, Interval]],
) -> Draws:
    """Test sets within each other, strictest first, until one fails."""
    passed: Verdict | None = None
    shares = SPENT[-len(cuts) :]
    for at, cut in enumerate(cuts):
        sample, new = answers.next_in(0, cut, max(int(shares[at] * budget) - answers.drawn, 0))
        yield from answers.ask(new)
        passes, value = shown(cut, sample)
        if not passes:
            if passed is None:
                return Verdict(cut, value, False, answers.drawn)
            break
        passed = Verdict(cut, value, True, answers.drawn)
    assert passed is not None
    if passed.count != cuts[-1]:
        # Its own bound was chosen for being high; that it reaches the target is what was tested.
        low = Interval(target, max(passed.value.estimate, target), max(passed.value.high, target))
        passed = Verdict(passed.count, low, True, answers.drawn)
    return passed


def _precision(answers: Answers, sample: Sequence[int], cut: int, known: int, risk: float) -> Interval:
    drawn, hits = len(sample), answers.hits(sample, unknown=False)
    # What was found irrelevant is left out of the selection.
    size = known + cut - (drawn - hits)
    if not size:
        return Interval(1.0, 1.0, 1.0)
    estimate = hits / drawn * (cut - drawn) if drawn else 0.0
    possible = most_hits(cut, drawn, answers.hits(sample, unknown=True), risk)
    low, middle, high = (
        (known + value) / size for value in (least_hits(cut, drawn, hits, risk), hits + estimate, possible)
    )
    return Interval(low, min(middle, 1.0), min(high, 1.0))


def certify_recall(
    order: Sequence[int] | NDArray[np.int64],
    cut: int,
    size: int,
    known: int,
    target: float,
    confidence: float,
    inside: int,
    outside: int,
) -> Draws:
    """Show that a selection holds a share of all relevant documents.

    The least number of relevant documents within and the most outside are each bounded at half the risk.

    :param order: (n,) the order of the draws.
    :param cut: how many ungraded documents the selection reaches down to.
    :param size: how many ungraded documents there are.
    :param known: how many graded documents are relevant; all are selected.
    :param target: the recall to be shown, in (0, 1).
    :param confidence: in (0, 1).
    :param inside: how many selected documents to draw.
    :param outside: how many others to draw.
    :return: the verdict.
    """
    answers, risk = Answers(order), (1 - confidence) / 2
    (within, new), (without, others) = answers.next_in(0, cut, inside), answers.next_in(cut, size, outside)
    yield from answers.ask([*new, *others])
    hits, found = answers.hits(within, unknown=False), answers.hits(without, unknown=True)
    # What is found outside is selected then, unless the teacher gave no answer.
    added = answers.hits(without, unknown=False)
    value = Interval(
        _recall(
            known + added + least_hits(cut, len(within), hits, risk),
            most_hits(size - cut, len(without), found, risk) - added,
        ),
        _recall(known + added + _scaled(hits, len(within), cut), _scaled(found, len(without), size - cut) - added),
        _recall(
            known + added + most_hits(cut, len(within), hits, risk),
            least_hits(size - cut, len(without), found, risk) - added,
        ),
    )
    return Verdict(cut, value, value.low >= target, answers.drawn)


def share_out(
    cut: int, size: int, known: int, expected: tuple[float, float], confidence: float, budget: int
) -> tuple[int, int, float]:
    """Share draws out between a selection and the rest so that the bound on its recall should come out best.

    :param cut: how many ungraded documents the selection reaches down to.
    :param size: how many ungraded documents there are.
    :param known: how many graded documents are relevant.
    :param expected: how many relevant ones are expected among the ungraded of the selection, and among the others.
    :param confidence: in (0, 1).
    :param budget: the most documents to draw.
    :return: draws within, draws outside, and the bound that should be reached.
    """
    risk = (1 - confidence) / 2
    inner, outer = (expected[0] / max(cut, 1), expected[1] / max(size - cut, 1))

    def bound(inside: int) -> tuple[int, int, float]:
        inside = min(max(inside, budget - (size - cut)), cut, budget)
        outside = min(budget - inside, size - cut)
        within = least_hits(cut, inside, round(inner * inside), risk)
        missed = round(outer * outside)
        without = most_hits(size - cut, outside, missed, risk)
        return inside, outside, _recall(known + missed + within, without - missed)

    tried = [bound(round(share * budget)) for share in np.linspace(0, 1, 11)]
    return max(tried, key=lambda one: one[2])


def _scaled(hits: int, drawn: int, size: int) -> float:
    return hits / drawn * size if drawn else size / 2


def _recall(selected: float, missed: float) -> float:
    return selected / (selected + missed) if selected + missed > 0 else 1.0
