"""One selection's way: refine, read down the ranking, grade where it is unsure, cut."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from numpy.typing import NDArray

from llama_index_refine.calibration import Calibration
from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.base import GraderError
from llama_index_refine.ids import same_id
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.relevance import Ranking
from llama_index_refine.retrieval.arguments import MORE, Target
from llama_index_refine.retrieval.evidence import RELEVANT, Evidence, Judged, check
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
from llama_index_refine.selecting.cut import Interval, Outlook, outlook
from llama_index_refine.selection import UNKNOWN, Cuts, Selection

logger = logging.getLogger(__name__)

# How often the cut is looked at again while grades are spent.
WAVES = 2
# Nodes fetched in one request.
NODES = 500
GUESSER = "the teacher's grades look like guesses, so they cannot certify the selection"


async def select_nodes(
    pipeline: Pipeline, calibration: Calibration | None, query: QueryBundle, target: Target
) -> Selection:
    """Select for one query.

    :param pipeline: refines the query.
    :param calibration: what people's labels say of the teacher, None for nothing.
    :param query: the query.
    :param target: what is asked of the selection.
    :return: the selection.
    :raises ValueError: an empty collection, a query that does not fit it, or "people" without a calibration.
    """
    if target.about == "people" and calibration is None:
        raise ValueError("about='people' needs labels: RefinedRetriever(calibration=retriever.calibrate(judgements))")
    await check(pipeline.collection)
    documents = target.documents(pipeline.feedback_top_k)
    account = Account(target.budget if isinstance(target.budget, Budget) else pipeline.budget)
    refinement, feedback = await pipeline.retrieve(query, account)
    if feedback is None or not refinement.refined:
        return await _nothing(pipeline, refinement)
    evidence = await Evidence.gather(pipeline, refinement, feedback)
    left = max(documents - len(feedback.said()) - refinement.ungraded, 0)
    selecting = Selecting(pipeline, query, target, evidence, account, left)
    if target.precision is not None and target.about == "people" and calibration is not None:
        return await selecting.precise_for_people(target.precision, calibration)
    if target.precision is not None:
        return await selecting.precise(target.precision)
    if target.recall is not None:
        return await selecting.complete(target.recall)
    return await selecting.open()


@dataclass
class Selecting:
    """One selection on its way.

    :param pipeline: what refined the query.
    :param query: the query.
    :param target: what is asked of the selection.
    :param evidence: what is known of the query.
    :param account: what grading may still cost.
    :param left: how many documents may still be graded.
    """

    pipeline: Pipeline
    query: QueryBundle
    target: Target
    evidence: Evidence
    account: Account
    left: int

    async def open(self) -> Selection:
        """Cut where the expected F1 is highest."""
        await self._look_closer(self.left)
        selection = await self._cut(Outlook.best)
        return replace(selection, reason="no target was set, so precision and recall are estimates")

    async def precise(self, precision: float) -> Selection:
        """Reach down as far as documents drawn at random show that the precision is kept."""
        evidence = self.evidence
        places, known = evidence.open_places(), evidence.relevant()
        cuts = self._cuts(np.asarray(evidence.similarities)[places], precision)
        if not cuts or not self.left:
            why = "no grades are left to check it" if cuts else "no set of ungraded documents is expected to reach it"
            reason = f"a precision of {precision:g} is not shown: {why}"
            selection = await (self._expected(reason) if len(places) else self._reaching([]))
            judged = [evidence.judged.get(same_id(entry.node_id)) for entry in selection.nodes]
            if not all(one is not None and one.grade >= RELEVANT for one in judged):
                return selection
            # What has been graded relevant, all of it, needs no sample to show how much of it is.
            return replace(selection, precision=Interval(1.0, 1.0, 1.0), **self._unless_guessed())
        order = self._random().permutation(len(places))
        draws = certify_precision(order, cuts, known, precision, self.target.confidence, self.left)
        verdict = await self._drawn(places, draws)
        reason = (
            f"{verdict.drawn} documents drawn at random from the surest ungraded ones do not show a precision of "
            f"{precision:g}; a larger budget may"
        )
        selection = await self._reaching(places[: verdict.count])
        return replace(selection, precision=verdict.value, **self._said(verdict, reason))

    async def precise_for_people(self, precision: float, calibration: Calibration) -> Selection:
        """Reach down as far as draws and labels together show that people would call it precise."""
        evidence, third = self.evidence, (1 - self.target.confidence) / 3
        yes = calibration.needed(precision, 2 * third)
        # A graded document stands where the others' grades put it, so that no place depends on its own answer.
        known = {same_id(node_id) for node_id in self.pipeline.grading.grader.judged(self.query)}
        asked = [name for name, one in evidence.judged.items() if one.admitted and not one.people and name not in known]
        places = evidence.open_places()
        similarities = np.r_[[evidence.judged[name].place for name in asked], np.asarray(evidence.similarities)[places]]
        ranked = np.argsort(-similarities, kind="stable")
        where = np.r_[np.full(len(asked), -1), places][ranked].astype(np.int64)
        cuts = self._cuts(similarities[ranked], precision)
        if why := self._hopeless(calibration, precision, yes, bool(cuts and self.left)):
            return await self._expected(f"a precision of {precision:g} for people is not shown: {why}")
        every = [*asked, *(same_id(evidence.ids[place]) for place in places)]
        names = [every[one] for one in ranked]
        graded = {at: name for at, name in enumerate(names) if name in evidence.judged}
        draws = certify_for_people(
            self._random().permutation(len(ranked)),
            cuts,
            {at: evidence.judged[name].grade >= RELEVANT for at, name in graded.items()},
            precision,
            yes,
            lambda share: calibration.corrected(share, 2 * third),
            third,
            self.left,
        )
        verdict = await self._drawn(where, draws)
        # What the teacher calls relevant further down, drawn or not, is not part of what was shown.
        for name in names[verdict.count :]:
            if name in evidence.judged:
                evidence.judged[name] = replace(evidence.judged[name], admitted=False)
        selection = await self._reaching([int(place) for place in where[: verdict.count] if place >= 0])
        reason = (
            f"{verdict.drawn} documents drawn at random do not show that the teacher says yes to {yes:.2f} of the "
            f"selection, as a precision of {precision:g} for people takes by {len(calibration.labels)} labels; a "
            "larger budget may, or more labels"
        )
        return replace(selection, precision=verdict.value, **self._said(verdict, reason))

    async def complete(self, recall: float) -> Selection:
        """Reach down until the recall is expected, and show it where the collection is small enough."""
        evidence, aimed, confidence = self.evidence, recall + (1 - recall) / 2, self.target.confidence
        while True:
            expected = evidence.in_order(evidence.fit(), graded_first=True).outlook
            known = evidence.relevant()
            cut = max(expected.least_complete(aimed) - known, 0)
            if cut < len(evidence.open_places()) or evidence.complete:
                break
            await evidence.next_page()
        # What a score threshold leaves out cannot be selected, however many there are.
        rest = len(evidence.open_places()) if evidence.complete else evidence.population - len(evidence.judged)
        size = max(rest, cut)
        hits = float(expected.weights @ expected.hits[:, expected.at(known + cut)]) - known
        missed = float(expected.weights @ expected.totals) - known - hits
        inside, outside, bound = share_out(cut, size, known, (hits, missed), confidence, self.left)
        if bound < recall:
            return await self._expected(
                f"a recall of {recall:g} cannot be shown with {self.left} more grades: {outside} of the {size - cut} "
                f"documents that are not selected can be sampled, which is expected to show only {bound:.2f}; give a "
                "larger budget, or filters that leave fewer documents"
            )
        await evidence.deeper(least=0.0)
        places = evidence.open_places()
        cut, size = min(cut, len(places)), len(places)
        order = self._random().permutation(size)
        verdict = await self._drawn(
            places, certify_recall(order, cut, size, known, recall, confidence, inside, outside)
        )
        selection = await self._reaching(places[: verdict.count])
        reason = (
            f"{verdict.drawn} documents drawn at random show a recall of at least {verdict.value.low:.2f}, not of "
            f"{recall:g}; a larger budget may"
        )
        return replace(selection, recall=verdict.value, **self._said(verdict, reason))

    def _cuts(self, similarities: NDArray[np.float64], precision: float) -> list[int]:
        """Return how many documents each set reaches down to that may keep a precision, ascending."""
        nothing = Ranking(np.empty(0), np.empty(0))
        view = outlook(self.evidence.fit(), similarities, np.full(len(similarities), np.nan), nothing)
        expected = [view.most_precise(precision + (1 - precision) * margin) for margin in MARGINS]
        return sorted({count for count in expected if count > 0})

    def _hopeless(self, calibration: Calibration, precision: float, yes: float, there: bool) -> str | None:
        """Say why no draws would show it, None where some may."""
        if calibration.errors() is None:
            return calibration.notes[-1]
        if yes >= calibration.sensitivity.high or yes >= 1:
            more = calibration.more(precision, 1 - self.target.confidence)
            would = "no number of labels would" if more is None else f"about {more} more labels would"
            return (
                f"by {len(calibration.labels)} labels the teacher would have to say yes to {yes:.2f} of the selection, "
                f"which is more than it says to what is relevant; {would} change that"
            )
        return None if there else "no set of documents is expected to keep it, or no grades are left to show it"

    async def _expected(self, reason: str) -> Selection:
        """Cut where the target is expected to be kept, as it cannot be shown."""
        await self._look_closer(min(self.left, MORE * self.pipeline.feedback_top_k))
        precision, recall = self.target.precision, self.target.recall or 0.0

        def cut(expected: Outlook) -> int:
            return expected.least_complete(recall) if precision is None else expected.most_precise(precision)

        return replace(await self._cut(cut), reason=reason)

    async def _look_closer(self, grades: int) -> None:
        """Grade documents of which it is unsure whether they belong."""
        random = self._random()
        for waves in range(WAVES, 0, -1):
            share = grades // waves
            grades -= share
            ordered = self.evidence.in_order(self.evidence.fit())
            doubt = np.repeat(ordered.outlook.doubt(), np.diff(ordered.outlook.places))
            weights = (doubt + 1e-9) * np.sqrt(ordered.probabilities * (1 - ordered.probabilities))
            there = [at for at, name in enumerate(ordered.names) if isinstance(name, int) and weights[at] > 0]
            count = min(share, len(there), self.left)
            if count < 1 or self.account.exhausted():
                return
            chosen = random.choice(there, count, replace=False, p=weights[there] / weights[there].sum())
            await self._grade([int(ordered.names[at]) for at in chosen])

    def _random(self) -> np.random.Generator:
        """Return what draws: the same for the same query, so that a cache knows the documents."""
        digest = blake2b(self.query.query_str.encode("utf-8", "replace"), digest_size=8)
        digest.update(np.asarray(self.evidence.refinement.query, dtype=np.float32).tobytes())
        return np.random.default_rng(int.from_bytes(digest.digest(), "little"))

    async def _drawn(self, places: NDArray[np.int64], draws: Draws) -> Verdict:
        """Have a certificate's draws graded."""
        try:
            wanted = next(draws)
            while True:
                wanted = draws.send(await self._grade([int(places[at]) for at in wanted]))
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict

    async def _grade(self, places: Sequence[int]) -> list[bool | None]:
        """Grade documents of the ranking. :return: whether each is relevant, None where there is no grade."""
        evidence, pipeline = self.evidence, self.pipeline
        self.left -= len(places)
        at = {same_id(evidence.ids[place]): place for place in places}
        try:
            found = await pipeline.collection.those(evidence.query, [evidence.ids[place] for place in places])
            grades = await perform("grade", pipeline.grading, Sheet(self.query, found.nodes, self.account))
        except Exception as error:
            if isinstance(error, GraderError) or pipeline.on_error == "raise":
                raise
            logger.warning("Going on without some grades: %s: %s", type(error).__name__, error)
            return [None] * len(places)
        relevant: dict[int, bool] = {}
        for point, node, score, grade in zip(found.ids, found.nodes, found.scores, grades, strict=True):
            if grade is not None:
                place = at[same_id(point)]
                relevant[place] = grade >= RELEVANT
                entry = NodeWithScore(node=node, score=score)
                evidence.judged[same_id(point)] = Judged(evidence.similarities[place], grade, entry)
        return [relevant.get(place) for place in places]

    async def _reaching(self, places: Sequence[int] | NDArray[np.int64]) -> Selection:
        """Select what was found relevant, and the ungraded documents down to a place."""
        evidence = self.evidence
        inside = sum(same_id(evidence.ids[place]) not in evidence.judged for place in places)
        count = evidence.relevant() + inside
        return await self._cut(lambda _: count, graded_first=True)

    async def _cut(self, choose: Callable[[Outlook], int], graded_first: bool = False) -> Selection:
        """Select as many documents as are chosen by what is expected of every cut."""
        evidence = self.evidence
        await evidence.deeper()
        relevance = evidence.fit()
        evidence.learn(relevance)
        ordered = evidence.in_order(relevance, graded_first)
        expected, weights = ordered.outlook, ordered.outlook.weights
        count = choose(expected)
        precision, recall, total = expected.intervals(count, self.target.confidence)
        names = ordered.names[:count]
        nodes = await self._nodes(names)
        chosen = sorted(zip(names, ordered.probabilities[:count].tolist(), strict=True), key=lambda one: -one[1])
        selected = [NodeWithScore(node=nodes[name], score=value) for name, value in chosen if name in nodes]
        return Selection(
            nodes=selected,
            threshold=evidence.threshold_of(names),
            vector=np.asarray(evidence.refinement.vector),
            precision=precision,
            recall=recall,
            expected_total=total.estimate,
            graded=len(evidence.judged),
            certified=False,
            reason=None,
            refinement=replace(
                evidence.refinement, nodes=selected, failures=tuple(self.account.failures), **self.account.bill()
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

    async def _nodes(self, names: Sequence[str | int]) -> dict[str | int, BaseNode]:
        """Return the nodes behind graded documents and places of the ranking."""
        evidence, collection = self.evidence, self.pipeline.collection
        nodes: dict[str | int, BaseNode] = {
            name: evidence.judged[name].entry.node for name in names if isinstance(name, str)
        }
        wanted = {same_id(evidence.ids[name]): name for name in names if isinstance(name, int)}
        deepest = max(wanted.values(), default=-1)
        for start in range(0, deepest + 1, NODES):
            page = await collection.search(evidence.query, min(NODES, deepest + 1 - start), offset=start, exact=True)
            page = await collection.complete(page)
            for at, point in enumerate(page.ids):
                if same_id(point) in wanted:
                    nodes[wanted[same_id(point)]] = page.nodes[at]
        return nodes

    def _said(self, verdict: Verdict, reason: str) -> dict[str, Any]:
        """Say whether the target is certified."""
        return self._unless_guessed() if verdict.certified else {"certified": False, "reason": reason}

    def _unless_guessed(self) -> dict[str, Any]:
        """Say that the target is certified, but for a guesser, whose word shows nothing."""
        guesser = self.evidence.fit().guesser() > 1 - self.target.confidence
        return {"certified": not guesser, "reason": GUESSER if guesser else None}


async def _nothing(pipeline: Pipeline, refinement: Refinement) -> Selection:
    if not await pipeline.collection.population():
        name = pipeline.collection.store.collection_name
        raise ValueError(f"collection_name {name!r} has no points that match filters: there is nothing to select from")
    logger.warning("Nothing is selected: %s", refinement.reason)
    return Selection(
        nodes=[],
        threshold=float("nan"),
        vector=np.asarray(refinement.vector),
        precision=UNKNOWN,
        recall=UNKNOWN,
        expected_total=float("nan"),
        graded=len(refinement.graded_nodes),
        certified=False,
        reason=f"nothing is selected, because the query was not refined: {refinement.reason}",
        refinement=replace(refinement, nodes=[]),
    )
