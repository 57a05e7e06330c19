"""The final order: the refined similarity, corrected by the grades that are in hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llama_index_refine.qdrant.points import Found, PointId
from llama_index_refine.similarity import Metric, passes, score_of_similarity, similarity_of_score

Ranking = list[tuple[PointId, float]]


def admitted(found: Found, graded: Found, near: Sequence[bool]) -> list[int]:
    """Say which graded documents the second search may return: those it found, and others that pass its threshold.

    :param found: what the second search found.
    :param graded: the graded documents.
    :param near: (K,) which of them pass.
    :return: their places in `graded`.
    """
    there = set(found.ids)
    return [at for at, point in enumerate(graded.ids) if near[at] or point in there]


def levelled(found: Found, graded: Found, own: Tensor) -> Tensor:
    """Return the scores of graded documents as Qdrant has them, where rows say only about what Qdrant will.

    :param found: what the second search found.
    :param graded: the graded documents.
    :param own: (K,) the similarity of each one's row to the refined query.
    :return: (K,) the score; of those that were not found, their own, but no better than the last of those found.
    """
    scores = dict(zip(found.ids, found.scores, strict=True))
    least = min(found.scores, default=float("inf"))
    values = [scores.get(point, min(mine, least)) for point, mine in zip(graded.ids, own.tolist(), strict=True)]
    return torch.tensor(values, dtype=own.dtype)


def fuse(
    found: Found, graded: Found, similarities: Tensor, metric: Metric, limit: int, threshold: float | None = None
) -> Ranking:
    """Put the graded documents where their grades place them among those that the second search found.

    :param found: what the second search found.
    :param graded: the graded documents, with their nodes.
    :param similarities: (K,) of the graded documents, with their own grades weighed in.
    :param metric: the collection's distance, which says how a score is read.
    :param limit: the most nodes.
    :param threshold: leave out what scores worse.
    :return: points, best first, with scores as Qdrant gives them for this distance.
    """
    moved = dict(zip(graded.ids, similarities.tolist(), strict=True))
    others = similarity_of_score(torch.tensor(found.scores, dtype=torch.float32), metric).tolist()
    ranked = _ranked(dict(zip(found.ids, others, strict=True)) | moved, limit)
    scores = score_of_similarity(torch.tensor([value for _, value in ranked]), metric)
    kept = int(passes(scores, threshold, metric).sum())
    return [(point, score) for (point, _), score in zip(ranked[:kept], scores[:kept].tolist(), strict=True)]


def standing(ranking: Found, ids: Sequence[PointId | None]) -> Tensor:
    """Say where documents stand in a ranking whose scores are not similarities, in nats.

    A fused score says nothing about how relevant a document is, only its place does. Taking the n-th of a ranking to be
    relevant with a probability that falls like 1/n, as Zipf's law has it, minus log n counts nats as a similarity over
    tau does. The 2 is the constant of Qdrant's reciprocal rank fusion: it keeps the first place from standing out.

    :param ranking: what a fused search found.
    :param ids: documents; those that it did not find, and None, stand behind its last.
    :return: (n,)
    """
    place = {point: at for at, point in enumerate(ranking.ids)}
    last = len(place)
    return -torch.tensor([2 + (last if i is None else place.get(i, last)) for i in ids], dtype=torch.float32).log()


def fuse_ranked(found: Found, graded: Found, gains: Tensor, limit: int) -> Ranking:
    """Do what `fuse` does for a fused search: move graded documents up or down from their places.

    :param found: what the second search found.
    :param graded: the graded documents, with their nodes.
    :param gains: (K,) by how much their grades move them, in nats.
    :param limit: the most nodes.
    :return: points, best first, each with the score that Qdrant gave to the one in its place.
    """
    moved = dict(zip(graded.ids, (standing(found, graded.ids) + gains).tolist(), strict=True))
    places = dict(zip(found.ids, standing(found, found.ids).tolist(), strict=True))
    ranked = _ranked(places | moved, limit)
    scores = [*found.scores, *[found.scores[-1] if found.scores else 0.0] * len(ranked)]
    return [(point, score) for (point, _), score in zip(ranked, scores, strict=False)]


def _ranked(values: dict[PointId, float], limit: int) -> Ranking:
    return sorted(values.items(), key=lambda entry: -entry[1])[:limit]
