"""The final order: the refined similarity, corrected by the grades that are in hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from llama_index.core.schema import NodeWithScore
from torch import Tensor

from llama_index_refine.collection import Found, PointId
from llama_index_refine.geometry import Metric, score_of_similarity, similarity_of_score


def fuse(found: Found, graded: Found, similarities: Tensor, metric: Metric, limit: int) -> list[NodeWithScore]:
    """Put the graded documents where their grades place them among those that the second search found.

    :param found: what the second search found.
    :param graded: the graded documents, with their nodes.
    :param similarities: (K,) of the graded documents, with their own grades weighed in.
    :param metric: the collection's distance, which says how a score is read.
    :param limit: the most nodes.
    :return: nodes, best first, with scores as Qdrant gives them for this distance.
    """
    moved = dict(zip(graded.ids, similarities.tolist(), strict=True))
    others = similarity_of_score(torch.tensor(found.scores, dtype=torch.float32), metric).tolist()
    pool = {i: (moved.get(i, own), node) for i, own, node in zip(found.ids, others, found.nodes, strict=True)}
    pool |= {i: (moved[i], node) for i, node in zip(graded.ids, graded.nodes, strict=True) if i not in pool}
    ranked = sorted(pool.values(), key=lambda entry: -entry[0])[:limit]
    scores: Sequence[float] = score_of_similarity(torch.tensor([value for value, _ in ranked]), metric).tolist()
    return [NodeWithScore(node=node, score=score) for score, (_, node) in zip(scores, ranked, strict=True)]


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


def fuse_ranked(found: Found, graded: Found, gains: Tensor, limit: int) -> list[NodeWithScore]:
    """Do what `fuse` does for a fused search: move graded documents up or down from their places.

    :param found: what the second search found.
    :param graded: the graded documents, with their nodes.
    :param gains: (K,) by how much their grades move them, in nats.
    :param limit: the most nodes.
    :return: nodes, best first, each with the score that Qdrant gave to the one in its place.
    """
    pool = dict(zip(found.ids, zip(standing(found, found.ids).tolist(), found.nodes, strict=True), strict=True))
    moved = (standing(found, graded.ids) + gains).tolist()
    pool |= {i: (value, node) for i, value, node in zip(graded.ids, moved, graded.nodes, strict=True)}
    ranked = sorted(pool.values(), key=lambda entry: -entry[0])[:limit]
    scores = [*found.scores, *[found.scores[-1] if found.scores else 0.0] * len(ranked)]
    return [NodeWithScore(node=node, score=score) for score, (_, node) in zip(scores, ranked, strict=False)]
