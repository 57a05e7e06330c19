"""The background: the same in every run, uniform, and as large as asked for."""

from __future__ import annotations

import uuid
import zlib
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from llama_index_refine import RefinedRetriever
from llama_index_refine.qdrant.background import Background, draw
from llama_index_refine.qdrant.gateway import Gateway, States
from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.requests import Requests, SearchOptions
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.scheduling import run
from llama_index_refine.similarity import METRICS, score_of_similarity, similarity
from llama_index_refine.stores import open_store
from tests.places import EACH, PLACES, SIZE, TOPICS, LabelGrader, open_place, points, question

COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
ID_KINDS = {
    "numbers": lambda at: at,
    "numbers from 1": lambda at: at + 1,
    "random UUIDs": lambda at: str(uuid.UUID(int=Random(at).getrandbits(128), version=4)),
    "hashed UUIDs": lambda at: str(uuid.uuid5(uuid.NAMESPACE_URL, str(at))),
}


def filled(place, kind: str = "numbers") -> str:
    name = place.create(COSINE)
    place.write(name, [point.model_copy(update={"id": ID_KINDS[kind](at)}) for at, point in enumerate(points())])
    return name


def retriever(place, name, **kwargs) -> RefinedRetriever:
    options = {"text_key": "meta.abstract", "grader": LabelGrader(), "trust": 1.0, "on_error": "raise", **kwargs}
    return RefinedRetriever.from_collection(place.client, name, **options)


@pytest.mark.parametrize("kind", ID_KINDS)
def test_the_same_query_goes_the_same_way_for_everyone(place, kind, monkeypatch):
    name = filled(place, kind)
    runs = []
    for _ in range(2):
        # Each knows nothing of what the other has drawn.
        monkeypatch.setattr("llama_index_refine.qdrant.gateway.states", States())
        runs.append(retriever(place, name).refine(question(0)))
    first, second = runs
    assert len(first.background) > 15
    # Local mode reads the same vector with another last bit at times.
    assert np.allclose(first.background, second.background, atol=1e-6)
    assert np.allclose(first.vector, second.vector, atol=1e-5)
    assert [entry.node.node_id for entry in first.nodes] == [entry.node.node_id for entry in second.nodes]


@pytest.mark.parametrize("kind", ["numbers", "random UUIDs"])
@pytest.mark.parametrize("place", PLACES)
def test_a_run_done_again_with_a_new_client_gives_the_same_rankings_and_vectors(place, kind, tmp_path, request):
    address = request.getfixturevalue("qdrant_address") if place.startswith("server") else ("", 0)
    runs = []
    for seed in range(2):
        # Whatever is left to chance falls otherwise.
        np.random.seed(seed)
        with open_place(place, tmp_path / str(seed), address) as opened:
            refined = retriever(opened, filled(opened, kind), similarity_top_k=20)
            runs.append([refined.refine(question(topic)) for topic in range(TOPICS)])
    for first, second in zip(*runs, strict=True):
        assert first.refined
        assert [entry.node.node_id for entry in first.nodes] == [entry.node.node_id for entry in second.nodes]
        assert [entry.node.node_id for entry in first.graded_nodes] == [n.node.node_id for n in second.graded_nodes]
        assert np.allclose(first.vector, second.vector, atol=1e-5)
        assert np.allclose(first.background, second.background, atol=1e-6)


