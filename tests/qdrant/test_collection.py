"""Everything a collection can be and a search can be asked, wherever the collection lives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from llama_index_refine import RefinedRetriever
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.encoding import Encoding, sparse_vectors_of
from llama_index_refine.qdrant.requests import SearchOptions
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.scheduling import run
from tests.places import EACH, SIZE, TOPICS, LabelGrader, hits, points, question, sparse_query, vectors

COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)


def retriever(place, name, **kwargs) -> RefinedRetriever:
    options = {"text_key": "meta.abstract", "grader": LabelGrader(), "on_error": "raise", "trust": 1.0, **kwargs}
    return RefinedRetriever.from_collection(place.client, name, **options)


def improves(refined: RefinedRetriever, positive: bool = False) -> None:
    """Refining finds more of each topic than the first search, and tells it."""
    before, after = 0, 0
    for topic in range(TOPICS):
        refinement = refined.refine(question(topic, positive))
        assert refinement.refined
        assert len(refinement.nodes) == refined.similarity_top_k
        assert len({entry.node.node_id for entry in refinement.nodes}) == refined.similarity_top_k
        before += hits(refinement.nodes_before, topic)
        after += hits(refinement.nodes, topic)
    assert after > before


# Shapes


@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid"])
@pytest.mark.parametrize("vector_name", ["", "dense", "text-dense"])
def test_every_distance_and_way_of_naming_is_read_from_the_collection(place, distance, vector_name):
    params = models.VectorParams(size=SIZE, distance=models.Distance(distance))
    name = place.create({vector_name: params} if vector_name else params)
    place.write(name, points(vector_name))
    refined = retriever(place, name, similarity_top_k=20)
    improves(refined)
    (outcome,) = run([refined._collection.space()])
    assert (outcome.result.name, outcome.result.size, outcome.result.metric) == (vector_name, SIZE, distance.lower())


@pytest.mark.parametrize("datatype", ["float32", "float16", "uint8"])
def test_every_storage_type(place, datatype):
    params = models.VectorParams(size=SIZE, distance=models.Distance.EUCLID, datatype=models.Datatype(datatype))
    name = place.create(params)
    place.write(name, points(positive=datatype == "uint8"))
    improves(retriever(place, name, similarity_top_k=20), positive=datatype == "uint8")


def test_a_refined_query_is_rounded_for_whole_numbers_rather_than_cut_off(place):
    params = models.VectorParams(size=2, distance=models.Distance.DOT, datatype=models.Datatype.UINT8)
    name = place.create(params)
    place.write(name, [models.PointStruct(id=at, vector=[at, 1], payload={"text": "a"}) for at in range(3)])
    collection = retriever(place, name, text_key="text")._collection
    (outcome,) = run([collection.search(DenseQuery(np.array([1.9, -3.0])), 3)])
    assert outcome.result.scores == [4.0, 2.0, 0.0]


@pytest.mark.parametrize(
    "quantization",
    [
        models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)),
        models.ProductQuantization(product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X4)),
        models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=False)),
    ],
    ids=["scalar", "product", "binary"],
)
def test_quantised_vectors_are_rescored(place, quantization):
    name = place.create(COSINE, quantization_config=quantization)
    place.write(name, points())
    if place.kind == "edge":
        place.client.optimize(name)
    rescoring = models.QuantizationSearchParams(rescore=True, oversampling=3.0)
    kwargs = {"search_params": models.SearchParams(quantization=rescoring)}
    improves(retriever(place, name, similarity_top_k=20, vector_store_kwargs=kwargs))


@pytest.mark.parametrize("place", ["disk", "edge", "server"], indirect=True)
def test_vectors_on_disk(place):
    params = models.VectorParams(size=SIZE, distance=models.Distance.COSINE, on_disk=True)
    name = place.create(params, on_disk_payload=True)
    place.write(name, points())
    improves(retriever(place, name, similarity_top_k=20))


def test_one_of_several_vectors_has_to_be_named(place):
    name = place.create({"dense": COSINE, "other": models.VectorParams(size=4, distance=models.Distance.DOT)})
    both = [
        point.model_copy(update={"vector": {**point.vector, "other": [1.0, 0.0, 0.0, 1.0]}})
        for point in points("dense")
    ]
    place.write(name, both)
    improves(retriever(place, name, vector_name="dense", similarity_top_k=20))
    with pytest.raises(ValueError, match="'dense', 'other': name one with vector_name"):
        retriever(place, name).retrieve(question(0))
    with pytest.raises(ValueError, match="'dense', 'other': there is no 'text'; set vector_name"):
        retriever(place, name, vector_name="text").retrieve(question(0))


def test_a_name_for_a_vector_that_has_none_is_refused(place):
    name = place.create(COSINE)
    place.write(name, points())
    with pytest.raises(ValueError, match=r"there is no 'dense'; (leave out|set) vector_name"):
        retriever(place, name, vector_name="dense").retrieve(question(0))


def test_a_query_of_another_size_is_refused_before_a_search(place):
    name = place.create(COSINE)
    with pytest.raises(ValueError, match=r"3 dimensions.* has 16: set embed_model"):
        retriever(place, name).retrieve(QueryBundle("0", embedding=[1.0, 2.0, 3.0]))


def test_manhattan_distance_is_refused(place):
    name = place.create(models.VectorParams(size=SIZE, distance=models.Distance.MANHATTAN))
    with pytest.raises(ValueError, match="Manhattan distance, which cannot be refined"):
        retriever(place, name).retrieve(question(0))


def test_a_collection_that_is_not_there_is_the_clients_error(place):
    with pytest.raises(Exception, match=r"(?i)not ?found|doesn't exist"):
        RefinedRetriever.from_collection(place.client, "nowhere").retrieve(question(0))


# Payloads and ids


@pytest.mark.parametrize("uuids", [False, True])
def test_plain_payloads_become_nodes(place, uuids):
    name = place.create(COSINE)
    place.write(name, points(uuids=uuids))
    (first, *_) = retriever(place, name).refine(QueryBundle("2", embedding=vectors()[7].tolist())).nodes_before
    assert first.node.node_id == ("00000000-0000-0000-0000-000000000008" if uuids else "7")
    assert first.node.get_content() == "document 7 about 2"
    assert first.node.metadata == {"topic": "2", "number": 7, "tenant": "b", "meta": {"year": 1997}}
    (found, *_) = retriever(place, name, text_key="number").retrieve(question(0))
    assert found.node.get_content() == str(int(found.node.node_id[-3:], 16) - 1 if uuids else int(found.node.node_id))
    assert "number" not in found.node.metadata


def test_a_text_key_that_no_point_has_is_refused_with_the_fields_there_are(place):
    name = place.create(COSINE)
    place.write(name, points())
    with pytest.raises(ValueError, match=r"'abstract'; they have 'meta', 'number', 'tenant', 'topic': set text_key"):
        retriever(place, name, text_key="abstract").retrieve(question(0))


def test_a_plain_collection_read_as_llama_indexs_says_what_to_do(place):
    name = place.create(COSINE)
    place.write(name, points())
    with pytest.raises(ValueError, match=r"use RefinedRetriever\.from_collection with text_key"):
        retriever(place, name, text_key=None).retrieve(question(0))


@pytest.mark.parametrize("place", ["memory", "edge", "server"], indirect=True)
def test_nodes_of_a_collection_that_llama_index_wrote_are_those_of_its_own_query(place):
    store = QdrantVectorStore(f"llama-{place.kind}", client=place.client)
    place.made.append(store.collection_name)
    rows = vectors().tolist()
    nodes = [TextNode(text=f"n{i}", metadata={"topic": str(i % TOPICS)}, embedding=row) for i, row in enumerate(rows)]
    VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=MockEmbedding(embed_dim=SIZE),
    )
    refined = RefinedRetriever(store, grader=LabelGrader(), similarity_top_k=20, on_error="raise")
    improves(refined)
    refinement = refined.refine(question(1))
    plain = store.query(VectorStoreQuery(query_embedding=question(1).embedding, similarity_top_k=20))
    assert [entry.node for entry in refinement.nodes_before] == plain.nodes
    assert [entry.score for entry in refinement.nodes_before] == pytest.approx(plain.similarities)


# Options


def everything(refined: RefinedRetriever, topic: int = 0) -> list[dict]:
    """The metadata of all that one retrieval saw: found first, graded, returned."""
    refinement = refined.refine(question(topic))
    assert refinement.refined
    return [
        entry.node.metadata
        for part in (refinement.nodes_before, refinement.graded_nodes, refinement.nodes)
        for entry in part
    ]


def numbers_of(background: torch.Tensor) -> set[int]:
    """Which documents the background's vectors are; they may come back at unit length."""
    rows = torch.nn.functional.normalize(torch.tensor(vectors(), dtype=torch.float32))
    return set((torch.nn.functional.normalize(background) @ rows.T).argmax(1).tolist())


