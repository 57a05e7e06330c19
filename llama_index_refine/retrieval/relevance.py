"""How likely the documents of a collection are relevant to a query that was refined."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from llama_index.core.schema import NodeWithScore
from numpy.typing import NDArray

from llama_index_refine.ids import same_id
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import PointId
from llama_index_refine.qdrant.views.base import Query
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.relevance import Abundance, Ranking, Relevance, fit_relevance
from llama_index_refine.refining.trust import Reliability
from llama_index_refine.similarity import Metric, passes, score_of_similarity, similarity, similarity_of_score
from llama_index_refine.steps import Steps

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

# Ids and scores of the first page are some 50 kB. Each later one is twice as long, up to the last number.
FIRST_PAGE, LONGEST_PAGE = 1000, 16_000
# Documents that are less likely relevant than this count as a whole, not one by one.
UNLIKELY = 0.02
# At this grade the teacher calls a document relevant.
RELEVANT = 0.5


@dataclass(frozen=True)
class Judged:
    """A document that has a grade.

    :param place: its similarity to the refined query, as the other documents' grades have it.
    :param grade: what it got, in [0, 1].
    :param entry: its node.
    :param admitted: whether the searches may return it.
    """

    place: float
    grade: float
    entry: NodeWithScore
    admitted: bool = True


@dataclass
class Evidence:
    """What is known of one query's collection: a ranking from the top, and grades.

    :param refinement: how the query moved.
    :param population: how many documents there are.
    :param sample: similarities of documents drawn at random.
    :param trust: how likely it is that the teacher sees relevance at all.
    :param judged: the graded documents by node id.
    :param ids: the points of the ranking, best first.
    :param similarities: theirs.
    :param complete: whether the ranking reaches the last point.
    :param abundance: how many documents are usually relevant.
    """

    refinement: Refinement
    population: int
    sample: Array
    trust: float
    judged: dict[str, Judged]
    ids: list[PointId] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    complete: bool = False
    abundance: Abundance = field(default_factory=Abundance.unknown)

    @property
    def query(self) -> Query:
        """What a search for the refined query is for."""
        return DenseQuery(np.asarray(self.refinement.vector))

    def fit(self) -> Relevance:
        """Weigh the curves of relevance by the grades."""
        known = list(self.judged.values())
        return fit_relevance(
            self.ranking(),
            [one.place for one in known],
            [one.grade for one in known],
            self.trust,
            self.abundance.log_odds,
        )

    def ranking(self) -> Ranking:
        """Return the similarities of the collection."""
        count = len(self.ids) if self.complete else max(self.population, len(self.ids))
        return Ranking.of(self.similarities, self.sample, count)

    def open_places(self) -> NDArray[np.int64]:
        """Return the places in the ranking that nobody has graded, best first."""
        return np.flatnonzero([name_of(point) not in self.judged for point in self.ids])


@dataclass(frozen=True)
class Calibration:
    """Finds out what a similarity says about relevance.

    :param collection: what is searched.
    :param trust: the teacher's record, or how far to follow it.
    """

    collection: QdrantCollection
    trust: Reliability | float

    def check(self) -> Steps[None]:
        """See that there are similarities of all documents.

        :raises ValueError: a sparse vector is searched.
        """
        space = yield from self.collection.space()
        if space.sparse is not None:
            raise ValueError(
                "select and score='probability' need similarities of all documents, and a search by the sparse vector "
                f"{space.sparse!r} finds those that share a term with the query: search the dense vector alone"
            )

    def evidence(self, refinement: Refinement) -> Steps[Evidence]:
        """Gather what is known after a query was refined.

        :param refinement: how it moved.
        :return: the grades, and the first page of the ranking.
        """
        space = yield from self.collection.space()
        population = yield from self.collection.population()
        trust = self.trust.sees() if isinstance(self.trust, Reliability) else self.trust
        evidence = Evidence(refinement, population, self._sample(refinement, space.metric), trust, {})
        if isinstance(self.trust, Reliability):
            evidence.abundance = self.trust.abundance
        own = similarity(torch.as_tensor(refinement.vector), torch.as_tensor(refinement.documents), space.metric)
        scores = score_of_similarity(own, space.metric)
        admitted = passes(scores, self.collection.options.score_threshold, space.metric).tolist()
        rows = zip(
            refinement.graded_nodes,
            refinement.held_out,
            self.read(np.asarray(refinement.grades)),
            admitted,
            strict=True,
        )
        for entry, place, grade, inside in rows:
            evidence.judged[same_id(entry.node_id)] = Judged(float(place), float(grade), entry, inside)
        yield from self.deeper(evidence)
        return evidence

    def deeper(self, evidence: Evidence, least: float = UNLIKELY) -> Steps[None]:
        """Read on in the ranking while its documents may be relevant with a probability of at least `least`."""
        while not evidence.complete:
            if evidence.ids and evidence.fit().probability(evidence.similarities[-1:])[0] < least:
                return
            yield from self.next_page(evidence)

    def next_page(self, evidence: Evidence) -> Steps[None]:
        """Read the next page of the ranking."""
        space, count = (yield from self.collection.space()), len(evidence.ids)
        limit = min(max(count, FIRST_PAGE), LONGEST_PAGE)
        page = yield from self.collection.page(evidence.query, count, limit)
        values = similarity_of_score(torch.tensor(page.scores, dtype=torch.float64), space.metric)
        evidence.ids += page.ids
        evidence.similarities += values.tolist()
        evidence.complete = len(page.ids) < limit

    def read(self, grades: Sequence[float] | NDArray[np.float32]) -> Array:
        """Return grades on the scale that the teacher uses."""
        if isinstance(self.trust, Reliability):
            return self.trust.calibrate(grades)
        return np.asarray(grades, dtype=np.float64)

    def learn(self, relevance: Relevance) -> None:
        """Take in how many documents were relevant to a query, once, when all of its grades are in."""
        if isinstance(self.trust, Reliability):
            self.trust.count(relevance.numbers, relevance.weights * (1 - relevance.guesser()))

    def scored(self, steps: Steps[Refinement], on_error: Literal["fallback", "raise"]) -> Steps[Refinement]:
        """Retrieve, and put the probability of relevance in the place of the nodes' scores.

        :param steps: a retrieval.
        :param on_error: whether what fails here raises.
        :return: the same with its nodes in the order of that probability; None for all of them where nothing was
            graded that tells.
        """
        yield from self.check()
        refinement = yield from steps
        if not refinement.refined:
            return replace(refinement, nodes=[_scored(entry, None) for entry in refinement.nodes])
        try:
            evidence = yield from self.evidence(refinement)
        except Exception as error:
            if on_error == "raise":
                raise
            logger.warning("Returning nodes without a probability: %s: %s", type(error).__name__, error)
            return replace(refinement, nodes=[_scored(entry, None) for entry in refinement.nodes])
        relevance = evidence.fit()
        self.learn(relevance)
        space = yield from self.collection.space()
        scores = torch.tensor([entry.score or 0.0 for entry in refinement.nodes], dtype=torch.float64)
        probabilities = probabilities_of(
            relevance,
            [evidence.judged.get(same_id(entry.node_id)) for entry in refinement.nodes],
            similarity_of_score(scores, space.metric).numpy(),
        )
        nodes = [_scored(entry, float(value)) for entry, value in zip(refinement.nodes, probabilities, strict=True)]
        return replace(refinement, nodes=sorted(nodes, key=lambda entry: -(entry.score or 0.0)))

    @staticmethod
    def _sample(refinement: Refinement, metric: Metric) -> Array:
        background = torch.as_tensor(refinement.background)
        if not len(background):
            return np.empty(0)
        return np.asarray(similarity(torch.as_tensor(refinement.vector), background, metric), dtype=np.float64)


def name_of(point: PointId) -> str:
    """Return the id of a point's node, in the spelling that all have in common."""
    return same_id(str(point))


def probabilities_of(relevance: Relevance, judged: Sequence[Judged | None], similarities: Array) -> Array:
    """Say how likely documents are relevant.

    :param relevance: the curves.
    :param judged: (n,) what is known of each one's grade, None where it has none.
    :param similarities: (n,) read where there is no grade.
    :return: (n,) in [0, 1].
    """
    values = relevance.probability(similarities)
    graded = [at for at, one in enumerate(judged) if one is not None]
    known = [one for one in judged if one is not None]
    values[graded] = relevance.of_graded([one.place for one in known], [one.grade for one in known])
    return values


def _scored(entry: NodeWithScore, score: float | None) -> NodeWithScore:
    return NodeWithScore(node=entry.node, score=score)
