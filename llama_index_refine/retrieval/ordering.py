"""The documents in the order in which they would be selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from llama_index_refine.refining.relevance import Ranking, Relevance
from llama_index_refine.retrieval.relevance import RELEVANT, Evidence, probabilities_of
from llama_index_refine.selecting.cut import Outlook, outlook
from llama_index_refine.similarity import Metric, score_of_similarity


@dataclass(frozen=True)
class Ordered:
    """The documents in the order in which they would be selected.

    :param names: ids of graded nodes, or places in the ranking.
    :param probabilities: (n,) falling, unless graded ones are put first.
    :param outlook: what is expected of every cut.
    """

    names: list[str | int]
    probabilities: NDArray[np.float64]
    outlook: Outlook


def in_order(evidence: Evidence, relevance: Relevance, graded_first: bool = False) -> Ordered:
    """Order the documents by their probability; or those found relevant first, and those found irrelevant never.

    :param evidence: what is known of them.
    :param relevance: the curves.
    :param graded_first: whether the grades alone decide on the graded ones.
    :return: the documents in order.
    """
    judged = {name: one for name, one in evidence.judged.items() if one.admitted}
    if graded_first:
        judged = {name: one for name, one in judged.items() if one.grade >= RELEVANT}
    places = evidence.open_places()
    similarities = np.asarray(evidence.similarities)[places]
    known = list(judged.values())
    probabilities = probabilities_of(
        relevance, [*known, *[None] * len(places)], np.r_[np.zeros(len(known)), similarities]
    )
    certain = np.r_[probabilities[: len(known)], np.full(len(places), np.nan)]
    names: list[str | int] = [*judged, *places.tolist()]
    order = np.arange(len(names))
    if graded_first:
        certain[: len(known)] = 1.0
    else:
        order = np.argsort(-probabilities, kind="stable")
    values = np.r_[np.full(len(known), np.nan), similarities]
    rest = evidence.ranking()
    below = Ranking(rest.similarities[len(evidence.ids) :], rest.weights[len(evidence.ids) :])
    view = outlook(relevance, values[order], certain[order], below)
    return Ordered([names[at] for at in order], probabilities[order], view)


def threshold_of(evidence: Evidence, names: Sequence[str | int], metric: Metric) -> float:
    """Return the score half way between the last ungraded document that is selected and the next that is not.

    :param evidence: what is known of the documents.
    :param names: what is selected.
    :param metric: the collection's distance.
    :return: Qdrant's score.
    """
    places = evidence.open_places()
    count = sum(isinstance(name, int) for name in names)
    values = np.asarray(evidence.similarities)[places]
    if not len(values):
        return float("nan")
    ends = values[[max(count - 1, 0), min(count, len(values) - 1)]]
    middle = float(np.nextafter(values[0], np.inf)) if not count else float(ends.mean())
    if count == len(values):
        middle = float(np.nextafter(values[-1], -np.inf))
    return float(score_of_similarity(torch.tensor([middle], dtype=torch.float64), metric)[0])


def relevant_in(evidence: Evidence) -> int:
    """Count the graded documents that were found relevant and may be returned."""
    return sum(one.grade >= RELEVANT and one.admitted for one in evidence.judged.values())
