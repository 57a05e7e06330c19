"""The final order: the refined similarity, corrected by the grades that are in hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from llama_index.core.schema import NodeWithScore
from torch import Tensor

from llama_index_refine.collection import Found
from llama_index_refine.geometry import Metric, score_of_similarity, similarity_of_score

# A grade of 1 is worth this many nats more than one of 0.5.
GRADE_WORTH = 0.75


def bonus(grades: Tensor, tau: float, trust: float) -> Tensor:
    """Return what each grade adds to its document's similarity.

    :param grades: (K,) in [0, 1].
    :param tau: the similarity that counts as one nat.
    :param trust: in [0, 1].
    :return: (K,)
    """
    return trust * GRADE_WORTH * tau * (2 * grades - 1)


def fuse(
    found: Found, graded: Found, similarities: Tensor, bonus: Tensor, metric: Metric, limit: int
) -> list[NodeWithScore]:
    """Move graded documents up or down by their bonus and merge them with the second search.

    :param found: what the second search found.
    :param graded: the graded documents, with their nodes.
    :param similarities: (K,) of the graded documents to the refined vector.
    :param bonus: (K,) what each grade adds to the similarity.
    :param metric: the collection's distance, which says how a score is read.
    :param limit: the most nodes.
    :return: nodes, best first, with scores as Qdrant gives them for this distance.
    """
    moved = dict(zip(graded.ids, (similarities + bonus).tolist(), strict=True))
    others = similarity_of_score(torch.tensor(found.scores, dtype=torch.float32), metric).tolist()
    pool = {i: (moved.get(i, own), node) for i, own, node in zip(found.ids, others, found.nodes, strict=True)}
    pool |= {i: (moved[i], node) for i, node in zip(graded.ids, graded.nodes, strict=True) if i not in pool}
    ranked = sorted(pool.values(), key=lambda entry: -entry[0])[:limit]
    scores: Sequence[float] = score_of_similarity(torch.tensor([value for value, _ in ranked]), metric).tolist()
    return [NodeWithScore(node=node, score=score) for score, (_, node) in zip(scores, ranked, strict=True)]
