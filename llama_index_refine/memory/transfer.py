"""What the grades of similar queries are worth for a new one, and how far they may lead it.

Whether a similar query meant the same is not taken for granted. The new query's own first grades say it: where both
were graded, they agree, or the other query is left out. One agreement may be all there is, and the grades of a teacher
who is upside down agree with those for the topic next to its own; so what was graded relevant must not be farther from
the other query than what was not. What is left moves the query, at most so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama_index_refine.memory.remembered import RememberedGrade, RememberedQuery, opinions
from llama_index_refine.similarity import Metric

Vector = NDArray[np.float64]

# Similar queries looked at for each new one.
NEIGHBOURS = 8
# Cosines between queries, less what all vectors of a collection have in common: from the first on, a similar query may
# have meant the same, from the second on it nearly always has. The same for embeddings that crowd together and others.
MAYBE, SURELY = 0.4, 0.8
# However similar it is, it has to agree in something that was graded for both.
LEAST, MOST = 0.02, 0.75
# How often two grades of one document differ although the queries mean the same.
SLIPS = 0.15
# How often a document that is relevant to a query that meant something else is relevant all the same.
ELSEWHERE = 0.15
# Below this probability that it meant the same, a query is left out.
ENOUGH = 0.8
# A correlation of twenty grades with the similarity to their query that is one standard error below none. Good grades
# may have one near none, as later rounds look for relevant documents farther away.
AGAINST = -0.22
# Grades and similarities that differ by less are alike.
ALIKE = 1e-6
# A carried grade is believed less than one given for the query itself; a person's as much.
OF_TEACHER, OF_PEOPLE = 0.8, 1.0
# The most grades that are carried over.
CARRIED = 20
# How far carried grades may lead a query, in standard deviations of the background's similarity to it.
ASTRAY = 1.0


@dataclass(frozen=True)
class Carried:
    """A grade that a similar query lends.

    :param grade: relevance in [0, 1].
    :param belief: how far to believe it, in [0, 1], beside one of the query's own.
    :param contents: hashes of what was graded.
    """

    grade: float
    belief: float
    contents: frozenset[str]


def similarity_of(query: Vector, others: Sequence[RememberedQuery], documents: Vector) -> Vector:
    """Compare queries by what sets them apart, as embeddings may crowd together.

    :param query: (d,)
    :param others: remembered queries.
    :param documents: (N, d) a sample of the collection, whose mean direction is taken off.
    :return: (n,) cosines in [-1, 1].
    """
    middle = _unit(np.asarray(documents, dtype=np.float64)).mean(0)
    rows = np.stack([query, *(other.vector for other in others)]).astype(np.float64)
    rows = _unit(_unit(rows) - middle)
    cosines: Vector = rows[1:] @ rows[0]
    return cosines


def follows(grades: Vector, similarities: Vector) -> float:
    """Say how a query's grades follow the similarity to it.

    :param grades: (K,) in [0, 1].
    :param similarities: (K,) of the graded documents to the query as it was asked.
    :return: their correlation, in [-1, 1]; 1 where all are relevant alike, -1 where none is, which is no answer worth
        lending, and 0 where all are equally near.
    """
    if np.ptp(grades) < ALIKE:
        return 1.0 if len(grades) and grades[0] > ALIKE else -1.0
    if np.ptp(similarities) < ALIKE:
        return 0.0
    return float(np.clip(np.corrcoef(grades, similarities)[0, 1], -1, 1))


def meant_the_same(similarity: float, theirs: Mapping[str, float], own: Mapping[str, float]) -> float:
    """Say how likely a similar query meant the same, by Bayes' rule.

    If it did, two grades of a document agree but for slips. If not, what is relevant to the other query is rarely
    relevant to this one, and what is not says nothing.

    :param similarity: as of `similarity_of`.
    :param theirs: the other query's grades in [0, 1], by node id.
    :param own: the new query's.
    :return: the probability.
    """
    before = min(max((similarity - MAYBE) / (SURELY - MAYBE), LEAST), MOST)
    odds = before / (1 - before)
    share = min(max(float(np.mean(list(own.values()))), 0.05), 0.95) if own else 0.5
    for node_id, grade in own.items():
        if (other := theirs.get(node_id)) is not None:
            agree = other * grade + (1 - other) * (1 - grade)
            chance = other * ELSEWHERE + (1 - other) * share
            odds *= (agree * (1 - SLIPS) + (1 - agree) * SLIPS) / (grade * chance + (1 - grade) * (1 - chance))
    return odds / (1 + odds)


def carry(similar: Sequence[tuple[RememberedQuery, float]], own: Mapping[str, float]) -> dict[str, Carried]:
    """Take over grades of similar queries.

    :param similar: remembered queries, with the similarity to each, as of `similarity_of`.
    :param own: the new query's first grades in [0, 1], by node id.
    :return: at most CARRIED grades of other nodes, by node id, those that are believed most.
    """
    lent: dict[str, list[tuple[float, RememberedGrade]]] = {}
    for query, similarity in similar:
        # What people say needs no such witness.
        theirs = opinions([grade for grade in query.grades if grade.people or query.follows > AGAINST])
        share = meant_the_same(similarity, {node_id: one.grade for node_id, one in theirs.items()}, own)
        if share < ENOUGH:
            continue
        for node_id, opinion in theirs.items():
            if node_id not in own:
                lent.setdefault(node_id, []).append((share, opinion))
    carried = {node_id: _weighed(opinions_of_it) for node_id, opinions_of_it in lent.items()}
    return dict(sorted(carried.items(), key=lambda entry: -entry[1].belief)[:CARRIED])


def _weighed(lent: Sequence[tuple[float, RememberedGrade]]) -> Carried:
    """People's word replaces the teacher's."""
    people = any(opinion.people for _, opinion in lent)
    heard = [(share, opinion) for share, opinion in lent if opinion.people == people]
    total = sum(share for share, _ in heard)
    grade = sum(share * opinion.grade for share, opinion in heard) / total
    belief = (OF_PEOPLE if people else OF_TEACHER) * max(share for share, _ in heard)
    return Carried(min(1.0, grade), belief, frozenset(opinion.content for _, opinion in heard))


def led(own: Vector, towards: Vector, query: Vector, documents: Vector, metric: Metric) -> Vector:
    """Let carried grades lead a query, but not astray.

    With x where its own grades take the query q and y where all grades would, the query goes from x towards y until

        R |z - x| = ASTRAY sd(q.d)

    with sd the standard deviation over the background and R its root mean square distance from its mean. So no
    document's similarity changes, against the mean document's, by more than ASTRAY standard deviations for each R that
    the document lies from that mean. Under cosine all vectors have unit length, and the way is along the sphere.

    :param own: (d,) the query as its own grades take it.
    :param towards: (d,) as all grades would.
    :param query: (d,) the query before.
    :param documents: (N, d) the background, at least 2.
    :param metric: the collection's distance.
    :return: (d,) of the length of `own` under cosine.
    """
    length = 1.0
    if metric == "cosine":
        length = float(np.linalg.norm(own))
        own, towards, query, documents = _unit(own), _unit(towards), _unit(query), _unit(documents)
    centred = documents - documents.mean(0)
    radius = float(np.sqrt(np.square(centred).sum(1).mean()))
    farthest = ASTRAY * float((centred @ query).std()) / max(radius, 1e-12)
    move = towards - own
    size = float(np.linalg.norm(move))
    if size <= farthest:
        return length * towards
    if metric != "cosine":
        return own + farthest / size * move
    across = _unit(towards - float(own @ towards) * own)
    angle = 2 * np.arcsin(min(1.0, farthest / 2))
    turned: Vector = length * (np.cos(angle) * own + np.sin(angle) * across)
    return turned


def _unit(rows: Vector) -> Vector:
    scaled: Vector = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return scaled
