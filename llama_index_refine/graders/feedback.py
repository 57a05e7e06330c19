"""Grades that people gave: thumbs, clicks, judgements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llama_index.core.schema import BaseNode, QueryBundle, QueryType

from llama_index_refine.graders.base import BaseGrader, Grades, on_scale
from llama_index_refine.graders.combining import Caller, CombiningGrader, spread_of, valid
from llama_index_refine.ids import same_id
from llama_index_refine.images.identity import query_identity

Judgements = Mapping[str, Mapping[str, float]]
FindJudgements = Callable[[QueryBundle], Mapping[str, float]]


class FeedbackGrader(CombiningGrader):
    """Grades nodes that people have judged for this query, and leaves the rest to another teacher.

    What people say stands, so by itself it is followed in full from the first query. A teacher behind it has to prove
    itself, as by itself.

    :param judgements: query text -> node id -> relevance in [0, 1]; or a function from the query to node id ->
        relevance, which may look them up anywhere. Queries are compared without regard to case and spacing, ids that
        are UUIDs without regard to case and hyphens. Judgements of a query with an image go through `judge`.
    :param teacher: grades the other nodes; None leaves them without a grade.
    :raises ValueError: a judgement outside [0, 1].
    """

    def __init__(
        self, judgements: Judgements | FindJudgements | None = None, teacher: BaseGrader | None = None
    ) -> None:
        super().__init__({"": teacher} if teacher is not None else {})
        self._teacher = teacher
        self._given: dict[tuple[str, str], dict[str, float]] = {}
        self._find: FindJudgements = self._lookup
        if callable(judgements):
            self._find = judgements
        else:
            for query, by_node in (judgements or {}).items():
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
        self._given.setdefault(_folded(bundle), {})[same_id(node_id)] = judged

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode], caller: Caller) -> Grades:
        judged = {same_id(node_id): grade for node_id, grade in self._find(query).items()}
        values = valid([judged.get(same_id(node.node_id)) for node in nodes], len(nodes))
        spreads: list[float | None] = [None] * len(nodes)
        if self._teacher is not None:
            rest = [place for place, grade in enumerate(values) if grade is None]
            grades = await caller.ask(self._teacher, query, [nodes[place] for place in rest])
            for index, place in enumerate(rest):
                values[place], spreads[place] = grades[index], spread_of(grades, index)
        return Grades(values, spreads)

    def judged(self, query: QueryBundle) -> list[str]:
        """See `BaseGrader.judged`."""
        return list(dict.fromkeys([*self._find(query), *super().judged(query)]))

    def fingerprint(self) -> str:
        """See `BaseGrader.fingerprint`. People change their minds: cache the teacher, not this grader."""
        return f"{super().fingerprint()} {id(self)}"

    def memory_fingerprint(self) -> str:
        """See `BaseGrader.memory_fingerprint`: the teacher's, as people's grades are remembered as theirs."""
        return self._teacher.memory_fingerprint() if self._teacher is not None else "people"

    def _lookup(self, query: QueryBundle) -> Mapping[str, float]:
        return self._given.get(_folded(query), {})


def _folded(query: QueryBundle) -> tuple[str, str]:
    return " ".join(query.query_str.casefold().split()), query_identity(query)
