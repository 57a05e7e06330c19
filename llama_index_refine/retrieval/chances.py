"""How likely the documents of a ranking are relevant, and whether anything that is returned answers the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from llama_index_refine.qdrant.points import Found, PointId
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.relevance import Ranking, Relevance, fit_relevance
from llama_index_refine.refining.trust import Teacher
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.retrieval.placing import standing
from llama_index_refine.similarity import similarity, similarity_of_score

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

    @classmethod
    def of(
        cls, feedback: Feedback, refinement: Refinement, query: Query, found: Found, population: int, teacher: Teacher
    ) -> Chances:
        """Fit the model.

        :param feedback: what was graded.
        :param refinement: how the query moved.
        :param query: what the search was for.
        :param found: what it found.
        :param population: how many documents there are, as far as that is known.
        :param teacher: what is known of the teacher.
        :return: the model, and what it is of.
        """
        vector, metric, tau = torch.as_tensor(refinement.vector), refinement.metric, refinement.tau
        own = similarity(vector, torch.as_tensor(refinement.documents), metric)
        if query.ranks:
            deepest = max(population, len(found.ids))
            graded, places = standing(found, feedback.ids), standing(found, found.ids)
            sample = -torch.linspace(2 + len(found.ids), 2 + deepest, SAMPLE).log()
        else:
            scores = torch.tensor(found.scores, dtype=torch.float32)
            graded, places = own / tau, similarity_of_score(scores, metric) / tau
            sample = similarity(vector, torch.as_tensor(refinement.background), metric) / tau
        held_out = graded + (torch.as_tensor(refinement.held_out) - own) / tau
        known = {*feedback.ids}
        others = places[[at for at, point in enumerate(found.ids) if point not in known]]
        least = others[-1] if len(others) else graded.min()
        there = torch.cat([others, graded[graded >= least]]).sort(descending=True).values
        ranking = Ranking.of(there, sample, population)
        grades = np.asarray(refinement.grades, dtype=np.float64)
        usual = teacher.abundance.log_odds
        model = fit_relevance(ranking, held_out, grades, teacher.sees(), usual, rates=teacher.rates)
        return cls(model, graded, held_out, grades, places)


def answerable(chances: Chances, feedback: Feedback, found: Found, returned: Sequence[PointId]) -> float:
    """Say how likely at least one of the returned documents is relevant.

    :param chances: the model, fitted to what was found.
    :param feedback: what was graded.
    :param found: what was found.
    :param returned: the points that are returned.
    :return: in [0, 1].
    """
    graded = {point: at for at, point in enumerate(feedback.ids)}
    places = dict(zip(found.ids, chances.found.tolist(), strict=True))
    least = min(places.values(), default=float(chances.graded.min()))
    judged = [graded[point] for point in returned if point in graded]
    rest = [places.get(point, least) for point in returned if point not in graded]
    return chances.model.of_any(rest, chances.held_out[judged], chances.grades[judged])


def withheld(refinement: Refinement, least: float | None) -> Refinement:
    """Return nothing rather than what probably answers nothing.

    :param refinement: what was found.
    :param least: the least probability that anything returned is relevant, None to return it whatever that is.
    :return: the same; without nodes, and with a `reason`, where the probability is known and lower.
    """
    chance = refinement.answerable
    if least is None or chance is None or chance >= least:
        return refinement
    reason = (
        f"the nodes probably do not answer the query: the probability that one does is {chance:.2f}, and answerable "
        f"asks for {least:g}"
    )
    return replace(refinement, nodes=[], reason=reason)
