"""Grades that people gave: thumbs, clicks, judgements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llama_index.core.schema import BaseNode, QueryBundle, QueryType

from llama_index_refine.graders.base import BaseGrader, Grades, on_scale
from llama_index_refine.graders.combining import CombiningGrader, complete, valid
from llama_index_refine.ids import same_id, same_text
from llama_index_refine.images.identity import query_identity
from llama_index_refine.locks import Lock

Judgements = Mapping[str, Mapping[str, float]]
FindJudgements = Callable[[QueryBundle], Mapping[str, float]]


class FeedbackGrader(CombiningGrader):
    """Grades nodes that people have judged for this query, and leaves the rest to another teacher.

    Without a teacher it is followed in full from the first query, because it holds what people say. With one, the
    teacher's record decides, as for the teacher alone.

    :param judgements: query text -> node id -> relevance in [0, 1]; or a function from the query to node id ->
        relevance, which may look them up anywhere. Queries are compared without regard to case, spacing and how an
        accent is written, ids that are UUIDs without regard to case and hyphens. Judgements of a query with an image
        go through `judge`.
    :param teacher: grades the other nodes; None leaves them without a grade.
    :raises ValueError: a judgement outside [0, 1].
    """

    def __init__(
        self, judgements: Judgements | FindJudgements | None = None, teacher: BaseGrader | None = None
    ) -> None:
        super().__init__({"": teacher} if teacher is not None else {})
        self._given: dict[tuple[str, str], dict[str, float]] = {}
        self._lock = Lock()
        self._look_up = judgements if callable(judgements) else None
        for query, by_node in ({} if callable(judgements) else judgements or {}).items():
            for node_id, grade in by_node.items():
                self.judge(query, node_id, grade)

    def judge(self, query: QueryType, node_id: str, grade: float) -> None:
        """Remember one judgement; a later one of the same node replaces it.

        :param query: the query, or its text; queries with different images are different.
        :param node_id: the node's id.
        :param grade: its relevance in [0, 1]: 1 for a thumb up, 0 for a thumb down.
        :raises ValueError: grade outside [0, 1].
        """
        if (judged := on_scale(grade)) is None:
            raise ValueError(f"grade must be in [0, 1]; got {grade} for node {node_id}")
        bundle = QueryBundle(query) if isinstance(query, str) else query
        with self._lock:
            self._given.setdefault(_key(bundle), {})[same_id(node_id)] = judged

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        judged = {same_id(node_id): grade for node_id, grade in self._find(query).items()}
        grades = valid([judged.get(same_id(node.node_id)) for node in nodes], len(nodes))
        rest = [place for place, grade in enumerate(grades) if grade is None]
        for teacher in self._teachers.values():
            await complete(grades, rest, teacher, query, nodes)
        return grades

    def judged(self, query: QueryBundle) -> list[str]:
        """See `BaseGrader.judged`."""
        return list(dict.fromkeys([*self._find(query), *super().judged(query)]))

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`. People change their minds: cache the teacher, not this grader."""
        return [*super().decides(), id(self)]

    def memory_fingerprint(self) -> str:
        """See `BaseGrader.memory_fingerprint`: the teacher's, as people's grades are remembered as theirs."""
        return next((teacher.memory_fingerprint() for teacher in self._teachers.values()), "people")

    def _find(self, query: QueryBundle) -> Mapping[str, float]:
        if self._look_up is not None:
            return self._look_up(query)
        # A copy: others may judge while this is read.
        with self._lock:
            return dict(self._given.get(_key(query), {}))


def _key(query: QueryBundle) -> tuple[str, str]:
    return same_text(query.query_str), query_identity(query)
