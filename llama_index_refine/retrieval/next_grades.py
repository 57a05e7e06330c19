"""What is graded next, and whether that is worth its calls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from llama_index_refine.qdrant.points import Found
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.allocation import WORTH, expected_gains
from llama_index_refine.refining.refiner import rarity
from llama_index_refine.refining.trust import Teacher
from llama_index_refine.retrieval.chances import Chances
from llama_index_refine.retrieval.feedback import Feedback

# How far down the refined ranking is looked. Ids and scores of that many points are some 15 kB; results deeper down
# concern few users, and a handful of grades cannot chart them.
DEPTH = 300


@dataclass(frozen=True)
class NextGrades:
    """Chooses documents of a refined ranking.

    :param feedback: what has been graded.
    :param refinement: how the query moved by it.
    :param query: what is searched for.
    :param count: how many documents to choose at most.
    :param limit: how many documents are returned.
    :param population: how many documents there are, as far as that is known.
    :param teacher: what is known of the teacher.
    :param own_grade: what a certain grade adds to its document's place, in nats; None in a list longer than what may be
        graded.
    :param saves: whether grades that are not worth their call are not asked for.
    """

    feedback: Feedback
    refinement: Refinement
    query: Query
    count: int
    limit: int
    population: int
    teacher: Teacher
    own_grade: float | None
    saves: bool

    @property
    def depth(self) -> int:
        """How deep a ranking there has to be to choose from; to return, where there is nothing to choose."""
        if not self.count or self.feedback.settled:
            return self.limit
        ungraded = len(self.feedback.shown) - len(self.feedback.ids)
        return max(self.count, min(self.limit, DEPTH)) + ungraded

    def choose(self, ranking: Found) -> list[int]:
        """Choose what is graded next: what would improve the list most.

        The first of the ranking are often so surely relevant that their grades would change nothing. A long list is
        improved by what its grades teach of the others, and that is most where relevance is most in doubt: uncertainty
        sampling (Lewis and Gale, A sequential algorithm for training text classifiers (1994)).

        :param ranking: the refined ranking, as deep as `depth`.
        :return: places in it, at most `count`.
        """
        new = self.feedback.new(ranking)
        if not self.count or not new:
            return []
        if self.feedback.settled:
            # What stood just behind the last one that was seen is no news.
            others = [at for at, point in enumerate(ranking.ids) if point not in self.feedback.shown]
            return sorted({*new} & {*others[: self.limit // 2]})[: self.count]
        # Some searches bring more than was asked for.
        new = new[: self.depth]
        worth = self._worth(ranking, new)
        best = np.argsort(-worth, kind="stable")[: self.count]
        return sorted(new[at] for at in best if worth[at] >= WORTH or not self.saves)

    @property
    def spares(self) -> bool:
        """Whether grades that are not chosen are saved, as they are not worth their call."""
        return self.saves and self.count > 0 and not self.feedback.settled

    def _worth(self, ranking: Found, new: list[int]) -> np.ndarray:
        """Say how much each of some documents' grades is worth."""
        refinement = self.refinement
        chances = Chances.of(self.feedback, refinement, self.query, ranking, self.population, self.teacher)
        places = chances.found[new]
        likely = chances.model.probability(places)
        if self.own_grade is None:
            return likely * (1 - likely)
        steps = self.own_grade * rarity(float(chances.grades.mean())), self.own_grade
        weighed_in = torch.from_numpy(refinement.fused - refinement.held_out) / refinement.tau
        return expected_gains(chances.held_out + weighed_in, chances.grades, places, likely, steps, self.limit)
