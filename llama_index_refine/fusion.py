"""The final order: the refined similarity, corrected by the grades that are in hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from llama_index.core.schema import NodeWithScore
from torch import Tensor

from llama_index_refine.collection import Found
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
