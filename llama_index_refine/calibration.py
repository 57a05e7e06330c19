"""What people's labels say of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llama_index_refine import storage
from llama_index_refine.ids import same_id, same_text
from llama_index_refine.refining.relevance import Errors
from llama_index_refine.selecting.bounds import least_share
from llama_index_refine.selecting.cut import Interval
from llama_index_refine.selecting.people import Share, area, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from llama_index_refine.graders.base import BaseGrader
    from llama_index_refine.refinement import Refinement

# At this grade the teacher says yes.
YES = 0.5
# Intervals that are shown hold with this risk.
RISK = 0.05
# What is called acceptable of an area under the ROC curve (Hosmer and Lemeshow 2000), and moderate of an agreement
# beyond chance (Landis and Koch 1977).
RANKS, SELECTS = 0.7, 0.4
# A teacher is good enough for certificates if so many draws from a pure set show this precision at this risk.
PRECISION, CERTIFIED, DRAWS = 0.9, 0.1, 200
# As if there were so many times the labels: how far it is looked how many would tell.
TIMES = np.geomspace(1, 200, 80)
# Fewer queries than this say little of others.
QUERIES = 5


@dataclass(frozen=True)
class Label:
    """What a person says of a node.

    :param query: the query's text.
    :param node_id: the node.
    :param relevant: whether the person calls it relevant.
    :param weight: how many nodes it stands for, above 0, where it was chosen by the teacher's grade.
    """

    query: str
    node_id: str
    relevant: bool
    weight: float = 1.0


@dataclass(frozen=True, repr=False)
class Calibration:
    """How far a teacher's grades are what people say.

    :param teacher: the teacher's fingerprint.
    :param labels: (n,) what people say, each node of a query once.
    :param grades: (n,) the teacher's, in [0, 1]; at 0.5 it says yes.
    :param said: what was wrong with labels that were left out.
    :raises ValueError: no label, another number of grades, or a grade or a weight that is none.
    """

    teacher: str
    labels: Sequence[Label]
    grades: NDArray[np.float64]
    said: Sequence[str] = ()

    def __post_init__(self) -> None:
        weights, grades = self._weights, self.grades
        if not len(self.labels) or len(grades) != len(self.labels):
            raise ValueError(f"labels and grades must be as many, and some; got {len(self.labels)} and {len(grades)}")
        if not (np.isfinite(weights).all() and (weights > 0).all() and (grades >= 0).all() and (grades <= 1).all()):
            raise ValueError("grades must be in [0, 1] and weights above 0")

    @property
    def yes_is_right(self) -> Interval:
        """How often people say yes where the teacher does; at 95 %, as all intervals here."""
        return self._right(True).interval(RISK)

    @property
    def no_is_right(self) -> Interval:
        """How often people say no where the teacher does."""
        return self._right(False).interval(RISK)

    @property
    def sensitivity(self) -> Interval:
        """How often the teacher says yes to what people call relevant."""
        return self.rate(True, RISK)

    @property
    def false_yes(self) -> Interval:
        """How often the teacher says yes to what people do not call relevant."""
        return self.rate(False, RISK)

    @property
    def auc(self) -> Interval:
        """The area under the ROC curve: how often a relevant node has the higher grade of two."""
        return self._auc(1.0)

    @property
    def kappa(self) -> Interval:
        """Cohen's kappa (1960): agreement beyond chance, 0 for none and 1 for all."""
        return self._kappa(1.0)

    def rate(self, relevant: bool, risk: float, times: float = 1.0) -> Interval:
        """Say how often the teacher says yes to what people call relevant, or to the rest.

        Labels that were chosen by the teacher's grade have weights. They tell how often its yes and its no are right,
        each at half the risk, and the rate follows by Bayes' rule (Begg and Greenes 1983).

        :param relevant: to which.
        :param risk: the probability that the rate lies outside, in (0, 1).
        :param times: as if there were so many times the labels.
        :return: low, estimate and high.
        """
        yes, weights = self._yes, self._weights
        mine = self._people == relevant
        if np.ptp(weights) < 1e-9 * weights.max():
            return self._share(yes, mine).interval(risk, times)
        said = float(weights[yes].sum() / weights.sum())
        inside, outside = (self._share(mine, part).interval(risk / 2, times) for part in (yes, ~yes))

        def of(within: float, without: float) -> float:
            whole = said * within + (1 - said) * without
            return said * within / whole if whole > 0 else float("nan")

        low, middle, high = of(inside.low, outside.high), of(inside[1], outside[1]), of(inside.high, outside.low)
        return Interval(0.0 if np.isnan(low) else low, middle, 1.0 if np.isnan(high) else high)

    def needed(self, precision: float, risk: float, times: float = 1.0) -> float:
        """Say which share of the teacher's yes shows a precision as people have it, whatever its errors may be.

        With p the share that people call relevant, the teacher's yes has the share f + p (s - f) (Rogan and Gladen
        1978): s is its yes to what is relevant, f its yes to the rest, each the most that it may be.

        :param precision: what is to be shown, in (0, 1).
        :param risk: the probability that either error rate is higher than is reckoned with, each at half of it.
        :param times: as if there were so many times the labels.
        :return: in [0, 1]; at least f, so that a teacher that is upside down passes nothing.
        """
        sensitivity, false_yes = self.rate(True, risk, times).high, self.rate(False, risk, times).high
        return false_yes + precision * max(sensitivity - false_yes, 0.0)

    def corrected(self, yes: Interval, risk: float) -> Interval:
        """Say what people would call relevant of a set: (q - f) / (s - f), for a share q of yeses. See `needed`.

        :param yes: the share to which the teacher says yes.
        :param risk: as for `needed`.
        :return: the share that people would.
        """
        sensitivity, false_yes = self.rate(True, risk), self.rate(False, risk)

        def share_at(said: float, true: float, false: float, otherwise: float) -> float:
            return min(max((said - false) / (true - false), 0.0), 1.0) if true > false else otherwise

        low = share_at(yes.low, sensitivity.high, false_yes.high, 0.0)
        high = share_at(yes.high, sensitivity.low, false_yes.low, 1.0)
        middle = share_at(yes.estimate, sensitivity.estimate, false_yes.estimate, (low + high) / 2)
        return Interval(low, min(max(middle, low), high), high)

    def errors(self) -> Errors | None:
        """Return the error rates for the probabilities; None where labels are all alike, which leaves one unknown."""
        sensitivity, false_yes = self.rate(True, 0.1), self.rate(False, 0.1)
        if np.isnan(sensitivity.estimate) or np.isnan(false_yes.estimate):
            return None
        return Errors.measured(false_yes, [1 - value for value in reversed(sensitivity)])

    def check(self, grader: BaseGrader) -> None:
        """See that it is of this teacher. :raises ValueError: it is another's."""
        if (name := grader.memory_fingerprint()) != self.teacher:
            raise ValueError(
                f"calibration is of another teacher: of {self.teacher}, and the grader is {name}. Another model, "
                "prompt or instruction grades otherwise: call calibrate again with the grader"
            )

    def more(self, precision: float, risk: float) -> int | None:
        """Say how many more labels would probably let a precision be shown, of a set that is pure for people.

        :param precision: what is to be shown, in (0, 1).
        :param risk: the probability that a certificate is wrong.
        :return: about how many; None where no number would.
        """
        yes = self.rate(True, RISK).estimate
        return self._more(lambda times: yes > self.needed(precision, 2 * risk / 3, times) or None)

    @property
    def notes(self) -> list[str]:
        """What to know of the labels, in sentences."""
        found, people = list(self.said), self._people
        many = len({label.query for label in self.labels})
        if people.all() or not people.any():
            kind, other = ("relevant", "no false yes") if people.all() else ("not relevant", "no missed node")
            found.append(f"all labels are alike, {kind}: {other} can be seen; label some of the other kind")
        if many < QUERIES:
            found.append(
                f"the labels are of {many} {'query' if many == 1 else 'queries'}: others may be of another kind"
            )
        agreed = self._share(self._yes == people)
        if agreed.size < len(people) / 2 and not np.ptp(self._weights):
            found.append(
                f"the teacher errs on some queries more than on others, so that {len(people)} labels tell as much as "
                f"{agreed.size:.0f} of different queries would: label few nodes of many queries"
            )
        return found

    @property
    def verdict(self) -> str:
        """What this teacher is good enough for, in a sentence, and how many labels more would tell."""
        yes = self.rate(True, RISK).estimate

        def certifies(times: float) -> bool | None:
            aimed = self.needed(PRECISION, 2 * CERTIFIED / 3, times)
            return bool(yes == yes and least_share(DRAWS, round(yes * DRAWS), CERTIFIED / 3) >= aimed) or None

        uses = {
            "ranking": lambda times: _beyond(self._auc(times), RANKS),
            "selecting": lambda times: _beyond(self._kappa(times), SELECTS),
            f"certificates of a precision of {PRECISION:g}": certifies,
        }
        good = [name for name, decide in uses.items() if decide(1.0)]
        rest = {name: self._more(decide) for name, decide in uses.items() if decide(1.0) is None}
        bad = [name for name, decide in uses.items() if decide(1.0) is False or rest.get(name, 0) is None]
        parts = [f"it is good enough for {' and for '.join(good)}"] if good else []
        parts += [f"it is not for {' and not for '.join(bad)}"] if bad else []
        parts += [f"about {count} more labels would tell for {name}" for name, count in rest.items() if count]
        many = len({label.query for label in self.labels})
        return f"By {len(self.labels)} labels of {many} {'query' if many == 1 else 'queries'}: {'; '.join(parts)}."

    def rows(self) -> list[tuple[str, Interval]]:
        """Return what is measured, by what it is called."""
        return [
            ("its yes is right", self.yes_is_right),
            ("its no is right", self.no_is_right),
            ("it says yes to what is relevant", self.sensitivity),
            ("it says yes to what is not", self.false_yes),
            ("area under the ROC curve", self.auc),
            ("agreement beyond chance", self.kappa),
        ]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}. {self.verdict}>"

    def _repr_html_(self) -> str:
        from llama_index_refine.display.intervals import to_html

        return to_html(self.rows(), [self.verdict, *self.notes])

    def table(self) -> Table:
        """Show it in a terminal: what `rich.print` prints."""
        from llama_index_refine.display.intervals import to_table

        return to_table(self.rows())

    def plot(self) -> Figure:
        """Draw each figure with its interval.

        :return: a matplotlib figure.
        :raises ImportError: matplotlib is missing; the message says how to install it.
        """
        from llama_index_refine.display.intervals import draw_intervals

        return draw_intervals(self.rows())

    def save(self, path: str | Path) -> None:
        """Write it, in safetensors' format with JSON in its header: queries and node ids, and no document's text.

        :param path: the file, which is replaced.
        :raises OSError: it cannot be written.
        """
        people: NDArray[Any] = self._people.astype(np.uint8)
        tensors: dict[str, NDArray[Any]] = {"grades": self.grades, "weights": self._weights, "relevant": people}
        facts = {
            "teacher": self.teacher,
            "queries": [label.query for label in self.labels],
            "node_ids": [label.node_id for label in self.labels],
            "said": list(self.said),
        }
        storage.write(path, "Calibration", tensors, facts)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        :param path: the file.
        :return: the calibration.
        :raises OSError: it cannot be read.
        :raises ValueError: it is no such file.
        """
        tensors, facts = storage.read(path, "Calibration")
        try:
            columns = facts["queries"], facts["node_ids"], tensors["relevant"].tolist(), tensors["weights"].tolist()
            labels = [Label(str(a), str(b), bool(c), float(d)) for a, b, c, d in zip(*columns, strict=True)]
            return cls(str(facts["teacher"]), labels, tensors["grades"].astype(np.float64), tuple(facts["said"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path {path} is no file that Calibration.save wrote: {error}") from error

    @property
    def _yes(self) -> NDArray[np.bool_]:
        return np.asarray(self.grades) >= YES

    @property
    def _people(self) -> NDArray[np.bool_]:
        return np.array([label.relevant for label in self.labels], dtype=bool)

    @property
    def _weights(self) -> NDArray[np.float64]:
        return np.array([label.weight for label in self.labels], dtype=np.float64)

    def _share(
        self, values: NDArray[np.bool_], part: NDArray[np.bool_] | None = None, weights: NDArray[Any] | None = None
    ) -> Share:
        inside = np.flatnonzero(np.ones(len(values), dtype=bool) if part is None else part).tolist()
        return share(values[inside], [self.labels[at].query for at in inside], weights)

    def _right(self, yes: bool) -> Share:
        return self._share(self._people == yes, self._yes == yes)

    def _auc(self, times: float) -> Interval:
        queries = [label.query for label in self.labels]
        return area(self.grades, self._people, queries, self._weights).interval(RISK, times)

    def _kappa(self, times: float) -> Interval:
        yes, people, weights = self._yes, self._people, self._weights
        said, true = (float(weights[one].sum() / weights.sum()) for one in (yes, people))
        chance = said * true + (1 - said) * (1 - true)
        if chance >= 1 - 1e-12:
            return Interval(-1.0, float("nan"), 1.0)
        agreed = self._share(yes == people, weights=weights).interval(RISK, times)
        return Interval(*((value - chance) / (1 - chance) for value in agreed))

    def _more(self, decide: Any) -> int | None:
        """Return how many more labels would decide something, None where as many as is looked at do not."""
        enough = next((times for times in TIMES if decide(float(times)) is not None), None)
        return None if enough is None else max(round((enough - 1) * len(self.labels) / 10 + 0.5) * 10, 10)


def propose(
    refinements: Sequence[Refinement], count: int, calibration: Calibration | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Choose which graded nodes people should judge next: those that narrow the intervals most.

    The nodes are drawn at random among the teacher's yeses and among its noes, more where there are more and where it
    is less sure how often it is right (Neyman 1934). The grade itself is not told, so that nobody goes by it.

    :param refinements: what was graded, as `refine` returns it.
    :param count: how many nodes to choose, at least 1.
    :param calibration: what is known of the teacher; nodes that have a label are left out. None for nothing.
    :param seed: of the draws.
    :return: rows with query, id, text, an empty `relevant`, and the weight, which `calibrate` reads.
    :raises ValueError: a count below 1, or nothing to choose from.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    labels = calibration.labels if calibration else ()
    labelled = {(same_text(label.query), same_id(label.node_id)) for label in labels}
    pool = {
        (one.query_str, entry.node.node_id): (entry.node, float(grade) >= YES)
        for whole in refinements
        # What was graded for a part of a query is no answer to all of it.
        for one in whole.parts or [whole]
        for entry, grade in zip(one.graded_nodes, one.grades, strict=False)
        if (same_text(one.query_str), same_id(entry.node.node_id)) not in labelled
    }
    if not pool:
        raise ValueError("refinements hold no graded node without a label: refine more queries")
    rng, kinds = np.random.default_rng(seed), (True, False)
    sizes = np.array([sum(yes == kind for _, yes in pool.values()) for kind in kinds])
    right = [calibration._right(kind) if calibration else Share(0.5, 0.0) for kind in kinds]
    sure = [(np.nan_to_num(one.value) * one.size + 0.5) / (one.size + 1) for one in right]
    aim = sizes * np.sqrt([one * (1 - one) for one in sure])
    # A quarter of each kind at least: what is never asked about stays unknown.
    first = int(np.clip(round(count * aim[0] / aim.sum()), count // 4, count - count // 4))
    taken = np.minimum([first, count - first], sizes)
    taken = np.minimum(taken + np.maximum(count - taken.sum(), 0), sizes)
    rows = []
    for kind, size, many in zip(kinds, sizes.tolist(), taken.tolist(), strict=True):
        keys = [key for key, (_, yes) in pool.items() if yes == kind]
        for at in rng.choice(size, many, replace=False):
            query, node_id = keys[at]
            text = pool[keys[at]][0].get_content()
            weight = round(size / many, 6)
            rows.append({"query": query, "id": node_id, "text": text, "relevant": "", "weight": weight})
    return [rows[at] for at in rng.permutation(len(rows))]


def _beyond(interval: Interval, bar: float) -> bool | None:
    """Say whether a figure is above a bar, None where that is open."""
    if np.isnan(interval.estimate):
        return None
    return True if interval.low >= bar else False if interval.high < bar else None
