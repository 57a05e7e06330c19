"""The collection's one search, wherever the collection lives: what it brings, finds, leaves out, and never loses."""

from __future__ import annotations

import base64
import logging

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle
from qdrant_client import QdrantClient, models

from llama_index_refine.qdrant.collection import LONG, QdrantCollection
from llama_index_refine.qdrant.points import Found
from llama_index_refine.qdrant.requests import Hybrid, Multivector, SearchOptions
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.retrieval.queries import Embedding
from llama_index_refine.scheduling import arun, run
from llama_index_refine.stores import open_store
from tests.faults import Fault
from tests.places import SIZE, matrix_query, points, question, sparse_query, vectors, with_matrices
from tests.strict_mode import StrictMode

COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
EUCLID = models.VectorParams(size=SIZE, distance=models.Distance.EUCLID)
MATRICES = COSINE.model_copy(
    update={"multivector_config": models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)}
)
WORDS = {"words": models.SparseVectorParams()}
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
KINDS = {
    "dense": SearchOptions(),
    "sparse": SearchOptions(sparse_alone=True),
    "hybrid": SearchOptions(hybrid=Hybrid()),
    "matrices": SearchOptions(multivector=Multivector(matrix_query)),
}


def made(place, kind: str = "dense", options: SearchOptions | None = None, **config) -> QdrantCollection:
    """A collection with two hundred points, or half of that with matrices."""
    if kind == "matrices":
        name = place.create(MATRICES, **config)
        place.write(name, with_matrices(""))
    elif kind == "dense":
        name = place.create(COSINE, **config)
        place.write(name, points())
    else:
        name = place.create({"dense": COSINE}, sparse_vectors_config=WORDS, **config)
        place.write(name, points("dense", sparse="words"))
    function = sparse_query if kind in ("sparse", "hybrid") else None
    store = open_store(place.client, name, "meta.abstract", sparse_query_fn=function)
    return QdrantCollection(store, options or KINDS[kind])


def done(work):
    return run([work])[0].get()


def asked(collection: QdrantCollection, topic: int = 0):
    bundle = question(topic)
    # The matrix is made of the text.
    matrices = collection.options.multivector
    bundle.embedding = None if matrices and not matrices.prefetch else bundle.embedding
    return done(collection.query(bundle, Embedding(None)))


