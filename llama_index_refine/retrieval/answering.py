"""Whether anything that is returned answers the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.points import Found, PointId
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.relevance import Ranking, fit_relevance
from llama_index_refine.refining.trust import Teacher
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.retrieval.placing import in_nats
from llama_index_refine.similarity import similarity


def answerable(
    feedback: Feedback,
    refinement: Refinement,
    query: Query,
    found: Found,
    returned: Sequence[PointId],
    background: Background | None,
    teacher: Teacher,
) -> float:
    """Say how likely at least one of the returned documents is relevant.

    :param feedback: what was graded.
    :param refinement: how the query moved.
    :param query: what the second search was for.
    :param found: what it found.
    :param returned: the points that are returned.
    :param background: documents taken as irrelevant, None for none.
    :param teacher: what is known of the teacher.
    :return: in [0, 1].
    """
    population = background.population if background else len(feedback.shown)
    graded, others, sample = in_nats(feedback, refinement, query, found, population)
    own = similarity(torch.as_tensor(refinement.vector), torch.as_tensor(refinement.documents), refinement.metric)
    places = (graded + (torch.as_tensor(refinement.held_out) - own) / refinement.tau).numpy()
    known = {point: at for at, point in enumerate(feedback.ids)}
    open_ones = dict(zip([point for point in found.ids if point not in known], others.tolist(), strict=True))
    least = min(open_ones.values(), default=float(graded.min()))
    there = torch.cat([others, graded[graded >= least]]).sort(descending=True).values
    fit = fit_relevance(
        Ranking.of(there, sample, population), places, refinement.grades, teacher.sees(), teacher.abundance.log_odds
    )
    judged = [known[point] for point in returned if point in known]
    rest = [open_ones.get(point, least) for point in returned if point not in known]
    return fit.of_any(rest, places[judged], np.asarray(refinement.grades)[judged])


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
        f"nothing that was found answers the query with a probability of {least:g}, as answerable asks: it is "
        f"{chance:.2f}"
    )
    return replace(refinement, nodes=[], reason=reason)