def test_nested_filters_hold_for_both_searches_and_the_background(place):
    name = place.create(COSINE)
    place.write(name, points())
    filters = MetadataFilters(
        condition=FilterCondition.AND,
        filters=[
            MetadataFilter(key="tenant", value="a"),
            MetadataFilters(
                condition=FilterCondition.OR,
                filters=[
                    MetadataFilter(key="number", value=60, operator=FilterOperator.LT),
                    MetadataFilter(key="meta.year", value=2005, operator=FilterOperator.GTE),
                ],
            ),
            MetadataFilters(
                condition=FilterCondition.NOT,
                filters=[MetadataFilter(key="topic", value=["4"], operator=FilterOperator.IN)],
            ),
        ],
    )

    def admitted(number: int) -> bool:
        tenant = number // TOPICS % 2 == 0
        return tenant and (number < 60 or 1990 + number % 30 >= 2005) and number % TOPICS != 4

    refined = retriever(place, name, filters=filters)
    assert all(admitted(metadata["number"]) for metadata in everything(refined))
    (outcome,) = run([refined._collection.background()])
    # Qdrant estimates how many points a filter admits.
    there = sum(admitted(number) for number in range(TOPICS * EACH))
    assert outcome.result.population == pytest.approx(there, rel=0.2)
    assert all(map(admitted, numbers_of(outcome.result.vectors.dense)))


