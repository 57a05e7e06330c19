"""One selection's way: refine, read down the ranking, grade where it is unsure, cut."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from numpy.typing import NDArray

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import GraderError
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.relevance import Ranking
from llama_index_refine.refining.trust import Reliability
from llama_index_refine.retrieval.grading import Grading, Sheet
from llama_index_refine.retrieval.loop import FeedbackLoop
from llama_index_refine.retrieval.ordering import Ordered, in_order, relevant_in, threshold_of
from llama_index_refine.retrieval.outcomes import billed
from llama_index_refine.retrieval.relevance import (
    RELEVANT,
    Calibration,
    Evidence,
    Judged,
    name_of,
)
from llama_index_refine.retrieval.target import MORE, Target
from llama_index_refine.selecting.certificate import (
    MARGINS,
    Draws,
    Verdict,
    certify_precision,
    certify_recall,
    share_out,
)
from llama_index_refine.selecting.cut import outlook
from llama_index_refine.selection import UNKNOWN, Cuts, Selection
from llama_index_refine.steps import Step, Steps

logger = logging.getLogger(__name__)

# How often the cut is looked at again while they are spent.
WAVES = 2
# Nodes fetched in one request.
NODES = 500
GUESSER = "the teacher's grades cannot be told from guesses, so that what they show of the selection is worth nothing"


@dataclass
class Hand:
    """One selection on its way.

    :param query: the query.
    :param evidence: what is known of it.
    :param account: what grading may still cost.
    :param left: how many documents may still be graded.
    :param asked: how many were shown to the teacher.
    """

    query: QueryBundle
    evidence: Evidence
    account: Account
    left: int
    asked: int

    def random(self) -> np.random.Generator:
        """Return what draws: the same for the same query, so that a cache knows the documents."""
        digest = blake2b(self.query.query_str.encode("utf-8", "replace"), digest_size=8)
        digest.update(np.asarray(self.evidence.refinement.query, dtype=np.float32).tobytes())
        return np.random.default_rng(int.from_bytes(digest.digest(), "little"))


@dataclass(frozen=True)
class Selecting:
    """Describes how nodes are selected, as steps that a runner performs.

    :param loop: refines the query.
    :param grading: asks the teacher.
    :param calibration: says what a similarity means.
    :param on_error: whether what fails after the first search raises.
    """

    loop: FeedbackLoop
    grading: Grading
    calibration: Calibration
    on_error: Literal["fallback", "raise"]

    def steps(self, query: QueryBundle, target: Target) -> Steps[Selection]:
        """Select for one query.

        :param query: the query.
        :param target: what is asked of the selection.
        :return: the selection.
        :raises ValueError: an empty collection, or a query that does not fit it.
        """
        yield from self.calibration.check()
        documents = target.documents(self.loop.feedback_top_k)
        account = Account(self.loop.budget)
        refinement = yield from self.loop.steps(query, account)
        if not refinement.refined:
            return (yield from self._nothing(refinement))
        evidence = yield from self.calibration.evidence(refinement)
        asked = len(refinement.graded_nodes) + refinement.ungraded
        hand = Hand(query, evidence, account, max(documents - asked, 0), asked)
        if target.precision is not None:
            selection = yield from self._precise(hand, target, target.precision)
        elif target.recall is not None:
            selection = yield from self._complete(hand, target, target.recall)
        else:
            yield from self._look_closer(hand, hand.left)
            selection = yield from self._cut(hand, lambda ordered: ordered.outlook.best(), target.confidence)
            selection.reason = "no target was set, so precision and recall are what the probabilities say"
        return selection

    def _nothing(self, refinement: Refinement) -> Steps[Selection]:
        population = yield from self.calibration.collection.population()
        if not population:
            name = self.calibration.collection.store.collection_name
            raise ValueError(
                f"collection_name {name!r} has no points that filters admit: there is nothing to select from"
            )
        logger.warning("Nothing is selected: %s", refinement.reason)
        vector = np.asarray(refinement.vector)
        graded = len(refinement.graded_nodes)
        reason = f"nothing is selected, as the query was not refined: {refinement.reason}"
        return Selection(
            [],
            float("nan"),
            vector,
            UNKNOWN,
            UNKNOWN,
            float("nan"),
            graded,
            False,
            reason,
            replace(refinement, nodes=[]),
        )

    def _precise(self, hand: Hand, target: Target, precision: float) -> Steps[Selection]:
        """Reach down as far as documents drawn at random show that the precision is kept."""
        relevance, evidence = hand.evidence.fit(), hand.evidence
        places, known = evidence.open_places(), relevant_in(evidence)
        similarities = np.asarray(evidence.similarities)[places]
        view = outlook(relevance, similarities, np.full(len(places), np.nan), Ranking(np.empty(0), np.empty(0)))
        expected = [view.most_precise(precision + (1 - precision) * margin) for margin in MARGINS]
        cuts = sorted({count for count in expected if count > 0})
        if not cuts or not hand.left:
            why = "no grades are left to show it" if cuts else "no set of ungraded documents is expected to keep it"
            return (yield from self._expected(hand, target, f"a precision of {precision:g} is not shown: {why}"))
        order = hand.random().permutation(len(places))
        draws = certify_precision(order, cuts, known, precision, target.confidence, hand.left)
        verdict = yield from self._drawn(hand, places, draws)
        reason = (
            f"{verdict.drawn} documents drawn at random do not show a precision of {precision:g} for what nobody has "
            "graded of the selection that is expected to be surest; a larger budget may"
        )
        selection = yield from self._reaching(hand, places[: verdict.count], target.confidence)
        return replace(selection, precision=verdict.value, **_said(hand, verdict, 1 - target.confidence, reason))

    def _complete(self, hand: Hand, target: Target, recall: float) -> Steps[Selection]:
        """Reach down until the recall is expected, and show it where the collection is small enough."""
        evidence, aimed = hand.evidence, recall + (1 - recall) / 2
        while True:
            ordered = in_order(evidence, evidence.fit(), graded_first=True)
            known = relevant_in(evidence)
            cut = max(ordered.outlook.least_complete(aimed) - known, 0)
            if cut < len(evidence.open_places()) or evidence.complete:
                break
            yield from self.calibration.next_page(evidence)
        size = max(evidence.population - len(evidence.judged), cut)
        hits = float(ordered.outlook.weights @ ordered.outlook.hits[:, ordered.outlook.at(known + cut)]) - known
        missed = float(ordered.outlook.weights @ ordered.outlook.totals) - known - hits
        inside, outside, bound = share_out(cut, size, known, (hits, missed), target.confidence, hand.left)
        if bound < recall:
            reason = (
                f"a recall of {recall:g} cannot be shown with {hand.left} more grades: even if as few as expected are "
                f"found among {outside} of the {size - cut} documents that are not selected, so many may be relevant "
                f"that it is {bound:.2f} only; a larger budget, or filters that leave fewer documents, may show it"
            )
            return (yield from self._expected(hand, target, reason))
        yield from self.calibration.deeper(evidence, least=0.0)
        places = evidence.open_places()
        cut, size = min(cut, len(places)), len(places)
        order = hand.random().permutation(size)
        draws = certify_recall(order, cut, size, known, recall, target.confidence, inside, outside)
        verdict = yield from self._drawn(hand, places, draws)
        selection = yield from self._reaching(hand, places[: verdict.count], target.confidence)
        reason = (
            f"{verdict.drawn} documents drawn at random show a recall of at least {verdict.value.low:.2f} only, not of "
            f"{recall:g}; a larger budget may"
        )
        return replace(selection, recall=verdict.value, **_said(hand, verdict, 1 - target.confidence, reason))

    def _expected(self, hand: Hand, target: Target, reason: str) -> Steps[Selection]:
        """Cut where the target is expected to be kept, as it cannot be shown."""
        yield from self._look_closer(hand, min(hand.left, MORE * self.loop.feedback_top_k))

        def cut(ordered: Ordered) -> int:
            if target.precision is not None:
                return ordered.outlook.most_precise(target.precision)
            return ordered.outlook.least_complete(target.recall or 0.0)

        selection = yield from self._cut(hand, cut, target.confidence)
        return replace(selection, reason=reason)

    def _look_closer(self, hand: Hand, grades: int) -> Steps[None]:
        """Grade documents of which it is unsure whether they belong."""
        random = hand.random()
        for wave in range(WAVES):
            share = grades // WAVES if wave < WAVES - 1 else grades - grades // WAVES * (WAVES - 1)
            relevance = hand.evidence.fit()
            ordered = in_order(hand.evidence, relevance)
            doubt = np.repeat(ordered.outlook.doubt(), np.diff(ordered.outlook.places))
            weights = (doubt + 1e-9) * np.sqrt(ordered.probabilities * (1 - ordered.probabilities))
            there = [at for at, name in enumerate(ordered.names) if isinstance(name, int) and weights[at] > 0]
            count = min(share, len(there), hand.left)
            if count < 1 or hand.account.exhausted():
                return
            chosen = random.choice(there, count, replace=False, p=weights[there] / weights[there].sum())
            yield from self._grade(hand, [int(ordered.names[at]) for at in chosen])

    def _drawn(self, hand: Hand, places: NDArray[np.int64], draws: Draws) -> Steps[Verdict]:
        """Have a certificate's draws graded."""
        answers: list[bool | None] | None = None
        while True:
            try:
                wanted = next(draws) if answers is None else draws.send(answers)
            except StopIteration as end:
                verdict: Verdict = end.value
                return verdict
            answers = yield from self._grade(hand, [int(places[at]) for at in wanted])

    def _grade(self, hand: Hand, places: Sequence[int]) -> Steps[list[bool | None]]:
        """Grade documents of the ranking. :return: whether each is relevant, None where there is no grade."""
        evidence = hand.evidence
        hand.left -= len(places)
        hand.asked += len(places)
        ids = [evidence.ids[place] for place in places]
        try:
            found = yield from self.calibration.collection.fetch(ids, evidence.query, len(ids))
            sheet = Sheet(hand.query, found.nodes, hand.account)
            grades = yield Step("grade", self.grading, sheet)
        except Exception as error:
            if isinstance(error, GraderError) or self.on_error == "raise":
                raise
            logger.warning("Going on without some grades: %s: %s", type(error).__name__, error)
            return [None] * len(places)
        record = self.calibration.trust
        if isinstance(record, Reliability):
            record.hear([grade for grade in grades if grade is not None])
        given: dict[str, float] = {}
        at = {name_of(evidence.ids[place]): place for place in places}
        for point, node, score, grade in zip(found.ids, found.nodes, found.scores, grades, strict=True):
            name = name_of(point)
            if grade is not None:
                given[name] = grade
                similarity = evidence.similarities[at[name]]
                read = float(self.calibration.read([grade])[0])
                evidence.judged[name] = Judged(similarity, read, NodeWithScore(node=node, score=score))
        names = [name_of(evidence.ids[place]) for place in places]
        return [given[name] >= RELEVANT if name in given else None for name in names]

    def _reaching(self, hand: Hand, places: Sequence[int] | NDArray[np.int64], confidence: float) -> Steps[Selection]:
        """Select what was found relevant, and the ungraded documents down to a place."""
        evidence = hand.evidence
        inside = sum(name_of(evidence.ids[place]) not in evidence.judged for place in places)
        count = relevant_in(evidence) + inside
        return (yield from self._cut(hand, lambda _: count, confidence, graded_first=True))

    def _cut(
        self, hand: Hand, choose: Callable[[Ordered], int], confidence: float, graded_first: bool = False
    ) -> Steps[Selection]:
        evidence = hand.evidence
        yield from self.calibration.deeper(evidence)
        relevance = evidence.fit()
        self.calibration.learn(relevance)
        ordered = in_order(evidence, relevance, graded_first)
        count = choose(ordered)
        precision, recall, total = ordered.outlook.intervals(count, confidence)
        chosen = list(zip(ordered.names[:count], ordered.probabilities[:count].tolist(), strict=True))
        nodes = yield from self._nodes(evidence, [name for name, _ in chosen])
        selected = [
            NodeWithScore(node=nodes[name], score=value)
            for name, value in sorted(chosen, key=lambda one: -one[1])
            if name in nodes
        ]
        expected = ordered.outlook
        weights = expected.weights
        space = yield from self.calibration.collection.space()
        threshold = threshold_of(evidence, ordered.names[:count], space.metric)
        return Selection(
            nodes=selected,
            threshold=threshold,
            vector=np.asarray(evidence.refinement.vector),
            precision=precision,
            recall=recall,
            expected_total=total.estimate,
            graded=len(evidence.judged),
            certified=False,
            reason=None,
            refinement=replace(billed(evidence.refinement, hand.account), nodes=selected),
            cuts=Cuts(
                expected.places.tolist(),
                (weights @ expected.precision()).tolist(),
                (weights @ expected.recall()).tolist(),
                count,
            ),
        )

    def _nodes(self, evidence: Evidence, names: Sequence[str | int]) -> Steps[dict[str | int, BaseNode]]:
        """Return the nodes behind graded documents and places of the ranking."""
        nodes: dict[str | int, BaseNode] = {
            name: evidence.judged[name].entry.node for name in names if isinstance(name, str)
        }
        wanted = {name_of(evidence.ids[name]): name for name in names if isinstance(name, int)}
        deepest = max(wanted.values(), default=-1)
        for start in range(0, deepest + 1, NODES):
            page = yield from self.calibration.collection.page(
                evidence.query, start, min(NODES, deepest + 1 - start), with_payload=True
            )
            for at, point in enumerate(page.ids):
                if name_of(point) in wanted:
                    nodes[wanted[name_of(point)]] = page.nodes[at]
        return nodes


def _said(hand: Hand, verdict: Verdict, risk: float, reason: str) -> dict[str, Any]:
    """Say whether the target is certified. What a guesser says shows nothing."""
    if not verdict.certified:
        return {"certified": False, "reason": reason}
    guesser = hand.evidence.fit().guesser() > risk
    return {"certified": not guesser, "reason": GUESSER if guesser else None}
