"""What a search for the refined query found: what of it to grade next, the final order, and whether it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from llama_index_refine.ids import same_id
from llama_index_refine.qdrant.points import Found, PointId
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.refiner import rarity
from llama_index_refine.refining.relevance import Ranking, Relevance, fit_relevance
from llama_index_refine.refining.trust import Teacher
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.similarity import passes, score_of_similarity, similarity, similarity_of_score

# The gain of a call, as a share of what the list is worth, below which it is not worth it. Chosen on nine collections
# with one to a hundred relevant documents a query; results/early_stop.md has what it keeps.
WORTH = 0.0115
# A document that moves by less, in nats, has not moved.
UNMOVED = 1e-3
# Places that stand for all that a fused ranking leaves out.
SAMPLE = 30


@dataclass(frozen=True)
class Chances:
    """The model of relevance, fitted to a ranking, and where documents stand in it, in nats.

    :param model: the model.
    :param graded: (K,) where the ranking alone puts the graded documents.
    :param held_out: (K,) where the others' grades put them.
    :param grades: (K,) their grades, in [0, 1].
    :param found: (n,) where the documents stand that were found.
    """

    model: Relevance
    graded: Tensor
    held_out: Tensor
    grades: np.ndarray
    found: Tensor


@dataclass(frozen=True)
class RefinedRanking:
    """What a search for a refined query found.

    :param feedback: what has been graded.
    :param refinement: how the query moved by it.
    :param query: what was searched for.
    :param found: what that found.
    :param population: how many documents there are, as far as that is known.
    :param teacher: what is known of the teacher.
    """

    feedback: Feedback
    refinement: Refinement
    query: Query
    found: Found
    population: int
    teacher: Teacher

    def choose(self, count: int, depth: int, limit: int, own_grade: float | None, saves: bool) -> list[int]:
        """Choose what is graded next: what would improve the list most.

        The first of the ranking are often so surely relevant that their grades would change nothing. A long list is
        improved by what its grades teach of the others, and that is most where relevance is most in doubt: uncertainty
        sampling (Lewis and Gale, A sequential algorithm for training text classifiers (1994)).

        :param count: how many documents to choose at most.
        :param depth: how many new documents to choose from; some searches bring more than was asked for.
        :param limit: how many documents are returned.
        :param own_grade: what a certain grade adds to its document's place, in nats; None in a list longer than what
            may be graded.
        :param saves: whether grades that are not worth their call are not asked for.
        :return: places in the ranking, at most `count`.
        """
        feedback, refinement, ids = self.feedback, self.refinement, self.found.ids
        new = feedback.new(self.found)
        if not count or not new:
            return []
        if feedback.settled:
            others = [at for at, point in enumerate(ids) if point not in feedback.shown]
            seen = [place for place, at in enumerate(others) if same_id(ids[at]) in feedback.passed]
            # News stand in the upper half of what was seen; what stands lower may have stood there before.
            deepest = min(limit // 2, seen[len(seen) // 2]) if seen else limit // 2
            return sorted({*new} & {*others[:deepest]})[:count]
        new = new[:depth]
        chances = self.chances(refinement.grades)
        places = chances.found[new]
        likely = chances.model.probability(places)
        if own_grade is None:
            worth = likely * (1 - likely)
        else:
            steps = own_grade * rarity(float(chances.grades.mean())), own_grade
            placed = chances.held_out + torch.from_numpy(refinement.fused - refinement.held_out) / refinement.tau
            worth = expected_gains(placed, chances.grades, places, likely, steps, limit)
        best = np.argsort(-worth, kind="stable")[:count]
        return sorted(new[at] for at in best if worth[at] >= WORTH or not saves)

    def unmoved(self) -> bool:
        """Say whether no graded document has moved, so that the first search stands where the query has not either."""
        refinement = self.refinement
        row, documents = torch.as_tensor(refinement.vector), torch.as_tensor(refinement.documents)
        moved = torch.as_tensor(refinement.fused) - similarity(row, documents, self.feedback.view.metric)
        return bool((moved.abs() <= UNMOVED * refinement.tau).all())

    def place(self, before: Found, limit: int) -> list[tuple[PointId, float]]:
        """Put the graded documents where their grades place them among those that were found.

        What the first searches found with its vectors is compared too: an index that is not exact may miss it.

        :param before: what the first search found.
        :param limit: the most documents.
        :return: points, best first, with scores that can be compared with those of the first search.
        """
        feedback, refinement, query, found = self.feedback, self.refinement, self.query, self.found
        view, row, documents = feedback.view, np.asarray(refinement.vector), torch.as_tensor(refinement.documents)
        own = similarity(torch.as_tensor(row), documents, view.metric)
        gains = torch.as_tensor(refinement.fused) - own
        if query.ranks:
            others, graded = standing(found, found.ids), standing(found, feedback.ids) + gains / refinement.tau
        else:
            others = similarity_of_score(torch.tensor(found.scores, dtype=torch.float32), view.metric)
            graded = (own if view.lasts else levelled(found, feedback.ids, own)) + gains
        values: dict[PointId, float] = {}
        if view.lasts and not view.heavy and feedback.candidates:
            met = similarity(torch.as_tensor(row), feedback.brought.dense, view.metric)
            values = dict(zip(feedback.candidates, met.tolist(), strict=True))
        values |= zip(found.ids, others.tolist(), strict=True)
        values |= zip(feedback.ids, graded.tolist(), strict=True)
        if query.threshold is not None:
            admitted = view.passes(row, documents, query.threshold)
            outside = {point for point, inside in zip(feedback.ids, admitted, strict=True) if not inside}
            outside -= {*found.ids}
            values = {point: value for point, value in values.items() if point not in outside}
        ranked = sorted(values.items(), key=lambda entry: -entry[1])
        if feedback.grouping.by is not None:
            kept = feedback.grouping.first([feedback.groups.get(point) for point, _ in ranked])
            ranked = [ranked[at] for at in kept]
        ranked = ranked[:limit]
        similarities = torch.tensor([value for _, value in ranked], dtype=torch.float32)
        if query.threshold is not None and not query.fuses:
            near = passes(score_of_similarity(similarities, view.metric), query.threshold, view.metric)
            ranked, similarities = ranked[: int(near.sum())], similarities[near]
        # Scores that say places only: each place has the first search's score of that place.
        scores = view.scores(row, similarities).tolist() if view.lasts else before.scores
        return [(point, scores[min(at, len(scores) - 1)]) for at, (point, _) in enumerate(ranked)]

    def answerable(self, returned: Sequence[PointId]) -> float:
        """Say how likely at least one of the returned documents is relevant.

        :param returned: the points that are returned.
        :return: in [0, 1].
        """
        # By the grades as they were given: stretched to the whole scale, they find something relevant for every query.
        chances = self.chances(self.feedback.grades)
        graded = {point: at for at, point in enumerate(self.feedback.ids)}
        places = dict(zip(self.found.ids, chances.found.tolist(), strict=True))
        least = min(places.values(), default=float(chances.graded.min()))
        judged = [graded[point] for point in returned if point in graded]
        rest = [places.get(point, least) for point in returned if point not in graded]
        return chances.model.of_any(rest, chances.held_out[judged], chances.grades[judged])

    def chances(self, graded_by: ArrayLike) -> Chances:
        """Fit the model of relevance.

        :param graded_by: (K,) the grades, in [0, 1].
        :return: the model, and where documents stand in it.
        """
        refinement, found = self.refinement, self.found
        vector, metric, tau = torch.as_tensor(refinement.vector), refinement.metric, refinement.tau
        own = similarity(vector, torch.as_tensor(refinement.documents), metric)
        if self.query.ranks:
            deepest = max(self.population, len(found.ids))
            graded, places = standing(found, self.feedback.ids), standing(found, found.ids)
            sample = -torch.linspace(2 + len(found.ids), 2 + deepest, SAMPLE).log()
        else:
            scores = torch.tensor(found.scores, dtype=torch.float32)
            graded, places = own / tau, similarity_of_score(scores, metric) / tau
            sample = similarity(vector, torch.as_tensor(refinement.background), metric) / tau
        held_out = graded + (torch.as_tensor(refinement.held_out) - own) / tau
        known = {*self.feedback.ids}
        others = places[[at for at, point in enumerate(found.ids) if point not in known]]
        least = others[-1] if len(others) else graded.min()
        there = torch.cat([others, graded[graded >= least]]).sort(descending=True).values
        ranking = Ranking.of(there, sample, self.population)
        grades = np.asarray(graded_by, dtype=np.float64)
        teacher = self.teacher
        usual = teacher.abundance.log_odds
        model = fit_relevance(ranking, held_out, grades, teacher.sees(), usual, rates=teacher.rates)
        return Chances(model, graded, held_out, grades, places)


def expected_gains(
    placed: ArrayLike,
    grades: ArrayLike,
    others: ArrayLike,
    chances: ArrayLike,
    steps: tuple[float, float],
    limit: int,
) -> NDArray[np.float64]:
    """Say how much the list's discounted cumulative gain (DCG) would grow, could one of the next documents be graded.

    Graded relevant, a document moves up by a step; graded irrelevant, down by another; what it passes moves the other
    way. Nothing is said of what its grade teaches about others.

    :param placed: (K,) where the graded documents stand in the list, their own grades weighed in, in nats.
    :param grades: (K,) in [0, 1].
    :param others: (n,) where the other documents stand, best first.
    :param chances: (n,) how likely each of these is relevant, as `Relevance.probability` says.
    :param steps: nats by which its own grade moves a document up, and down.
    :param limit: how many documents are returned.
    :return: (n,) the growth for each of the others, as a share of the best DCG of documents that are relevant with
        these probabilities.
    """
    rest, likely = np.asarray(others, dtype=np.float64), np.asarray(chances, dtype=np.float64)
    places, relevance = np.r_[np.asarray(placed, dtype=np.float64), rest], np.r_[grades, likely]
    order = np.argsort(-places, kind="stable")
    places, relevance = places[order], relevance[order]
    ranks = np.arange(len(places) + 1)
    discount = np.where(ranks < limit, 1 / np.log2(2 + ranks), 0.0)
    best = np.sort(relevance)[::-1] @ discount[:-1]
    one_place = discount[:-2] - discount[1:-1]
    # What the documents before each place lose by moving down by one, and those up to it gain by moving up.
    lost = np.r_[0.0, np.cumsum(relevance[:-1] * one_place)]
    passed = np.r_[0.0, np.cumsum(relevance[1:] * one_place)]
    here, above, below = (np.searchsorted(-places, -rest - moved) for moved in (0.0, steps[0], -steps[1]))
    last = np.maximum(below - 1, here)
    up, costs, leaves = discount[above] - discount[here], lost[here] - lost[above], passed[last] - passed[here]
    gains: NDArray[np.float64] = likely * np.maximum(up - costs, 0.0) + (1 - likely) * leaves
    return gains / (best if best > 0 else np.inf)


def levelled(found: Found, ids: Sequence[PointId], own: Tensor) -> Tensor:
    """Return the scores of graded documents as Qdrant has them, where rows say only about what Qdrant will.

    :param found: what the second search found.
    :param ids: the graded documents.
    :param own: (K,) the similarity of each one's row to the refined query.
    :return: (K,) the score; of those that were not found, their own, but no better than the last of those found.
    """
    scores = dict(zip(found.ids, found.scores, strict=True))
    least = min(found.scores, default=float("inf"))
    values = [scores.get(point, min(mine, least)) for point, mine in zip(ids, own.tolist(), strict=True)]
    return torch.tensor(values, dtype=own.dtype)


def standing(ranking: Found, ids: Sequence[PointId]) -> Tensor:
    """Say where documents stand in a ranking whose scores are not similarities, in nats.

    A fused score says nothing about how relevant a document is, only its place does. Taking the n-th of a ranking to be
    relevant with a probability that falls like 1/n, as Zipf's law has it, minus log n counts nats as a similarity over
    tau does. The 2 is the constant of Qdrant's reciprocal rank fusion: it keeps the first place from standing out.

    :param ranking: what a fused search found.
    :param ids: documents; those that it did not find stand behind its last.
    :return: (n,)
    """
    place_of = {point: at for at, point in enumerate(ranking.ids)}
    places = [2 + place_of.get(point, len(place_of)) for point in ids]
    return -torch.tensor(places, dtype=torch.float32).log()


def withheld(refinement: Refinement, least: float) -> Refinement:
    """Return nothing rather than what probably answers nothing.

    :param refinement: what was found.
    :param least: the least probability that anything returned is relevant.
    :return: the same; without nodes, and with a `reason`, where the probability is known and lower.
    """
    chance = refinement.answerable
    if chance is None or chance >= least:
        return refinement
    reason = (
        f"the nodes probably do not answer the query: the probability that one does is {chance:.2f}, and answerable "
        f"asks for {least:g}"
    )
    return replace(refinement, nodes=[], reason=reason)
