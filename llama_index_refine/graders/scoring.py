"""What the scores of rerankers mean as grades."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.base import Grades
from llama_index_refine.locks import Lock

Scale = tuple[float, float] | Literal["logit", "rank"] | Callable[[float], float]

UNIT = (0.0, 1.0)

logger = logging.getLogger(__name__)


class Scoring:
    """Turns a reranker's scores into grades, by the one scale that it scores on.

    Where only the order counts the grades go from 1 for the first in equal steps to 0 for the last. Nodes that come
    later for the same query are ordered together with those before, and graded between their neighbours.

    :param name: the reranker's name.
    :param scale: (worst, best) for even steps between them, "logit" for 1 / (1 + exp(-score)), "rank" for the order
        alone, or a function from a score to [0, 1]. None for what the first scores decide, for good: (0, 1) where all
        lie there, else "logit", and "rank" where there are none.
    :raises ValueError: another scale.
    """

    def __init__(self, name: str, scale: Scale | None) -> None:
        self._name = name
        self._scale = None if scale is None else _checked(scale)
        self._guessed = scale is None
        self._lock = Lock()

    def decides(self) -> object:
        """Say what decides the grades beside the scores."""
        return "by its scores" if self._guessed else self._scale

    def shown(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[BaseNode]:
        """Put the nodes behind those that this query has had ordered before, where only the order counts."""
        new = {node.node_id for node in nodes}
        before = self._order(query).nodes.items() if self._scale == "rank" else ()
        return [*(node for node_id, node in before if node_id not in new), *nodes]

    def grades(self, query: QueryBundle, nodes: Sequence[BaseNode], scores: Mapping[str, float | None]) -> Grades:
        """Grade nodes.

        :param query: the query.
        :param nodes: the nodes to grade.
        :param scores: the scores of all that were shown, the best node first, by their ids; None for no score.
        :return: one grade a node; 0 for those that are not in the scores, None for those without one among others.
        """
        given = [score for score in scores.values() if score is not None]
        scale = self._scale or self._decide(given, bool(scores))
        if self._guessed and scale == UNIT and any(not 0 <= score <= 1 for score in given):
            current_account().note(f'{self._name} does not score in [0, 1]: pass scale="logit"')
        if scale == "rank":
            return Grades(self._order(query).place(nodes, list(scores)))
        grades = {node_id: None if score is None else _grade_on(scale, score) for node_id, score in scores.items()}
        return Grades(grades.get(node.node_id, 0.0) for node in nodes)

    def _order(self, query: QueryBundle) -> _Order:
        order: _Order = current_account().kept.setdefault((id(self), query.query_str, query.image_path), _Order())
        return order

    def _decide(self, given: Sequence[float], ranked: bool) -> Scale:
        with self._lock:
            if self._scale is None and ranked:
                unit = all(0 <= score <= 1 for score in given)
                self._scale = "rank" if not given else UNIT if unit else "logit"
                logger.info('%s is taken to score on %r; pass scale="..." if it does not', self._name, self._scale)
            return self._scale or "rank"


class _Order:
    """What one query has had ordered so far, and the grades that came of it."""

    def __init__(self) -> None:
        self.nodes: dict[str, BaseNode] = {}
        self._grades: dict[str, float] = {}

    def place(self, nodes: Sequence[BaseNode], order: Sequence[str]) -> list[float]:
        """Grade nodes by their place in an order of all that was seen; what has a grade keeps it.

        Where nothing has one the grades go from 1 to 0 in equal steps. Others lie evenly between their neighbours'.
        """
        known = {at: self._grades[name] for at, name in enumerate(order) if name in self._grades}
        places, grades = zip(
            *({-1: 1.0, **known} if known else {0: 1.0, max(len(order) - 1, 1): 0.0}).items(), strict=True
        )
        self._grades |= dict(zip(order, np.interp(range(len(order)), places, grades).tolist(), strict=True))
        self.nodes |= {node.node_id: node for node in nodes}
        return [self._grades.get(node.node_id, 0.0) for node in nodes]


def _checked(scale: Scale) -> Scale:
    """Return a scale as it is. :raises ValueError: it is none."""
    ends = scale if isinstance(scale, tuple) and len(scale) == 2 else (0.0, 0.0)
    rises = all(isinstance(end, (int, float)) for end in ends) and -math.inf < ends[0] < ends[1] < math.inf
    if rises or callable(scale) or scale in ("logit", "rank"):
        return scale
    raise ValueError(
        f'scale must be (worst, best) with worst < best, "logit", "rank" or a function of a score; got {scale!r}'
    )


def _grade_on(scale: Scale, score: float) -> float:
    """Turn a score into a grade, never a better one for a worse score.

    :param scale: what the score is on, but not "rank".
    :param score: the score, infinite ones too.
    :return: the grade in [0, 1].
    """
    if callable(scale):
        grade = scale(score)
    elif isinstance(scale, tuple):
        grade = (score - scale[0]) / (scale[1] - scale[0])
    else:
        grade = 1 / (1 + math.exp(-max(-500.0, min(500.0, score))))
    return min(1.0, max(0.0, grade))