def test_raw_filters_node_ids_and_doc_ids_narrow_the_search(place):
    name = place.create(COSINE)
    place.write(name, points())
    raw = models.Filter(must_not=[models.FieldCondition(key="tenant", match=models.MatchValue(value="b"))])
    seen = everything(retriever(place, name, vector_store_kwargs={"qdrant_filters": raw}))
    assert {metadata["tenant"] for metadata in seen} == {"a"}
    even = range(0, 60, 2)
    seen = everything(retriever(place, name, node_ids=[str(number) for number in even]))
    assert {metadata["number"] for metadata in seen} <= set(even)
    tagged = points()
    for point in tagged:
        point.payload["doc_id"] = str(point.id % 4)
    place.write(name, tagged)
    seen = everything(retriever(place, name, doc_ids=["1", "3"]))
    assert {metadata["doc_id"] for metadata in seen} == {"1", "3"}


@pytest.mark.parametrize("distance", ["Cosine", "Euclid"])
def test_a_score_threshold_holds_for_the_first_search(place, distance):
    name = place.create(models.VectorParams(size=SIZE, distance=models.Distance(distance)))
    place.write(name, points())
    plain = retriever(place, name).refine(question(0)).nodes_before
    threshold = (plain[4].score + plain[5].score) / 2
    refined = retriever(place, name, vector_store_kwargs={"score_threshold": threshold}, rounds=1)
    assert len(refined.refine(question(0)).nodes_before) == 5


def test_search_params_reach_qdrant(place):
    name = place.create(COSINE)
    place.write(name, points())
    exact = retriever(place, name, vector_store_kwargs={"search_params": {"exact": True, "hnsw_ef": 64}})
    assert exact._collection.options.search_params == models.SearchParams(exact=True, hnsw_ef=64)
    assert exact.refine(question(0)).refined


def test_what_edge_lacks_is_an_error(tmp_path):
    from llama_index_refine.qdrant.edge import EdgeClient

    client = EdgeClient(tmp_path)
    client.create_collection("c", COSINE)
    client.upsert("c", points())
    for option in ({"consistency": "all"}, {"shard_key_selector": "a"}, {"timeout": 3}):
        refined = RefinedRetriever.from_collection(client, "c", "topic", vector_store_kwargs=option)
        with pytest.raises(ValueError, match="has no meaning for Qdrant Edge"):
            refined.retrieve(question(0))
    with pytest.raises(AttributeError, match="Qdrant Edge has no 'search_matrix_pairs': it takes a server"):
        client.search_matrix_pairs("c")
    with pytest.raises(ValueError, match="replication_factor has no meaning"):
        client.create_collection("d", COSINE, replication_factor=2)
    with pytest.raises(ValueError, match="EdgeClient does not translate RecommendQuery"):
        client.query_points("c", models.RecommendQuery(recommend=models.RecommendInput(positive=[1])))


# Hybrid


HYBRID = {"vector_store_query_mode": "hybrid", "sparse_query_fn": sparse_query}


