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

from llama_index_refine.calibration import Calibration
from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.base import GraderError
from llama_index_refine.ids import same_id
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.relevance import Ranking
from llama_index_refine.retrieval.evidence import RELEVANT, Evidence, Judged, Ordered, check
from llama_index_refine.retrieval.grading import Sheet
from llama_index_refine.retrieval.pipeline import Pipeline
from llama_index_refine.scheduling import perform
from llama_index_refine.selecting.certificate import (
    MARGINS,
    Draws,
    Verdict,
    certify_for_people,
    certify_precision,
    certify_recall,
    share_out,
)
from llama_index_refine.selecting.cut import Interval, outlook
from llama_index_refine.selection import UNKNOWN, Cuts, Selection

logger = logging.getLogger(__name__)

# Grades beyond those that refine the query, as a multiple of them: where no target is set, and where one is.
MORE, MORE_FOR_TARGET = 1, 4
# How often the cut is looked at again while they are spent.
WAVES = 2
# Nodes fetched in one request.
NODES = 500
GUESSER = "the teacher's grades look like guesses, so they cannot certify the selection"


@dataclass(frozen=True)
class Target:
    """What is asked of a selection.

    :param precision: the least share of the selected that is relevant, None for no such target.
    :param recall: the least share of the relevant that is selected, None for no such target.
    :param confidence: the probability that a certificate is right.
    :param budget: the most documents to grade, or what grading may cost; None for a default.
    :param about: who says what is relevant: the teacher, or people.
    :raises ValueError: a target outside (0, 1), or two; recall about people.
    """

    precision: float | None = None
    recall: float | None = None
    confidence: float = 0.9
    budget: int | Budget | None = None
    about: Literal["teacher", "people"] = "teacher"

    def __post_init__(self) -> None:
        if self.about not in ("teacher", "people"):
            raise ValueError(f"about must be 'teacher' or 'people', got {self.about!r}")
        for name in ("precision", "recall", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.precision is not None and self.recall is not None:
            raise ValueError("precision and recall are both given: set one to guarantee, and the other is maximised")
        if self.recall is not None and self.about == "people":
            raise ValueError(
                "recall cannot be certified with about='people': the teacher's few false yeses among all that is not "
                "selected outnumber what it misses. Ask for a precision, or for recall about the teacher"
            )

    def documents(self, feedback_top_k: int) -> int:
        """Return the most documents to grade.

        :param feedback_top_k: how many of them refine the query.
        :raises ValueError: a budget that leaves nothing to cut by.
        """
        aimed = self.precision is not None or self.recall is not None
        if self.budget is None or isinstance(self.budget, Budget):
            return feedback_top_k * (1 + (MORE_FOR_TARGET if aimed else MORE))
        if self.budget < feedback_top_k + aimed:
            least = "more than" if aimed else "at least"
            raise ValueError(
                f"budget must be {least} feedback_top_k, {feedback_top_k}, because refining the query takes that "
                f"many; got {self.budget}"
            )
        return self.budget


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
    """Selects nodes for one query at a time.

    :param pipeline: refines the query.
    :param calibration: what people's labels say of the teacher, None for nothing.
    """

    pipeline: Pipeline
    calibration: Calibration | None = None

    async def select(self, query: QueryBundle, target: Target) -> Selection:
        """Select for one query.

        :param query: the query.
        :param target: what is asked of the selection.
        :return: the selection.
        :raises ValueError: an empty collection, or a query that does not fit it.
        """
        pipeline = self.pipeline
        if target.about == "people" and self.calibration is None:
            raise ValueError(
                "about='people' needs labels: RefinedRetriever(calibration=retriever.calibrate(judgements))"
            )
        await check(pipeline.collection)
        documents = target.documents(pipeline.feedback_top_k)
        account = Account(target.budget if isinstance(target.budget, Budget) else pipeline.budget)
        refinement, feedback = await pipeline.retrieve(query, account)
        if feedback is None or not refinement.refined:
            return await self._nothing(refinement)
        evidence = await Evidence.gather(pipeline, refinement, feedback)
        asked = len(refinement.graded_nodes) + refinement.ungraded
        hand = Hand(query, evidence, account, max(documents - asked, 0), asked)
        if target.precision is not None and target.about == "people" and self.calibration is not None:
            selection = await self._precise_for_people(hand, target, target.precision, self.calibration)
        elif target.precision is not None:
            selection = await self._precise(hand, target, target.precision)
        elif target.recall is not None:
            selection = await self._complete(hand, target, target.recall)
        else:
            await self._look_closer(hand, hand.left)
            selection = await self._cut(hand, lambda ordered: ordered.outlook.best(), target.confidence)
            selection.reason = "no target was set, so precision and recall are estimates"
        return selection

    async def _nothing(self, refinement: Refinement) -> Selection:
        population = await self.pipeline.collection.population()
        if not population:
            name = self.pipeline.collection.store.collection_name
            raise ValueError(
                f"collection_name {name!r} has no points that match filters: there is nothing to select from"
            )
        logger.warning("Nothing is selected: %s", refinement.reason)
        vector = np.asarray(refinement.vector)
        graded = len(refinement.graded_nodes)
        reason = f"nothing is selected, because the query was not refined: {refinement.reason}"
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

    async def _precise(self, hand: Hand, target: Target, precision: float) -> Selection:
        """Reach down as far as documents drawn at random show that the precision is kept."""
        relevance, evidence = hand.evidence.fit(), hand.evidence
        places, known = evidence.open_places(), evidence.relevant()
        similarities = np.asarray(evidence.similarities)[places]
        view = outlook(relevance, similarities, np.full(len(places), np.nan), Ranking(np.empty(0), np.empty(0)))
        expected = [view.most_precise(precision + (1 - precision) * margin) for margin in MARGINS]
        cuts = sorted({count for count in expected if count > 0})
        if not cuts or not hand.left:
            why = "no grades are left to check it" if cuts else "no set of ungraded documents is expected to reach it"
            reason = f"a precision of {precision:g} is not shown: {why}"
            everything = await self._reaching(hand, [], target.confidence) if not len(places) else None
            selection = everything or await self._expected(hand, target, reason)
            if not all(self._found_relevant(hand, entry) for entry in selection.nodes):
                return selection
            # What has been graded relevant, all of it, needs no sample to show how much of it is.
            return replace(selection, precision=Interval(1.0, 1.0, 1.0), **_unless_guessed(hand, 1 - target.confidence))
        order = hand.random().permutation(len(places))
        draws = certify_precision(order, cuts, known, precision, target.confidence, hand.left)
        verdict = await self._drawn(hand, places, draws)
        reason = (
            f"{verdict.drawn} documents drawn at random from the surest ungraded ones do not show a precision of "
            f"{precision:g}; a larger budget may"
        )
        selection = await self._reaching(hand, places[: verdict.count], target.confidence)
        return replace(selection, precision=verdict.value, **_said(hand, verdict, 1 - target.confidence, reason))

    async def _precise_for_people(
        self, hand: Hand, target: Target, precision: float, calibration: Calibration
    ) -> Selection:
        """Reach down as far as draws and labels together show that people would call it precise."""
        evidence, third = hand.evidence, (1 - target.confidence) / 3
        yes = calibration.needed(precision, 2 * third)
        # A graded document stands where the others' grades put it, so that no place depends on its own answer.
        judged = {same_id(node_id) for node_id in self.pipeline.grader.judged(hand.query)}
        asked = [
            name for name, one in evidence.judged.items() if one.admitted and not one.people and name not in judged
        ]
        places = evidence.open_places()
        similarities = np.r_[[evidence.judged[name].place for name in asked], np.asarray(evidence.similarities)[places]]
        ranked = np.argsort(-similarities, kind="stable")
        where = np.r_[np.full(len(asked), -1), places][ranked].astype(np.int64)
        nothing = Ranking(np.empty(0), np.empty(0))
        view = outlook(evidence.fit(), similarities[ranked], np.full(len(ranked), np.nan), nothing)
        expected = [view.most_precise(precision + (1 - precision) * margin) for margin in MARGINS]
        cuts = sorted({count for count in expected if count > 0})
        if why := self._hopeless(calibration, target, precision, yes, bool(cuts and hand.left)):
            return await self._expected(hand, target, f"a precision of {precision:g} for people is not shown: {why}")
        graded = {at: asked[one] for at, one in enumerate(ranked.tolist()) if one < len(asked)}
        draws = certify_for_people(
            hand.random().permutation(len(ranked)),
            cuts,
            {at: evidence.judged[name].grade >= RELEVANT for at, name in graded.items()},
            precision,
            yes,
            lambda share: calibration.corrected(share, 2 * third),
            third,
            hand.left,
        )
        verdict = await self._drawn(hand, where, draws)
        # What the teacher calls relevant further down is not part of what was shown.
        for name in (name for at, name in graded.items() if at >= verdict.count):
            evidence.judged[name] = replace(evidence.judged[name], admitted=False)
        selected = [int(place) for place in where[: verdict.count] if place >= 0]
        selection = await self._reaching(hand, selected, target.confidence)
        reason = (
            f"{verdict.drawn} documents drawn at random do not show that the teacher says yes to {yes:.2f} of the "
            f"selection, as a precision of {precision:g} for people takes by {len(calibration.labels)} labels; a "
            "larger budget may, or more labels"
        )
        return replace(selection, precision=verdict.value, **_said(hand, verdict, 1 - target.confidence, reason))

    @staticmethod
    def _hopeless(calibration: Calibration, target: Target, precision: float, yes: float, there: bool) -> str | None:
        """Say why no draws would show it, None where some may."""
        if calibration.errors() is None:
            return calibration.notes[-1]
        if yes >= calibration.sensitivity.high or yes >= 1:
            more = calibration.more(precision, 1 - target.confidence)
            would = "no number of labels would" if more is None else f"about {more} more labels would"
            return (
                f"by {len(calibration.labels)} labels the teacher would have to say yes to {yes:.2f} of the selection, "
                f"which is more than it says to what is relevant; {would} change that"
            )
        return None if there else "no set of documents is expected to keep it, or no grades are left to show it"

    async def _complete(self, hand: Hand, target: Target, recall: float) -> Selection:
        """Reach down until the recall is expected, and show it where the collection is small enough."""
        evidence, aimed = hand.evidence, recall + (1 - recall) / 2
        while True:
            ordered = evidence.in_order(evidence.fit(), graded_first=True)
            known = evidence.relevant()
            cut = max(ordered.outlook.least_complete(aimed) - known, 0)
            if cut < len(evidence.open_places()) or evidence.complete:
                break
            await evidence.next_page()
        size = max(evidence.population - len(evidence.judged), cut)
        hits = float(ordered.outlook.weights @ ordered.outlook.hits[:, ordered.outlook.at(known + cut)]) - known
        missed = float(ordered.outlook.weights @ ordered.outlook.totals) - known - hits
        inside, outside, bound = share_out(cut, size, known, (hits, missed), target.confidence, hand.left)
        if bound < recall:
            reason = (
                f"a recall of {recall:g} cannot be shown with {hand.left} more grades: {outside} of the {size - cut} "
                f"documents that are not selected can be sampled, which is expected to show only {bound:.2f}; give a "
                "larger budget, or filters that leave fewer documents"
            )
            return await self._expected(hand, target, reason)
        await evidence.deeper(least=0.0)
        places = evidence.open_places()
        cut, size = min(cut, len(places)), len(places)
        order = hand.random().permutation(size)
        draws = certify_recall(order, cut, size, known, recall, target.confidence, inside, outside)
        verdict = await self._drawn(hand, places, draws)
        selection = await self._reaching(hand, places[: verdict.count], target.confidence)
        reason = (
            f"{verdict.drawn} documents drawn at random show a recall of at least {verdict.value.low:.2f}, not of "
            f"{recall:g}; a larger budget may"
        )
        return replace(selection, recall=verdict.value, **_said(hand, verdict, 1 - target.confidence, reason))

    @staticmethod
    def _found_relevant(hand: Hand, entry: NodeWithScore) -> bool:
        judged = hand.evidence.judged.get(same_id(entry.node_id))
        return judged is not None and judged.grade >= RELEVANT

    async def _expected(self, hand: Hand, target: Target, reason: str) -> Selection:
        """Cut where the target is expected to be kept, as it cannot be shown."""
        await self._look_closer(hand, min(hand.left, MORE * self.pipeline.feedback_top_k))

        def cut(ordered: Ordered) -> int:
            if target.precision is not None:
                return ordered.outlook.most_precise(target.precision)
            return ordered.outlook.least_complete(target.recall or 0.0)

        selection = await self._cut(hand, cut, target.confidence)
        return replace(selection, reason=reason)

    async def _look_closer(self, hand: Hand, grades: int) -> None:
        """Grade documents of which it is unsure whether they belong."""
        random = hand.random()
        for wave in range(WAVES):
            share = grades // WAVES if wave < WAVES - 1 else grades - grades // WAVES * (WAVES - 1)
            relevance = hand.evidence.fit()
            ordered = hand.evidence.in_order(relevance)
            doubt = np.repeat(ordered.outlook.doubt(), np.diff(ordered.outlook.places))
            weights = (doubt + 1e-9) * np.sqrt(ordered.probabilities * (1 - ordered.probabilities))
            there = [at for at, name in enumerate(ordered.names) if isinstance(name, int) and weights[at] > 0]
            count = min(share, len(there), hand.left)
            if count < 1 or hand.account.exhausted():
                return
            chosen = random.choice(there, count, replace=False, p=weights[there] / weights[there].sum())
            await self._grade(hand, [int(ordered.names[at]) for at in chosen])

    async def _drawn(self, hand: Hand, places: NDArray[np.int64], draws: Draws) -> Verdict:
        """Have a certificate's draws graded."""
        answers: list[bool | None] | None = None
        while True:
            try:
                wanted = next(draws) if answers is None else draws.send(answers)
            except StopIteration as end:
                verdict: Verdict = end.value
                return verdict
            answers = await self._grade(hand, [int(places[at]) for at in wanted])

    async def _grade(self, hand: Hand, places: Sequence[int]) -> list[bool | None]:
        """Grade documents of the ranking. :return: whether each is relevant, None where there is no grade."""
        evidence = hand.evidence
        hand.left -= len(places)
        hand.asked += len(places)
        ids = [evidence.ids[place] for place in places]
        try:
            found = await self.pipeline.collection.those(evidence.query, ids)
            found = await self.pipeline.collection.complete(found, evidence.query)
            grades = await perform("grade", self.pipeline.grading, Sheet(hand.query, found.nodes, hand.account))
        except Exception as error:
            if isinstance(error, GraderError) or self.pipeline.on_error == "raise":
                raise
            logger.warning("Going on without some grades: %s: %s", type(error).__name__, error)
            return [None] * len(places)
        self.pipeline.teacher.hear([grade for grade in grades if grade is not None])
        given: dict[str, float] = {}
        at = {same_id(evidence.ids[place]): place for place in places}
        for point, node, score, grade in zip(found.ids, found.nodes, found.scores, grades, strict=True):
            name = same_id(point)
            if grade is not None:
                given[name] = grade
                similarity = evidence.similarities[at[name]]
                read = float(self.pipeline.teacher.read([grade])[0])
                evidence.judged[name] = Judged(similarity, read, NodeWithScore(node=node, score=score))
        names = [same_id(evidence.ids[place]) for place in places]
        return [given[name] >= RELEVANT if name in given else None for name in names]

    async def _reaching(self, hand: Hand, places: Sequence[int] | NDArray[np.int64], confidence: float) -> Selection:
        """Select what was found relevant, and the ungraded documents down to a place."""
        evidence = hand.evidence
        inside = sum(same_id(evidence.ids[place]) not in evidence.judged for place in places)
        count = evidence.relevant() + inside
        return await self._cut(hand, lambda _: count, confidence, graded_first=True)

    async def _cut(
        self, hand: Hand, choose: Callable[[Ordered], int], confidence: float, graded_first: bool = False
    ) -> Selection:
        evidence = hand.evidence
        await evidence.deeper()
        relevance = evidence.fit()
        evidence.learn(relevance)
        ordered = evidence.in_order(relevance, graded_first)
        count = choose(ordered)
        precision, recall, total = ordered.outlook.intervals(count, confidence)
        chosen = list(zip(ordered.names[:count], ordered.probabilities[:count].tolist(), strict=True))
        nodes = await self._nodes(evidence, [name for name, _ in chosen])
        selected = [
            NodeWithScore(node=nodes[name], score=value)
            for name, value in sorted(chosen, key=lambda one: -one[1])
            if name in nodes
        ]
        expected = ordered.outlook
        weights = expected.weights
        return Selection(
            nodes=selected,
            threshold=evidence.threshold_of(ordered.names[:count]),
            vector=np.asarray(evidence.refinement.vector),
            precision=precision,
            recall=recall,
            expected_total=total.estimate,
            graded=len(evidence.judged),
            certified=False,
            reason=None,
            refinement=replace(
                evidence.refinement, nodes=selected, failures=tuple(hand.account.failures), **hand.account.bill()
            ),
            cuts=Cuts(
                expected.places.tolist(),
                (weights @ expected.precision()).tolist(),
                (weights @ expected.recall()).tolist(),
                count,
            ),
            metric=evidence.metric,
            curve=relevance.curve(),
        )

    async def _nodes(self, evidence: Evidence, names: Sequence[str | int]) -> dict[str | int, BaseNode]:
        """Return the nodes behind graded documents and places of the ranking."""
        nodes: dict[str | int, BaseNode] = {
            name: evidence.judged[name].entry.node for name in names if isinstance(name, str)
        }
        wanted = {same_id(evidence.ids[name]): name for name in names if isinstance(name, int)}
        deepest = max(wanted.values(), default=-1)
        for start in range(0, deepest + 1, NODES):
            limit = min(NODES, deepest + 1 - start)
            page = await self.pipeline.collection.search(evidence.query, limit, offset=start, exact=True)
            page = await self.pipeline.collection.complete(page, evidence.query)
            for at, point in enumerate(page.ids):
                if same_id(point) in wanted:
                    nodes[wanted[same_id(point)]] = page.nodes[at]
        return nodes


def _said(hand: Hand, verdict: Verdict, risk: float, reason: str) -> dict[str, Any]:
    """Say whether the target is certified."""
    return _unless_guessed(hand, risk) if verdict.certified else {"certified": False, "reason": reason}


def _unless_guessed(hand: Hand, risk: float) -> dict[str, Any]:
    """Say that the target is certified, but for a guesser, whose word shows nothing."""
    guesser = hand.evidence.fit().guesser() > risk
    return {"certified": not guesser, "reason": GUESSER if guesser else None}
