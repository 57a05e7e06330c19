"""A collection that is another one by now: what was remembered of the old one must not be used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index_refine import RefinedRetriever, Refinement
from llama_index_refine.qdrant.gateway import States
from tests.faults import Fault
from tests.places import SIZE, LabelGrader, points, question, sparse_query

ROTATION = np.linalg.qr(np.random.default_rng(3).normal(size=(SIZE, SIZE)))[0]


@dataclass(frozen=True)
class Version:
    """How a collection is embedded: a matrix for the model, and the distance."""

    model: np.ndarray
    distance: models.Distance = models.Distance.COSINE

    def params(self) -> models.VectorParams:
        return models.VectorParams(size=self.model.shape[1], distance=self.distance)

    def points(self, name: str = "", sparse: str = "") -> list[models.PointStruct]:
        made = points(name, sparse=sparse)
        for point in made:
            if name:
                point.vector[name] = (np.array(point.vector[name]) @ self.model).tolist()
            else:
                point.vector = (np.array(point.vector) @ self.model).tolist()
        return made

    def question(self, topic: int) -> QueryBundle:
        return QueryBundle(str(topic), embedding=(np.array(question(topic).embedding) @ self.model).tolist())


PLAIN = Version(np.eye(SIZE))
OTHERS = {
    "model": Version(ROTATION),
    "distance": Version(np.eye(SIZE), models.Distance.EUCLID),
    "model and distance": Version(ROTATION, models.Distance.DOT),
    "smaller": Version(ROTATION[:, : SIZE // 2]),
}


def retriever(client, name, **kwargs) -> RefinedRetriever:
    options = {"text_key": "meta.abstract", "grader": LabelGrader(), "trust": 1.0, "on_error": "raise", **kwargs}
    return RefinedRetriever.from_collection(client, name, **options)


def same(refinement: Refinement, other: Refinement) -> bool:
    """Whether two queries went the same way."""
    return (
        [entry.node.node_id for entry in refinement.nodes] == [entry.node.node_id for entry in other.nodes]
        and np.allclose(refinement.vector, other.vector, atol=1e-4)
        and np.allclose(refinement.background, other.background, atol=1e-5)
    )


def is_as_if_new(place, name, version, monkeypatch, **kwargs) -> bool:
    """Whether the next query goes the same way as one of a retriever that has never seen the collection."""
    refinement = retriever(place.client, name, **kwargs).refine(version.question(1))
    monkeypatch.setattr("llama_index_refine.qdrant.gateway.states", States())
    fresh = retriever(place.client, name, **kwargs).refine(version.question(1))
    assert fresh.refined
    return same(refinement, fresh)


def fill(place, name, version, **config) -> None:
    place.writer.create_collection(name, version.params(), **config)
    place.write(name, version.points())


@pytest.mark.parametrize("kind", OTHERS)
def test_the_first_query_after_a_rebuild_is_right(place, kind, monkeypatch):
    name = place.create(PLAIN.params())
    place.write(name, PLAIN.points())
    refined = retriever(place.client, name)
    assert refined.refine(PLAIN.question(0)).refined
    for version in (OTHERS[kind], PLAIN):
        place.writer.delete_collection(name)
        fill(place, name, version)
        assert is_as_if_new(place, name, version, monkeypatch)


def test_the_first_query_after_all_was_embedded_anew_in_its_place_is_right(place, monkeypatch):
    name = place.create(PLAIN.params())
    place.write(name, PLAIN.points())
    assert retriever(place.client, name).refine(PLAIN.question(0)).refined
    place.write(name, OTHERS["model"].points())
    assert is_as_if_new(place, name, OTHERS["model"], monkeypatch)


@pytest.mark.parametrize("place", ["memory", "rest", "grpc", "server", "server-grpc"], indirect=True)
@pytest.mark.parametrize("kind", OTHERS)
def test_the_first_query_after_an_alias_has_moved_is_right(place, kind, monkeypatch):
    names = [place.create(version.params()) for version in (PLAIN, OTHERS[kind])]
    for name, version in zip(names, (PLAIN, OTHERS[kind]), strict=True):
        place.write(name, version.points())
    alias = f"{names[0]}-alias"

    def point_to(name: str) -> None:
        create = models.CreateAlias(collection_name=name, alias_name=alias)
        place.writer.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])

    point_to(names[0])
    assert retriever(place.client, alias).refine(PLAIN.question(0)).refined
    point_to(names[1])
    assert is_as_if_new(place, alias, OTHERS[kind], monkeypatch)


@pytest.mark.parametrize("kind", ["model", "model and distance"])
def test_the_first_query_of_hybrid_mode_after_a_rebuild_is_right(place, kind, monkeypatch):
    hybrid = {"vector_store_query_mode": "hybrid", "sparse_query_fn": sparse_query}
    sparse = {"words": models.SparseVectorParams()}
    name = place.create({"dense": PLAIN.params()}, sparse_vectors_config=sparse)
    place.write(name, PLAIN.points("dense", "words"))
    assert retriever(place.client, name, **hybrid).refine(PLAIN.question(0)).refined
    place.writer.delete_collection(name)
    version = OTHERS[kind]
    place.writer.create_collection(name, {"dense": version.params()}, sparse_vectors_config=sparse)
    place.write(name, version.points("dense", "words"))
    known = []
    for _ in range(2):
        refined = retriever(place.client, name, **hybrid)
        assert refined.refine(version.question(1)).refined
        known.append(refined._collection._gateway.state)
        monkeypatch.setattr("llama_index_refine.qdrant.gateway.states", States())
    # Fused ranks tie, and which of those that tie comes first is left to chance: what is known must be the same.
    assert known[0].space == known[1].space
    assert known[0].background.ids == known[1].background.ids
    assert np.allclose(known[0].background.vectors.dense, known[1].background.vectors.dense, atol=1e-5)


def test_another_distance_is_noticed_without_a_background(place, monkeypatch):
    name = place.create(PLAIN.params())
    place.write(name, PLAIN.points())
    assert retriever(place.client, name, background_size=0).refine(PLAIN.question(0)).refined
    place.writer.delete_collection(name)
    fill(place, name, OTHERS["distance"])
    assert is_as_if_new(place, name, OTHERS["distance"], monkeypatch, background_size=0)


def test_a_query_of_the_old_model_is_refused_with_both_sizes(place):
    name = place.create(PLAIN.params())
    place.write(name, PLAIN.points())
    refined = retriever(place.client, name)
    assert refined.refine(PLAIN.question(0)).refined
    place.writer.delete_collection(name)
    fill(place, name, OTHERS["smaller"])
    with pytest.raises(ValueError, match=rf"{SIZE} dimensions, .* has {SIZE // 2}: set embed_model"):
        refined.retrieve(PLAIN.question(0))
    assert refined.refine(OTHERS["smaller"].question(0)).refined


async def test_batches_notice_it_too(qdrant_server, monkeypatch):
    storage = qdrant_server.storage
    storage.create_collection("c", PLAIN.params())
    storage.upsert("c", PLAIN.points())
    client = AsyncQdrantClient(url=qdrant_server.url, check_compatibility=False)
    refined = retriever(client, "c")
    await refined.arefine_batch([PLAIN.question(topic) for topic in range(3)])
    storage.delete_collection("c")
    version = OTHERS["model and distance"]
    storage.create_collection("c", version.params())
    storage.upsert("c", version.points())
    batch = await refined.arefine_batch([version.question(topic) for topic in range(3)])
    monkeypatch.setattr("llama_index_refine.qdrant.gateway.states", States())
    fresh = await refined.arefine_batch([version.question(topic) for topic in range(3)])
    assert all(same(one, other) for one, other in zip(batch, fresh, strict=True))


@pytest.fixture
def server(qdrant_server):
    qdrant_server.storage.create_collection("c", PLAIN.params())
    qdrant_server.storage.upsert("c", PLAIN.points())
    return qdrant_server


def test_what_has_not_changed_is_not_asked_for_again(server):
    refined = retriever(QdrantClient(url=server.url, check_compatibility=False), "c")
    for topic in range(5):
        refined.refine(PLAIN.question(topic))
    asked = server.count("describe"), server.count("count")
    for topic in range(5):
        refined.refine(PLAIN.question(topic))
    assert (server.count("describe"), server.count("count")) == asked


def test_what_is_looked_at_again_comes_along_with_the_first_search(server):
    refined = retriever(QdrantClient(url=server.url, check_compatibility=False), "c", rounds=1)
    refined.refine(PLAIN.question(0))
    server.calls.clear()
    assert refined.refine(PLAIN.question(1)).refined
    (search, look), (last,) = [body["searches"] for kind, body in server.calls if kind == "query"]
    assert (search["limit"], look["limit"], last["limit"]) == (20, 5, 10)
    assert not look["with_vector"]
    assert not look["with_payload"]
    assert len(server.calls) == 2


def test_a_background_document_that_is_deleted_or_changed_is_replaced(server):
    refined = retriever(QdrantClient(url=server.url, check_compatibility=False), "c")
    background = [tuple(row) for row in refined.refine(PLAIN.question(0)).background.tolist()]
    rows = {tuple(np.float32(np.array(p.vector) / np.linalg.norm(p.vector)).tolist()): p.id for p in PLAIN.points()}
    near = {tuple(np.round(row, 4)): point for row, point in rows.items()}
    gone = [near[tuple(np.round(row, 4))] for row in background[:10]]
    server.storage.delete("c", models.PointIdsList(points=gone))
    after = refined.refine(PLAIN.question(0)).background
    assert not {tuple(np.round(row, 4)) for row in background[:10]} & {tuple(np.round(row, 4)) for row in after}


def test_a_first_search_that_is_refused_for_another_reason_is_raised_as_it_is(server):
    refined = retriever(QdrantClient(url=server.url, check_compatibility=False), "c")
    refined.refine(PLAIN.question(0))
    server.faults["query", server.count("query") + 1] = Fault(status=400)
    with pytest.raises(Exception, match="a fault"):
        refined.retrieve(PLAIN.question(0))
    assert refined.refine(PLAIN.question(0)).refined