def hybrid_collection(place) -> str:
    name = place.create({"dense": COSINE}, sparse_vectors_config={"words": models.SparseVectorParams()})
    place.write(name, points("dense", sparse="words"))
    return name


@pytest.mark.parametrize("kwargs", [{}, {"alpha": 0.7}, {"vector_store_kwargs": {"fusion": "dbsf"}}], ids=repr)
def test_hybrid_refines_the_dense_part_of_a_fused_search(place, kwargs):
    improves(retriever(place, hybrid_collection(place), similarity_top_k=20, **HYBRID, **kwargs))


def test_refining_does_not_lose_keyword_matches(place):
    name = hybrid_collection(place)
    # The word 107 is in document 7 alone, which is far from the query's vector.
    encode = lambda texts: ([[107]] * len(texts), [[5.0]] * len(texts))  # noqa: E731
    hybrid = {**HYBRID, "sparse_query_fn": encode}
    refined = retriever(place, name, **hybrid, feedback_top_k=4, rounds=1)
    wanted = QueryBundle("2", embedding=question(4).embedding)
    assert "7" in [entry.node.node_id for entry in refined.refine(wanted).nodes_before]
    assert "7" in [entry.node.node_id for entry in refined.retrieve(wanted)]
    # Unless the teacher says that the word is not what was meant.
    unwanted = refined.refine(QueryBundle("4", embedding=question(4).embedding))
    assert unwanted.grade_of["7"] == 0
    assert "7" not in [entry.node.node_id for entry in unwanted.nodes]


def test_hybrid_leaves_grades_that_would_change_nothing(place):
    refined = retriever(place, hybrid_collection(place), similarity_top_k=5, trust=1.0, **HYBRID)
    found = [refined.refine(question(topic)) for topic in range(TOPICS)]
    assert all(len(each.grades) + each.saved_grades == 20 for each in found)
    assert any(each.saved_grades for each in found)


def test_hybrid_counts_keep_their_meaning(place):
    name = hybrid_collection(place)
    assert len(retriever(place, name, hybrid_top_k=7, **HYBRID).retrieve(question(0))) == 7
    dense = retriever(place, name, alpha=1.0, **HYBRID).refine(question(0)).nodes_before
    plain = retriever(place, name).refine(question(0)).nodes_before
    assert [entry.node.node_id for entry in dense] == [entry.node.node_id for entry in plain]
    one_word = retriever(place, name, alpha=0.0, sparse_top_k=1, **HYBRID).refine(question(0)).nodes_before
    assert sum(entry.score > 1e-6 for entry in one_word) == 1


def test_a_query_without_known_words_is_searched_by_its_vector(place):
    name = hybrid_collection(place)
    refinement = retriever(place, name, **HYBRID).refine(QueryBundle("none", embedding=question(0).embedding))
    plain = retriever(place, name).refine(question(0))
    assert [e.node.node_id for e in refinement.nodes_before] == [e.node.node_id for e in plain.nodes_before]


def test_points_without_a_dense_vector_are_found_but_not_graded(place):
    name = hybrid_collection(place)
    words = models.SparseVector(indices=[0], values=[9.0])
    bare = [
        models.PointStruct(id=1000 + at, vector={"words": words}, payload={"topic": "0", "meta": {"abstract": "bare"}})
        for at in range(5)
    ]
    place.write(name, bare)
    refinement = retriever(place, name, **HYBRID).refine(question(0))
    assert refinement.refined
    assert any(int(entry.node.node_id) >= 1000 for entry in refinement.nodes_before)
    assert all(int(entry.node.node_id) < 1000 for entry in refinement.graded_nodes)
    assert any(int(entry.node.node_id) >= 1000 for entry in refinement.nodes)


def test_a_collection_of_bare_points_returns_the_first_search(place, caplog):
    name = place.create({"dense": COSINE}, sparse_vectors_config={"words": models.SparseVectorParams()})
    words = models.SparseVector(indices=[0], values=[1.0])
    payload = {"topic": "0", "meta": {"abstract": "bare"}}
    place.write(name, [models.PointStruct(id=at, vector={"words": words}, payload=payload) for at in range(5)])
    refinement = retriever(place, name, **HYBRID).refine(question(0))
    assert refinement.reason == "the first search found 0 nodes with a vector, and refining needs 2"
    assert len(refinement.nodes) == 5


# Many queries, and without blocking