def refined(collection: QdrantCollection, query, found: Found):
    """Move a query a little towards the first point found."""
    view, shown = query.view(done(collection.space())), found.with_vectors(4)
    view.meet(shown.vectors, done(collection.background()))
    (rows, _) = view.rows(shown.vectors, shown.vectors)
    return view.refined(view.row + np.float32(0.2) * rows[0].numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_search_brings_the_vectors_of_the_first_points(place, kind):
    collection = made(place, kind)
    found = done(collection.search(asked(collection), 12, vectors=5))
    assert len(found.ids) == len(found.scores) == len(found.nodes) == 12
    assert [*found.placed][:5] == [*range(5)]
    assert len(found.vectors.dense) == len(found.placed)
    assert [str(point) for point in found.ids] == [node.node_id for node in found.nodes]
    bare = done(collection.search(asked(collection), 12, payload=False))
    assert (len(bare.ids), len(bare.nodes), len(bare.vectors.dense)) == (12, 0, 0)
    # Many points of the others have as many words in common with the query.
    assert kind in ("sparse", "hybrid") or bare.ids == found.ids
    assert len(done(collection.search(asked(collection), 3, vectors=9)).ids) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_beside_comes_along_or_is_left_out_and_takes_no_place_from_others(place, kind):
    collection = made(place, kind)
    query = asked(collection)
    first = done(collection.search(query, 10, vectors=10))
    moved = refined(collection, query, first)
    for searched in (query, moved):
        for brought in (0, 8):
            found = done(collection.search(searched, 8, vectors=brought, beside=first.ids))
            others = [point for point in found.ids if point not in first.ids]
            assert len(found.ids) == len({*found.ids})
            assert len(others) >= 8
            if brought:
                chosen = [at for at, point in enumerate(found.ids) if point in others][:3]
                some = done(collection.complete(found.at(chosen), vectors=True))
                assert some.ids == others[:3]
                assert [*some.placed] == [0, 1, 2]
                assert [node.node_id for node in some.nodes] == [str(point) for point in others[:3]]


@pytest.mark.parametrize("kind", KINDS)
def test_points_are_found_by_id_in_that_order_whatever_their_scores(place, kind):
    strict = SearchOptions(**{**vars(KINDS[kind]), "score_threshold": 1e6})
    collection = made(place, kind, strict)
    query = asked(collection)
    # In hybrid mode it is the dense search's.
    assert bool(done(collection.search(query, 10, vectors=5)).ids) == (kind == "hybrid")
    found = done(collection.those(query, [77, 3, 4242, 12], vectors=True))
    assert found.ids == [77, 3, 12]
    assert [*found.placed] == [0, 1, 2]
    assert [node.node_id for node in found.nodes] == ["77", "3", "12"]


def test_what_a_search_cannot_score_is_listed_by_id_all_the_same(place):
    collection = made(place, "hybrid")
    name = collection.store.collection_name
    place.write(name, [models.PointStruct(id=900, vector={}, payload={"meta": {"abstract": "bare"}})])
    found = done(collection.those(asked(collection), [900, 3], vectors=True))
    assert found.ids == [900, 3]
    assert [*found.placed] == [1]
    assert found.nodes[0].get_content() == "bare"


def test_by_id_too_nothing_outside_the_filter_is_found_and_what_is_gone_is_told_from_it(place):
    tenant = models.Filter(must=[models.FieldCondition(key="tenant", match=models.MatchValue(value="a"))])
    collection = made(place, options=SearchOptions(filter=tenant, score_threshold=2.0))
    inside, outside = 0, 5
    query = asked(collection)
    assert done(collection.those(query, [outside, 4242, inside])).ids == [inside]
    assert done(collection.gone([outside, 4242, inside])) == {4242}
    assert done(collection.gone([])) == set()


def test_ids_of_any_spelling_are_told_from_those_that_are_gone(place):
    name = place.create(COSINE)
    place.write(name, points(uuids=True)[:9])
    collection = QdrantCollection(open_store(place.client, name, "meta.abstract"))
    there, nowhere = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-0000000000ff"
    assert done(collection.gone([there, nowhere])) == {nowhere}
    other, another = f"urn:uuid:{there}", there.replace("-", "")
    spelled = [nowhere, there, other, another, "00000000-0000-0000-0000-000000000004"]
    found = done(collection.those(asked(collection), spelled, vectors=True))
    assert found.ids == [there, spelled[4]]


def test_what_cannot_be_asked_is_not_gone(qdrant_server, caplog):
    qdrant_server.storage.create_collection("c", COSINE)
    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    collection = QdrantCollection(open_store(client, "c", "text"))
    done(collection.space())
    qdrant_server.faults["retrieve", 1] = Fault(status=403)
    with caplog.at_level(logging.WARNING):
        assert done(collection.gone([1])) == set()
    assert "taken to exist" in caplog.text
    assert done(collection.gone([1])) == {1}


@pytest.mark.parametrize("kind", KINDS)
def test_complete_brings_what_is_lacking_and_leaves_out_what_has_gone(place, kind):
    collection = made(place, kind)
    query = asked(collection)
    bare = done(collection.search(query, 6, payload=False))
    whole = done(collection.complete(bare, vectors=True))
    assert (whole.ids, whole.scores, [*whole.placed]) == (bare.ids, bare.scores, [*range(6)])
    assert done(collection.complete(whole, vectors=True)) is whole
    mixed = whole.at([0, 2]).beside(done(collection.complete(bare.at([1, 3]))))
    assert [*mixed.placed] == [0, 1]
    mixed = done(collection.complete(mixed, vectors=True))
    assert mixed.vectors.near(whole.vectors.at([0, 2, 1, 3]), 1e-5)
    place.writer.delete(collection.store.collection_name, models.PointIdsList(points=[bare.ids[1]]))
    left = done(collection.complete(bare))
    assert left.ids == [bare.ids[0], *bare.ids[2:]]
    assert [node.node_id for node in left.nodes] == [str(point) for point in left.ids]


def test_long_lists_come_as_ids_and_scores(place):
    collection = made(place)
    query = asked(collection)
    first = done(collection.search(query, 10, vectors=10))
    found = done(collection.search(query, LONG + 1, vectors=LONG + 1, beside=first.ids))
    assert (len(found.ids) > LONG, len(found.nodes), len(found.placed)) == (True, 0, 0)


def test_pages_of_the_exact_ranking_fit_together(place):
    collection = made(place)
    query = asked(collection)
    pages = [done(collection.search(query, 70, offset=at, exact=True, payload=False)) for at in (0, 70, 140)]
    ids = [point for page in pages for point in page.ids]
    assert len({*ids}) == len(ids) == 200
    scores = [score for page in pages for score in page.scores]
    assert scores == sorted(scores, reverse=True)
    assert [len(page.ids) for page in pages] == [70, 70, 60]


def test_images_are_brought_of_those_that_are_wanted(place):
    name = place.create(COSINE)
    place.write(name, [point.model_copy(update={"payload": {"picture": PIXEL}}) for point in points()[:20]])
    store = open_store(place.client, name, image_key="picture")
    collection = QdrantCollection(store)
    query = asked(collection)
    found = done(collection.search(query, 6, vectors=3))
    assert (len(found.ids), len(found.nodes), [*found.placed][:3]) == (6, 0, [0, 1, 2])
    some = done(collection.complete(found.at([1, 4])))
    assert [node.node_id for node in some.nodes] == [str(found.ids[at]) for at in (1, 4)]
    store.image_field = "nothing"
    with pytest.raises(ValueError, match="image_key"):
        done(collection.complete(found))


def test_payloads_turn_out_to_hold_images_and_every_retriever_on_the_client_knows(place):
    name = place.create(COSINE)
    place.write(name, [point.model_copy(update={"payload": {"picture": PIXEL}}) for point in points()[:20]])
    first, second = (QdrantCollection(open_store(place.client, name, image_key="picture")) for _ in range(2))
    first._expects_images = second._expects_images = False
    found = done(first.search(asked(first), 6, vectors=3))
    assert len(found.nodes) == 6
    assert found.nodes[0].image or found.nodes[0].image_url
    assert not len(done(first.search(asked(first), 6)).nodes)
    assert not len(done(second.search(asked(second), 6)).nodes)


@pytest.mark.parametrize("place", ["rest", "grpc"], indirect=True)
def test_where_strict_mode_allows_no_condition_more_nothing_is_found_by_id_and_nothing_is_gone(place, caplog):
    place.server.strict = StrictMode(models.StrictModeConfig(enabled=True, filter_max_conditions=0))
    collection = made(place)
    query = asked(collection)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not done(collection.those(query, [1, 2, 3])).ids
    assert len([record for record in caplog.records if "filter_max_conditions" in record.getMessage()]) == 1
    assert done(collection.gone([1, 2, 4242])) == {4242}
    found = done(collection.search(query, 100, vectors=100, beside=[1]))
    assert len(found.nodes) == len(found.placed) == len(found.ids)


# What waits together


def test_a_text_that_cannot_be_encoded_fails_alone(place):
    def words(texts):
        if "bad" in texts:
            raise RuntimeError("too long")
        return sparse_query(texts)

    collection = made(place, "sparse")
    collection.store._sparse_query_fn = words
    bundles = [QueryBundle("0"), QueryBundle("bad"), QueryBundle("1")]
    first, second, third = run([collection.query(bundle, Embedding(None)) for bundle in bundles])
    assert (first.get().words.indices, third.get().words.indices) == ([0], [1])
    with pytest.raises(RuntimeError, match="too long"):
        second.get()


def test_a_matrix_that_cannot_be_made_fails_alone(place):
    def matrices(texts):
        if "bad" in texts:
            raise RuntimeError("too long")
        return matrix_query(texts)

    collection = made(place, "matrices", SearchOptions(multivector=Multivector(matrices)))
    bundles = [QueryBundle("0"), QueryBundle("bad"), QueryBundle("1")]
    first, second, third = run([collection.query(bundle, Embedding(None)) for bundle in bundles])
    assert first.get().matrix.shape == third.get().matrix.shape == (2, SIZE)
    with pytest.raises(RuntimeError, match="too long"):
        second.get()


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_that_is_a_step_ahead_has_its_own_sample(place, kind):
    """Each draws its background at another moment of the others' drawing."""
    collection = made(place, kind)

    async def after(steps: int):
        for _ in range(steps):
            await collection.population()
        state = collection._gateway.state
        # As if no other had drawn one.
        state.background = None
        return await collection.background()

    backgrounds = [outcome.get() for outcome in run([after(steps) for steps in range(4)])]
    size = 15 if kind == "matrices" else 30
    assert {len(one.ids) for one in backgrounds} == {size}
    for one in backgrounds[1:]:
        assert one.ids == backgrounds[0].ids
        assert one.vectors.near(backgrounds[0].vectors, 1e-5)


async def test_blocking_or_not_the_same_is_found(place):
    collection = made(place)
    query = asked(collection)
    works = [collection.search(query, 9, vectors=4) for _ in range(3)]
    results = [outcome.get() for outcome in await arun(works)]
    assert {tuple(found.ids) for found in results} == {tuple(done(collection.search(query, 9, vectors=4)).ids)}


@pytest.mark.parametrize("place", ["rest"], indirect=True)
def test_samples_are_drawn_without_read_consistency(place):
    collection = made(place, options=SearchOptions(consistency=models.ReadConsistencyType.QUORUM))
    query = asked(collection)
    done(collection.background())
    done(collection.search(query, 5, vectors=5))
    collection._gateway.state.background = None
    done(collection.background())
    assert [words for kind, words in place.server.consistencies if kind == "query"] == [None, "quorum", None]


# Whole numbers


@pytest.mark.parametrize("low", [0, -40])
def test_under_cosine_a_vector_beyond_whole_numbers_is_made_shorter_and_ranks_as_it_would(place, low):
    params = COSINE.model_copy(update={"datatype": models.Datatype.UINT8})
    name = place.create(params)
    place.write(name, points(positive=True))
    collection = QdrantCollection(open_store(place.client, name, "meta.abstract"))
    rows = vectors(positive=True)
    vector = np.random.default_rng(2).uniform(low, 900, SIZE).astype(np.float32)
    query = DenseQuery(vector)
    found = done(collection.search(query, 200, payload=False))
    sent = np.asarray(query.vectors(done(collection.space()))[""])
    assert sent.max() == 255
    assert sent.min() >= 0
    wanted = vector.clip(0)
    cosine = sent @ wanted / np.linalg.norm(sent) / np.linalg.norm(wanted)
    assert cosine > 0.9999
    expected = rows @ sent / np.linalg.norm(rows, axis=1) / np.linalg.norm(sent)
    assert np.allclose(found.scores, expected[found.ids], atol=2e-3)


@pytest.mark.parametrize("distance", ["DOT", "EUCLID"])
def test_under_other_distances_it_is_cut_off_and_said_as_it_was_searched(place, distance):
    params = models.VectorParams(size=SIZE, distance=models.Distance[distance], datatype=models.Datatype.UINT8)
    name = place.create(params)
    place.write(name, points(positive=True))
    collection = QdrantCollection(open_store(place.client, name, "meta.abstract"))
    query = DenseQuery(np.linspace(-50, 400, SIZE, dtype=np.float32))
    sent = np.asarray(query.vectors(done(collection.space()))[""])
    assert (sent.min(), sent.max()) == (0, 255)
    found = done(collection.search(query, 20, payload=False))
    rows = vectors(positive=True)[found.ids]
    expected = rows @ sent if distance == "DOT" else np.linalg.norm(rows - sent, axis=1)
    assert np.allclose(found.scores, expected, rtol=1e-4)


# Lists by themselves


def test_lists_keep_what_they_have_of_nodes_and_vectors(place):
    collection = made(place, "hybrid")
    found = done(collection.search(asked(collection), 8, vectors=4))
    some = found.at([6, 3, 0])
    assert some.ids == [found.ids[at] for at in (6, 3, 0)]
    assert [*some.placed] == [1, 2]
    assert some.vectors.near(found.vectors.at([3, 0]), 0)
    both = some.beside(found.at([1, 7]))
    assert [*both.placed] == [1, 2, 3]
    assert both.with_vectors(3).ids == [found.ids[3], found.ids[0]]
    assert both.with_vectors().ids == [found.ids[at] for at in (3, 0, 1)]
    assert len(found.at([]).vectors.dense) == 0
    assert Found().beside(found).ids == found.ids
    assert [node.node_id for node in both.nodes] == [str(point) for point in both.ids]
