"""The final order: the refined similarity, corrected by the grades that are in hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llama_index_refine.qdrant.points import Found, PointId
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.similarity import passes, score_of_similarity, similarity, similarity_of_score

# A document that moves by less, in nats, has not moved.
UNMOVED = 1e-3


def place(
    feedback: Feedback, refinement: Refinement, query: Query, found: Found, before: Found, limit: int
) -> list[tuple[PointId, float]]:
    """Put the graded documents where their grades place them among those that the second search found.

    What the first searches found with its vectors is compared too: an index that is not exact may miss it.

    :param feedback: what was graded.
    :param refinement: how the query moved.
    :param query: what the second search was for.
    :param found: what it found.
    :param before: what the first search found.
    :param limit: the most documents.
    :return: points, best first, with scores that can be compared with those of the first search.
    """
    view, row = feedback.view, np.asarray(refinement.vector)
    own = similarity(torch.as_tensor(row), torch.as_tensor(refinement.documents), view.metric)
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
    admitted, there = view.passes(row, torch.as_tensor(refinement.documents), query.threshold), {*found.ids}
    for point, value, inside in zip(feedback.ids, graded.tolist(), admitted, strict=True):
        values[point] = value if inside or point in there else -math.inf
    admitted_ones = [(point, value) for point, value in values.items() if value > -math.inf]
    ranked = sorted(admitted_ones, key=lambda entry: -entry[1])
    kept = feedback.grouping.first([feedback.groups.get(point) for point, _ in ranked])
    ranked = [ranked[at] for at in kept[:limit]]
    similarities = torch.tensor([value for _, value in ranked], dtype=torch.float32)
    if not query.fuses:
        near = passes(score_of_similarity(similarities, view.metric), query.threshold, view.metric)
        ranked, similarities = ranked[: int(near.sum())], similarities[near]
    scores = view.scores(row, similarities)
    # Fused scores say places only: each place has the first search's score of that place.
    values_of = before.scores if scores is None else scores.tolist()
    return [(point, values_of[min(at, len(values_of) - 1)]) for at, (point, _) in enumerate(ranked)]


def unmoved(feedback: Feedback, refinement: Refinement, query: Query) -> bool:
    """Say whether neither the query nor any graded document has moved, so that the first search stands."""
    if query is not feedback.first:
        return False
    row, documents = torch.as_tensor(refinement.vector), torch.as_tensor(refinement.documents)
    moved = torch.as_tensor(refinement.fused) - similarity(row, documents, feedback.view.metric)
    return bool((moved.abs() <= UNMOVED * refinement.tau).all())


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


def standing(ranking: Found, ids: Sequence[PointId | None]) -> Tensor:
    """Say where documents stand in a ranking whose scores are not similarities, in nats.

    A fused score says nothing about how relevant a document is, only its place does. Taking the n-th of a ranking to be
    relevant with a probability that falls like 1/n, as Zipf's law has it, minus log n counts nats as a similarity over
    tau does. The 2 is the constant of Qdrant's reciprocal rank fusion: it keeps the first place from standing out.

    :param ranking: what a fused search found.
    :param ids: documents; those that it did not find, and None, stand behind its last.
    :return: (n,)
    """
    place_of = {point: at for at, point in enumerate(ranking.ids)}
    last = len(place_of)
    places = [2 + (last if point is None else place_of.get(point, last)) for point in ids]
    return -torch.tensor(places, dtype=torch.float32).log()