async def test_all_four_ways_to_run_agree(place):
    name = place.create(COSINE)
    place.write(name, points())
    # A background of all documents does not depend on the draw.
    refined = retriever(place, name, background_size=TOPICS * EACH)
    queries = [question(topic) for topic in range(TOPICS)]
    ways = [
        [refined.retrieve(query) for query in queries],
        [await refined.aretrieve(query) for query in queries],
        refined.retrieve_batch(queries, batch_size=2),
        await refined.aretrieve_batch(queries),
    ]
    listed = [[[entry.node.node_id for entry in nodes] for nodes in way] for way in ways]
    assert listed[0] == listed[1] == listed[2] == listed[3]


def test_one_bad_query_in_a_batch_fails_alone(place):
    name = place.create(COSINE)
    place.write(name, points())
    refined = retriever(place, name)
    bad = QueryBundle("bad", embedding=[1.0])
    first, second, third = refined.retrieve_batch([question(0), bad, question(1)], return_exceptions=True)
    assert len(first) == len(third) == 10
    assert isinstance(second, ValueError)
    with pytest.raises(ValueError, match="1 dimensions"):
        refined.retrieve_batch([question(0), bad])


# Arguments


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"vector_store_query_mode": "svm"}, "'svm' cannot be refined"),
        ({"vector_store_query_mode": "sparse"}, "needs sparse vectors"),
        ({"vector_store_query_mode": "hybrid"}, "needs sparse vectors"),
        ({"alpha": 0.5}, "alpha has no effect without vector_store_query_mode='hybrid'"),
        ({**HYBRID, "alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
        ({**HYBRID, "sparse_top_k": 0}, "sparse_top_k must be at least 1"),
        ({**HYBRID, "vector_store_kwargs": {"fusion": "sum"}}, "fusion must be 'rrf' or 'dbsf'"),
        ({**HYBRID, "alpha": 0.2, "vector_store_kwargs": {"fusion": "dbsf"}}, "alpha weighs ranks"),
        ({"vector_store_kwargs": {"filter": None}}, "vector_store_kwargs has no 'filter'; it takes boost"),
        ({"vector_store_kwargs": {"timeout": 0.5}}, "timeout must be whole seconds"),
        ({"vector_store_kwargs": {"consistency": "most"}}, r"one of \['majority', 'quorum', 'all'\], got 'most'"),
        ({"vector_store_kwargs": {"consistency": 0}}, "number of replicas, at least 1"),
        ({"vector_store_kwargs": {"shard_identifier": "a"}}, "pass the shard key itself as shard_key_selector"),
        ({"node_ids": []}, "node_ids is empty"),
        (
            {"node_ids": ["1"], "vector_store_kwargs": {"qdrant_filters": models.Filter()}},
            "pass qdrant_filters or node_ids, not both",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_cannot_be_met_are_refused(kwargs, message):
    client = QdrantClient(":memory:")
    with pytest.raises(ValueError, match=message):
        RefinedRetriever.from_collection(client, "c", "text", **kwargs)


def test_a_fusion_function_of_ones_own_is_refused():
    def fuse(dense, sparse, alpha=0.5, top_k=2):
        return dense

    store = QdrantVectorStore(
        "c",
        client=QdrantClient(":memory:"),
        enable_hybrid=True,
        sparse_doc_fn=sparse_query,
        sparse_query_fn=sparse_query,
        hybrid_fusion_fn=fuse,
    )
    with pytest.raises(ValueError, match="hybrid_fusion_fn is never called"):
        RefinedRetriever(store, vector_store_query_mode="hybrid")


def test_a_custom_shard_key_is_made_by_the_stores_own_function():
    store = QdrantVectorStore(
        "c",
        client=QdrantClient(":memory:"),
        sharding_method=models.ShardingMethod.CUSTOM,
        shard_key_selector_fn=lambda tenant: f"shard-{tenant}",
        shard_keys=["shard-a"],
    )
    refined = RefinedRetriever(store, vector_store_kwargs={"shard_identifier": "a", "consistency": "majority"})
    assert refined._collection.options.shard_key == "shard-a"
    assert refined._collection.options.consistency == "majority"


# What is kept between queries


class Settled(QdrantCollection):
    """Checks what it knows before every use."""

    def __init__(self, store, options=None, background_size=30):
        super().__init__(store, options, background_size, check_after=-1.0)


def test_the_background_is_shared_by_retrievers_and_drawn_anew_when_the_collection_has_grown(qdrant_server):
    from llama_index_refine.stores import open_store

    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    qdrant_server.storage.create_collection("c", COSINE)
    qdrant_server.storage.upsert("c", points())
    store = open_store(client, "c", "topic")
    for _ in range(2):
        run([QdrantCollection(store).background()])
    assert [kind for kind, _ in qdrant_server.calls].count("count") == 1
    (first,) = run([Settled(store).background()])
    qdrant_server.storage.delete("c", models.PointIdsList(points=list(range(10))))
    (second,) = run([Settled(store).background()])
    assert second.result is first.result
    qdrant_server.storage.delete("c", models.PointIdsList(points=list(range(100))))
    (third,) = run([Settled(store).background()])
    assert third.result.population == 100
    other = models.Filter(must=[models.FieldCondition(key="tenant", match=models.MatchValue(value="a"))])
    (fourth,) = run([QdrantCollection(store, SearchOptions(filter=other)).background()])
    assert fourth.result.population == 50


def test_many_queries_wait_for_one_background(qdrant_server):
    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    qdrant_server.storage.create_collection("c", COSINE)
    qdrant_server.storage.upsert("c", points())
    refined = RefinedRetriever.from_collection(client, "c", "meta.abstract", grader=LabelGrader(), rounds=1)
    refined.retrieve_batch([question(topic) for topic in range(TOPICS)])
    kinds = [kind for kind, _ in qdrant_server.calls]
    assert kinds == ["exists", "describe", "describe", "query", "count", "query", "query"]
    searches = [search for kind, body in qdrant_server.calls if kind == "query" for search in body["searches"]]
    # One list with vectors a query, one background for all, in two slices, and none in the second search. Clients that
    # know no slices try three ways at once.
    drawn = 2 if hasattr(models, "SliceCondition") else 3
    assert [search["with_vector"] for search in searches] == [True] * (TOPICS + drawn) + [False] * TOPICS


def test_a_zero_vector_is_left_out(place):
    name = place.create(COSINE)
    place.write(name, points()[:20])
    zero = models.PointStruct(id=999, vector=[0.0] * SIZE, payload={"topic": "0", "meta": {"abstract": "zero"}})
    place.write(name, [zero])
    refined = retriever(place, name, background_size=50)
    (outcome,) = run([refined._collection.background()])
    assert 999 not in outcome.result.ids
    assert refined.refine(question(0)).refined


def test_a_point_that_cannot_refine_stays_in_the_first_search_s_list(place):
    name = place.create(COSINE)
    place.write(name, points()[:20])
    zero = models.PointStruct(id=999, vector=[0.0] * SIZE, payload={"topic": "0", "meta": {"abstract": "zero"}})
    place.write(name, [zero])
    found = retriever(place, name, similarity_top_k=21, feedback_top_k=6).refine(question(0))
    assert found.refined
    assert len(found.nodes_before) == 21
    assert "zero" in [entry.node.get_content() for entry in found.nodes_before]


@pytest.mark.parametrize("place", ["memory", "rest", "grpc", "server", "server-grpc"], indirect=True)
@pytest.mark.parametrize("consistency", ["majority", models.ReadConsistencyType.QUORUM, 1], ids=str)
def test_consistency_and_timeouts_are_taken_everywhere_but_in_edge(place, consistency):
    name = place.create(COSINE)
    place.write(name, points())
    options = {"consistency": consistency, "timeout": 20}
    improves(retriever(place, name, similarity_top_k=20, vector_store_kwargs=options))


def test_threads_share_a_retriever(place):
    name = place.create(COSINE)
    place.write(name, points())
    refined = retriever(place, name)
    with ThreadPoolExecutor(4) as pool:
        refinements = list(pool.map(refined.refine, [question(topic) for topic in range(TOPICS)] * 2))
    assert all(refinement.refined for refinement in refinements)


def test_an_encoder_that_leaves_a_text_out_fails_for_that_query_alone():
    def leaves_out(texts):
        kept = [text for text in texts if text != "of the"]
        return [[1]] * len(kept), [[1.0]] * len(kept)

    store = QdrantVectorStore(
        "c", client=QdrantClient(":memory:"), enable_hybrid=True, sparse_doc_fn=leaves_out, sparse_query_fn=leaves_out
    )
    first, left_out, last = Encoding(partial(sparse_vectors_of, store)).run(["a", "of the", "b"])
    assert first.indices == last.indices == [1]
    assert str(left_out) == "sparse_query_fn must return a vector for each of 1 texts, got 0"
