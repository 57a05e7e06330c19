"""What is remembered of a query, and how it is written: as plain JSON, so that any store can hold it."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from llama_index.core.schema import BaseNode, QueryBundle
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, FiniteFloat, PlainSerializer, PlainValidator, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from llama_index_refine.ids import key_of, same_id
from llama_index_refine.images.identity import identity_of

Vector = NDArray[np.float32]


def _read(vector: Any) -> Vector:
    if isinstance(vector, str):
        vector = np.frombuffer(base64.b64decode(vector, validate=True), dtype="<f4").astype(np.float32)
        if not len(vector) or not np.isfinite(vector).all():
            raise ValueError("no vector")
    if not isinstance(vector, np.ndarray):
        raise ValueError("no vector")
    return vector


def _written(vector: Vector) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


# What comes from a store may be anything.
@validated(frozen=True, config=ConfigDict(allow_inf_nan=False))
class RememberedGrade:
    """One grade of one node, for one query.

    :param node_id: the node.
    :param content: a hash of what was graded, text, metadata and images.
    :param grade: its relevance in [0, 1].
    :param spread: one standard deviation of the grade, None where it is not known.
    :param people: whether a person gave it, and not the teacher.
    :param time: when, in seconds since 1970.
    :param user: for whom it was given, or who judged; None where nobody said.
    :param doc_id: the document that the node is part of, None where it is of none.
    """

    node_id: str
    content: str
    grade: Annotated[float, Field(ge=0, le=1)]
    spread: Annotated[float, Field(ge=0)] | None = None
    people: bool = False
    time: float = 0.0
    user: str | None = None
    doc_id: str | None = None


@validated(frozen=True)
class RememberedQuery:
    """One query, with all that was said about its nodes.

    :param scope: what its grades hold for: collection, models, filter, as a hash that says nothing of them.
    :param query_str: its text.
    :param vector: (d,) its vector.
    :param grades: of its nodes; several of one node where several have judged it.
    :param time: when it was last asked, in seconds since 1970.
    :param asked: how many nodes the teacher might have graded; 0 where it was not asked.
    :param seen: nodes that stood at the top when it was asked, graded or left ungraded on purpose; others are news.
    :param filters: the filter that it was searched under, as JSON; empty for none.
    :param follows: how the teacher's grades follow the similarity to it, as a correlation in [-1, 1].
    """

    scope: str
    query_str: str
    vector: Annotated[Vector, PlainValidator(_read), PlainSerializer(_written)]
    grades: tuple[RememberedGrade, ...]
    time: FiniteFloat
    asked: int = 0
    seen: tuple[str, ...] = ()
    filters: str = ""
    follows: float = 0.0

    @property
    def judged(self) -> bool:
        """Whether people have judged any of its nodes."""
        return any(grade.people for grade in self.grades)

    def without(self, forgotten: Sequence[RememberedGrade]) -> RememberedQuery:
        """Return the same without some grades. What they led to is forgotten with them."""
        kept = tuple(grade for grade in self.grades if grade not in forgotten)
        return replace(self, grades=kept, asked=0, seen=())

    def to_dict(self) -> dict[str, Any]:
        """Write it in what JSON knows."""
        written: dict[str, Any] = _query.dump_python(self, mode="json")
        return written

    @classmethod
    def from_dict(cls, record: Any) -> RememberedQuery | None:
        """Read what `to_dict` wrote.

        :param record: what a store returned.
        :return: the query, None for anything else.
        """
        try:
            # Version 0.1.0 wrote what was seen in two parts.
            seen = record["seen"] if "seen" in record else [*record["ranking"], *record["passed"]]
            return _query.validate_python({**record, "seen": seen})
        except (KeyError, TypeError, ValueError):
            return None


_query = TypeAdapter(RememberedQuery)


def merged(before: RememberedQuery, now: RememberedQuery, gone: Collection[str] = ()) -> RememberedQuery:
    """Put a query's new grades to those that are kept.

    :param before: what is kept.
    :param now: what was learnt; it knows which of the teacher's earlier grades still hold.
    :param gone: nodes that are there no more, whose grades are dropped.
    :return: both: the teacher's grades as of now, and each person's latest judgement of each node.
    """
    said = now.grades if now.asked else before.grades
    # What was kept comes before what was graded again.
    teachers = {grade.node_id: grade for grade in said if not grade.people}
    kept = [grade for grade in before.grades if grade.node_id not in gone]
    people = {
        (grade.node_id, grade.user): grade
        for grade in sorted((*kept, *now.grades), key=lambda grade: grade.time)
        if grade.people
    }
    if not now.asked:
        now = replace(now, asked=before.asked, seen=before.seen, follows=before.follows)
    return replace(now, grades=(*teachers.values(), *people.values()))


def opinions(grades: Sequence[RememberedGrade]) -> dict[str, RememberedGrade]:
    """Weigh the grades of each node: people's mean where any have judged it, else the teacher's latest.

    :param grades: grades for one query.
    :return: by node id, one grade that stands for all that were heard.
    """
    found: dict[str, RememberedGrade] = {}
    for node_id in dict.fromkeys(grade.node_id for grade in grades):
        all_of_it = [grade for grade in grades if grade.node_id == node_id]
        latest = max(all_of_it, key=lambda grade: (grade.people, grade.time))
        if latest.people:
            heard = [grade.grade for grade in all_of_it if grade.people and grade.content == latest.content]
            latest = replace(latest, grade=min(1.0, sum(heard) / len(heard)), spread=None)
        found[node_id] = latest
    return found


def content_of(node: BaseNode) -> str:
    """Return a hash of what a teacher is shown of a node."""
    return key_of(*identity_of(QueryBundle(""), node))


def grade_of(node: BaseNode, grade: float, **fields: Any) -> RememberedGrade:
    """Write down a grade.

    :param node: the node.
    :param grade: its relevance in [0, 1].
    :param fields: the other fields of `RememberedGrade`.
    :return: the grade.
    """
    return RememberedGrade(same_id(node.node_id), content_of(node), float(grade), doc_id=node.ref_doc_id, **fields)


def vector_in(record: Any) -> Vector | None:
    """Read the vector of what `RememberedQuery.to_dict` wrote, and nothing else; None where there is none."""
    try:
        return _read(record["vector"])
    except (KeyError, TypeError, ValueError):
        return None