@pytest.mark.parametrize("size", [10, 60, 500])
def test_it_is_as_large_as_asked_for_and_keeps_to_the_filter(place, size, monkeypatch):
    name = filled(place)
    tenant = models.Filter(must=[models.FieldCondition(key="tenant", match=models.MatchValue(value="a"))])
    options = {"vector_store_kwargs": {"qdrant_filters": tenant}}
    for kwargs, there in (({}, TOPICS * EACH), (options, TOPICS * EACH // 2)):
        collection = retriever(place, name, background_size=size, **kwargs)._collection
        background = run([collection.background()])[0].get()
        assert len(background.ids) == len(set(background.ids)) == min(size, there)
        if kwargs:
            assert all(number // TOPICS % 2 == 0 for number in background.ids)


# What a server is asked, and what may come back


class Answers:
    """Points by number of which a server admits some, and which conditions it knows."""

    def __init__(self, ids, slices: str = "known") -> None:
        self.ids = sorted(ids, key=lambda point: (str(type(point)), point))
        self.slices = slices
        self.asked = 0

    async def ask(self, *requests):
        self.asked += 1
        answers = []
        for request in requests:
            found = self.ids
            for condition in request.filter.must if request.filter else []:
                if isinstance(condition, getattr(models, "SliceCondition", ())):
                    if self.slices == "refused":
                        return None
                    if self.slices == "known":
                        cut = condition.slice
                        found = [one for one in found if zlib.crc32(str(one).encode()) % cut.total == cut.index]
                if isinstance(condition, models.HasIdCondition):
                    found = [one for one in found if one in set(condition.has_id)]
            if isinstance(request.query, models.SampleQuery):
                found = np.random.default_rng(self.asked).permutation(found).tolist()
            answers.append([models.Record(id=one, vector=[1.0]) for one in found[: request.limit]])
        return answers


def drawn(answers, size=30, population=None, total=None):
    requests = Requests(Space("", 1, "dot"), SearchOptions(), True)
    population = len(answers.ids) if population is None else population
    drawing = draw(answers.ask, requests, size, population, total or len(answers.ids))
    return [point.id for point in run([drawing])[0].get()]


@pytest.mark.parametrize("slices", ["known", "refused", "ignored"])
@pytest.mark.parametrize("kind", ID_KINDS)
def test_every_server_gives_a_reproducible_sample_from_all_over_in_few_requests(kind, slices):
    ids = [ID_KINDS[kind](at) for at in range(5000)]
    answers = Answers(ids, slices)
    first = drawn(answers)
    # A client that does not know slices asks for none.
    assert answers.asked == (1 if slices == "known" or not hasattr(models, "SliceCondition") else 2)
    assert first == drawn(Answers(ids, slices))
    assert len(set(first)) == 30
    order = {point: at for at, point in enumerate(ids)}
    assert 1500 < np.mean([order[point] for point in first]) < 3500


def test_where_nothing_else_is_left_chance_draws():
    ids = [str(uuid.UUID(int=at << 80 | 7 << 76 | 2 << 62)) for at in range(5000)]
    first = drawn(Answers(ids, "refused"))
    assert len(set(first)) == 30
    order = {point: at for at, point in enumerate(ids)}
    assert np.mean([order[point] for point in first]) > 1000


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000), st.sampled_from(["known", "refused", "ignored"]))
def test_it_is_as_large_as_can_be_whatever_the_server_estimates(there, estimated, slices):
    ids = [at * 7 + 3 for at in range(there)]
    sample = drawn(Answers(ids, slices), population=estimated)
    assert len(sample) == len(set(sample)) == min(30, there)


def test_numbers_that_a_filter_admits_seldom_are_met_too():
    sample = drawn(Answers(range(0, 10_000, 20), "refused"), total=10_000)
    assert len(sample) == 30
    assert sample == drawn(Answers(range(0, 10_000, 20), "refused"), total=10_000)
    assert max(sample) > 5000


# Whether it still holds


@pytest.mark.parametrize("metric", METRICS)
def test_scores_tell_whether_vectors_and_distance_are_the_same(metric):
    generator = torch.Generator().manual_seed(0)
    vectors, query = torch.randn(5, 8, generator=generator), torch.randn(8, generator=generator)
    background = Background(Vectors(vectors), [*range(5)], 100)

    def found(rows, ids=range(5), by=metric):
        scores = score_of_similarity(similarity(query, rows, by), by).tolist()
        return [models.ScoredPoint(id=at, version=0, score=score) for at, score in zip(ids, scores, strict=False)]

    asked, space = DenseQuery(query.numpy()), Space("", query.shape[-1], metric)
    assert background.unchanged(found(vectors), asked, space)
    assert background.unchanged(found(vectors.half().float()), asked, space)
    assert background.unchanged([*reversed(found(vectors))], asked, space)
    assert not background.unchanged(found(vectors)[:4], asked, space)
    assert not background.unchanged(found(vectors.flip(0)), asked, space)
    assert not background.unchanged(found(vectors, ids=range(1, 6)), asked, space)
    for other in set(METRICS) - {metric}:
        assert not background.unchanged(found(vectors, by=other), asked, space)


def test_no_vectors_agree_with_no_scores():
    assert DenseQuery(np.ones(8, dtype=np.float32)).agrees(Vectors(torch.empty(0, 8)), [], Space("", 8, "cosine"))


def test_all_of_it_is_looked_at_in_turn():
    gateway = Gateway(open_store(QdrantClient(":memory:"), "c", "text"), SearchOptions(), 30, 60.0)
    gateway.state.background = Background(Vectors(torch.randn(12, 2)), [*range(12)], 100)
    turns = [gateway.probe() for _ in range(50)]
    assert all(turn is not None and turn.ids for turn in turns)
    assert {point for turn in turns[:12] for point in turn.ids} == {*range(12)}


def test_points_without_the_vector_that_is_searched_are_no_part_of_it(place):
    name = place.create({"text": COSINE, "picture": COSINE})
    # Of every ten points one has a text.
    made = [(at, one, "picture" if at % 10 else "text") for at, one in enumerate(points())]
    place.write(name, [one.model_copy(update={"vector": {vector: one.vector}}) for _, one, vector in made])
    collection = retriever(place, name, vector_name="text", background_size=15)._collection
    background, population = (one.get() for one in run([collection.background(), collection.population()]))
    assert background.population == population == 20
    assert len(background.ids) == 15
    assert not any(point % 10 for point in background.ids)
