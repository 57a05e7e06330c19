"""What is known of a refined query's documents: grades, a ranking, and how likely each is relevant."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from llama_index.core.schema import NodeWithScore
from numpy.typing import NDArray

from llama_index_refine.ids import same_id
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import PointId
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.relevance import Ranking, Relevance, fit_relevance
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.retrieval.pipeline import Pipeline
from llama_index_refine.selecting.cut import Outlook, outlook
from llama_index_refine.similarity import Metric, score_of_similarity, similarity, similarity_of_score

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
    :param people: whether people gave the grade, and not the teacher.
    """

    place: float
    grade: float
    entry: NodeWithScore
    admitted: bool = True
    people: bool = False


@dataclass
class Evidence:
    """What is known of one query's collection: a ranking from the top, and grades.

    :param pipeline: what refined it.
    :param refinement: how the query moved.
    :param query: what a search for the refined query is for.
    :param metric: the collection's distance.
    :param population: how many documents there are.
    :param sample: similarities of documents drawn at random.
    :param judged: the graded documents by node id.
    :param ids: the points of the ranking, best first.
    :param similarities: theirs.
    :param complete: whether the ranking reaches the last point.
    """

    pipeline: Pipeline
    refinement: Refinement
    query: Query
    metric: Metric
    population: int
    sample: Array
    judged: dict[str, Judged] = field(default_factory=dict)
    ids: list[PointId] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    complete: bool = False

    @classmethod
    async def gather(cls, pipeline: Pipeline, refinement: Refinement, feedback: Feedback) -> Evidence:
        """Gather what is known after a query was refined: the grades, and the first page of the ranking.

        :param pipeline: what refined it.
        :param refinement: how the query moved.
        :param feedback: what was graded.
        :return: the evidence.
        """
        view, row = feedback.view, np.asarray(refinement.vector)
        background = torch.as_tensor(refinement.background)
        sample = similarity(torch.as_tensor(row), background, view.metric).double().numpy()
        population = await pipeline.collection.population()
        query = view.refined(row)
        evidence = cls(pipeline, refinement, query, view.distance, population, sample)
        admitted = [True] * len(feedback.nodes)
        if query.threshold is not None:
            admitted = view.passes(row, torch.as_tensor(refinement.documents), query.threshold)
        rows = zip(feedback.nodes, refinement.held_out, feedback.grades, admitted, feedback.believed, strict=True)
        for entry, place, grade, inside, believed in rows:
            one = Judged(float(place), grade, entry, inside, believed is not None)
            evidence.judged[same_id(entry.node_id)] = one
        await evidence.deeper()
        return evidence

    async def deeper(self, least: float = UNLIKELY) -> None:
        """Read on in the ranking while its documents may be relevant with a probability of at least `least`."""
        while not self.complete:
            if self.ids and self.fit().probability(self.similarities[-1:])[0] < least:
                return
            await self.next_page()

    async def next_page(self) -> None:
        """Read the next page of the ranking."""
        count = len(self.ids)
        limit = min(max(count, FIRST_PAGE), LONGEST_PAGE)
        page = await self.pipeline.collection.search(self.query, limit, payload=False, offset=count, exact=True)
        self.ids += page.ids
        self.similarities += similarity_of_score(torch.tensor(page.scores, dtype=torch.float64), self.metric).tolist()
        self.complete = len(page.ids) < limit

    def fit(self) -> Relevance:
        """Weigh the curves of relevance by the grades."""
        known, teacher = list(self.judged.values()), self.pipeline.teacher
        places, grades = [one.place for one in known], [one.grade for one in known]
        usual = teacher.abundance.log_odds
        return fit_relevance(self.ranking(), places, grades, teacher.sees(), usual, rates=teacher.rates)

    def learn(self, relevance: Relevance) -> None:
        """Take in how many documents were relevant to the query, once, when all of its grades are in."""
        self.pipeline.teacher.count(relevance.numbers, relevance.weights * (1 - relevance.guesser()))

    def ranking(self) -> Ranking:
        """Return the similarities of the collection."""
        count = len(self.ids) if self.complete else max(self.population, len(self.ids))
        return Ranking.of(self.similarities, self.sample, count)

    def open_places(self) -> NDArray[np.int64]:
        """Return the places in the ranking that nobody has graded, best first."""
        return np.flatnonzero([same_id(point) not in self.judged for point in self.ids])

    def relevant(self) -> int:
        """Count the graded documents that were found relevant and may be returned."""
        return sum(one.grade >= RELEVANT and one.admitted for one in self.judged.values())

    def in_order(self, relevance: Relevance, graded_first: bool = False) -> Ordered:
        """Order the documents by their probability; or those found relevant first, and those found irrelevant never.

        :param relevance: the curves.
        :param graded_first: whether the grades alone decide on the graded ones.
        :return: the documents in order.
        """
        judged = {name: one for name, one in self.judged.items() if one.admitted}
        if graded_first:
            judged = {name: one for name, one in judged.items() if one.grade >= RELEVANT}
        places = self.open_places()
        similarities = np.asarray(self.similarities)[places]
        known = list(judged.values())
        probabilities = self.probabilities(
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
        rest = self.ranking()
        below = Ranking(rest.similarities[len(self.ids) :], rest.weights[len(self.ids) :])
        view = outlook(relevance, values[order], certain[order], below)
        return Ordered([names[at] for at in order], probabilities[order], view)

    def probabilities(self, relevance: Relevance, judged: Sequence[Judged | None], similarities: Array) -> Array:
        """Say how likely documents are relevant.

        :param relevance: the curves.
        :param judged: (n,) what is known of each one's grade, None where it has none.
        :param similarities: (n,) read where there is no grade.
        :return: (n,) in [0, 1].
        """
        values = relevance.probability(similarities)
        graded = [at for at, one in enumerate(judged) if one is not None]
        known = [one for one in judged if one is not None]
        places, grades, people = ([getattr(one, name) for one in known] for name in ("place", "grade", "people"))
        # Only a teacher errs: what people say is so.
        values[graded] = np.where(people, grades, relevance.of_graded(places, grades))
        return values

    def threshold_of(self, names: Sequence[str | int]) -> float:
        """Return Qdrant's score half way between the last ungraded document that is selected and the next that is not.

        :param names: what is selected.
        """
        values = np.asarray(self.similarities)[self.open_places()]
        count = sum(isinstance(name, int) for name in names)
        if not len(values):
            return float("nan")
        ends = values[[max(count - 1, 0), min(count, len(values) - 1)]]
        middle = float(np.nextafter(values[0], np.inf)) if not count else float(ends.mean())
        if count == len(values):
            middle = float(np.nextafter(values[-1], -np.inf))
        return float(score_of_similarity(torch.tensor([middle], dtype=torch.float64), self.metric)[0])


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


async def check(collection: QdrantCollection) -> None:
    """See that there are similarities of all documents.

    :raises ValueError: a sparse vector is searched, or points are ranked by more than similarity.
    """
    if collection.options.boost is not None:
        raise ValueError(
            "select and score='probability' use the similarity alone: leave boost out of vector_store_kwargs"
        )
    space = await collection.space()
    if space.sparse is not None:
        raise ValueError(
            "select and score='probability' need the similarity of every document, but a search by the sparse vector "
            f"{space.sparse!r} finds only those that share a term with the query: search the dense vector alone"
        )


async def with_probabilities(pipeline: Pipeline, refinement: Refinement, feedback: Feedback | None) -> Refinement:
    """Put the probability of relevance in the place of the nodes' scores.

    :param pipeline: what refined the query.
    :param refinement: what was found.
    :param feedback: what was graded, None for nothing.
    :return: the same with its nodes in the order of that probability; None for all of them where nothing was graded
        that tells.
    """
    unknown = replace(refinement, nodes=[NodeWithScore(node=entry.node, score=None) for entry in refinement.nodes])
    if feedback is None or not refinement.refined:
        return unknown
    try:
        evidence = await Evidence.gather(pipeline, refinement, feedback)
    except Exception as error:
        if pipeline.on_error == "raise":
            raise
        logger.warning("Returning nodes without a probability: %s: %s", type(error).__name__, error)
        return unknown
    relevance = evidence.fit()
    evidence.learn(relevance)
    names = [same_id(entry.node_id) for entry in refinement.nodes]
    near = dict(zip(map(same_id, evidence.ids), evidence.similarities, strict=True))
    least = evidence.similarities[-1] if evidence.similarities else 0.0
    values = evidence.probabilities(
        relevance, [evidence.judged.get(name) for name in names], np.array([near.get(name, least) for name in names])
    )
    nodes = [
        NodeWithScore(node=entry.node, score=float(value))
        for entry, value in zip(refinement.nodes, values, strict=True)
    ]
    return replace(refinement, nodes=sorted(nodes, key=lambda entry: -(entry.score or 0.0)))
