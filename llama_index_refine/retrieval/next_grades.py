"""What is graded next, and whether that is worth its calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llama_index_refine.qdrant.points import Found
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.allocation import WORTH, expected_gains, next_to_grade
from llama_index_refine.refining.refiner import rarity
from llama_index_refine.refining.relevance import Ranking, fit_relevance
from llama_index_refine.refining.trust import FixedTrust, Reliability
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.retrieval.fusion import standing
from llama_index_refine.similarity import similarity, similarity_of_score


@dataclass(frozen=True)
class Fruitless:
    """A round that found nothing worth grading.

    :param refinement: how the query moved.
    :param trust: how far the teacher was followed, in [0, 1].
    :param ranking: what the moved query found.
    """

    refinement: Refinement
    trust: float
    ranking: Found


def worth_grading(
    feedback: Feedback,
    refinement: Refinement,
    ranking: Found,
    new: Sequence[int],
    left: int,
    count: int,
    own_grade: float,
    limit: int,
    ranks: bool,
    population: int,
    trust: Reliability | FixedTrust,
) -> list[int]:
    """Choose the documents whose grades would improve the list most, as far as they are worth a call.

    The first of the ranking are often so surely relevant that their grades would change nothing. See `expected_gains`.

    :param feedback: what has been graded.
    :param refinement: how the query moved by it.
    :param ranking: the refined ranking, deep enough for the list.
    :param new: the places in it of documents that have not been graded.
    :param left: how many of these may still be graded, now or later.
    :param count: how many to choose.
    :param own_grade: what a certain grade adds to its document's place, in nats.
    :param limit: how many documents are returned.
    :param ranks: whether the ranking's scores are no similarities.
    :param population: how many documents there are.
    :param trust: the teacher's record.
    :return: their places in the ranking, ascending.
    """
    if not new:
        return []
    vector = torch.from_numpy(refinement.vector)
    own = similarity(vector, torch.from_numpy(refinement.documents), refinement.metric)
    moved = (torch.from_numpy(refinement.fused) - own) / refinement.tau
    if ranks:
        fitted, others = standing(ranking, feedback.ids), standing(ranking, [ranking.ids[at] for at in new])
        sample = -torch.linspace(2 + len(ranking.ids), 2 + max(population, len(ranking.ids)), 30).log()
    else:
        scores = torch.tensor([ranking.scores[at] for at in new])
        fitted, others = own / refinement.tau, similarity_of_score(scores, refinement.metric) / refinement.tau
        sample = similarity(vector, torch.from_numpy(refinement.background), refinement.metric) / refinement.tau
    held_out = fitted + (torch.from_numpy(refinement.held_out) - own) / refinement.tau
    found = torch.cat([others, fitted[fitted >= others[-1]]]).sort(descending=True).values
    relevance = fit_relevance(
        Ranking.of(found, sample, population), held_out, refinement.grades, trust.sees(), trust.abundance.log_odds
    )
    chances = relevance.probability(others)
    grades = np.asarray(refinement.grades, dtype=np.float64)
    doubt = float(np.minimum(grades, 1 - grades).mean())
    step = own_grade * (1 - 2 * doubt)
    steps = step * rarity(float(grades.mean())), step
    gains = expected_gains((fitted + moved).numpy(), grades, others.numpy(), chances, left, steps, doubt, limit)
    best = np.argsort(-gains, kind="stable")[:count]
    return sorted(new[at] for at in best if gains[at] >= WORTH)


def spread_out(
    feedback: Feedback, refinement: Refinement, ranking: Found, new: Sequence[int], count: int, ranks: bool
) -> list[int]:
    """Choose what to grade where plenty is relevant. See `next_to_grade`.

    :param feedback: what has been graded.
    :param refinement: how the query moved by it.
    :param ranking: the refined ranking.
    :param new: the places in it of documents that have not been graded.
    :param count: how many to choose.
    :param ranks: whether the ranking's scores are no similarities.
    :return: their places in the ranking.
    """
    grades = torch.nn.functional.pad(torch.from_numpy(refinement.grades), (0, len(refinement.background)))
    if ranks:
        known = standing(ranking, [*feedback.ids, *[None] * len(refinement.background)])
        candidates = standing(ranking, [ranking.ids[at] for at in new])
    else:
        documents = torch.from_numpy(np.concatenate([refinement.documents, refinement.background]))
        known = similarity(torch.from_numpy(refinement.vector), documents, refinement.metric)
        candidates = similarity_of_score(torch.tensor([ranking.scores[at] for at in new]), refinement.metric)
    return [new[place] for place in next_to_grade(known, grades, candidates, count)]
