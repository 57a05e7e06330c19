"""Every kind of vector is refined, wherever the collection lives: sparse ones, and sparse beside dense."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from llama_index_refine import BaseGrader, RefinedClassifier, RefinedRetriever, RefinementMemory
from llama_index_refine.qdrant.views.sparse import MOST_TERMS
from llama_index_refine.scheduling import run
from tests.places import SIZE, TOPICS, LabelGrader, hits, points, question, vectors

EACH, TERMS = 40, 300
DISTANCES = {"Cosine": models.Distance.COSINE, "Dot": models.Distance.DOT, "Euclid": models.Distance.EUCLID}


def words_of(number: int) -> models.SparseVector:
    """A document's words: some of its topic's fifteen, some that are in all topics, and one of its own."""
    rng = np.random.default_rng(number)
    topical = 20 * (number % TOPICS) + rng.choice(15, 5, replace=False)
    common = 200 + rng.choice(30, 12, replace=False)
    indices = [*topical.tolist(), *common.tolist(), 1000 + number]
    return models.SparseVector(indices=indices, values=(0.5 + rng.random(len(indices))).tolist())


def encode(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    """A query has two of its topic's words, one of the next one's, and two that say nothing."""
    indices = []
    for text in texts:
        topic = int(text) if text.isdecimal() else 0
        indices.append([20 * topic, 20 * topic + 1, 20 * ((topic + 1) % TOPICS), 200, 201] if text.isdecimal() else [])
    return indices, [[1.0] * len(row) for row in indices]


def documents(dense: str = "dense") -> list[models.PointStruct]:
    made = points(dense)
    for at, point in enumerate(made):
        point.vector = {dense: point.vector[dense], "words": words_of(at)} if dense else {"words": words_of(at)}
    return made


def fill(place, distance: str | None = "Cosine", idf: bool = False) -> str:
    """Make a collection with both kinds of vectors; with sparse ones alone where there is no distance."""
    if distance:
        place.needs_a_client("1.20", "grpc", "misreads the formulas that a gRPC server is sent")
    sparse = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF if idf else None)}
    params = {"dense": models.VectorParams(size=SIZE, distance=DISTANCES[distance])} if distance else {}
    name = place.create(params, sparse_vectors_config=sparse)
    made = documents()
    if not distance:
        for point in made:
            point.vector = {"words": point.vector["words"]}
    place.write(name, made)
    return name


def retriever(client, name, mode="hybrid", **kwargs) -> RefinedRetriever:
    options = {
        "text_key": "meta.abstract",
        "sparse_query_fn": encode,
        "vector_store_query_mode": mode,
        "grader": LabelGrader(),
        "on_error": "raise",
        "trust": 1.0,
        "similarity_top_k": 20,
        **kwargs,
    }
    return RefinedRetriever.from_collection(client, name, **options)


def found(refined: RefinedRetriever) -> tuple[int, int]:
    """How many nodes of their topic all queries have found before and after."""
    before, after = 0, 0
    for topic in range(TOPICS):
        refinement = refined.refine(question(topic))
        assert refinement.refined, refinement.reason
        assert len({entry.node_id for entry in refinement.nodes}) == refined.similarity_top_k
        before += hits(refinement.nodes_before, topic)
        after += hits(refinement.nodes, topic)
    return before, after


def ids(nodes) -> list[str]:
    return [entry.node_id for entry in nodes]


# Both halves


@pytest.mark.parametrize("idf", [False, True], ids=["plain", "idf"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_both_halves_of_a_hybrid_search_are_refined(place, distance, idf):
    name = fill(place, distance, idf)
    before, both = found(retriever(place.client, name, early_stop=False))
    _, dense = found(retriever(place.client, name, "default", early_stop=False))
    assert both > before
    assert both > dense
    refinement = retriever(place.client, name).refine(question(0))
    words = refinement.vectors["words"]
    topical = {20 * 0 + at for at in range(15)}
    assert len(topical & {*words.indices}) > 5
    assert len(refinement.vectors["dense"]) == SIZE


@pytest.mark.parametrize("distance", DISTANCES)
def test_scores_of_the_second_search_are_what_rows_say(place, distance):
    """One request adds up both similarities, at the scale of the rows that were refined."""
    refined = retriever(place.client, fill(place, distance), similarity_top_k=60)
    (outcome,) = run([refined._pipeline().retrieve(question(1))])
    refinement, feedback = outcome.get()
    (searched,) = run([refined._collection.search(feedback.view.refined(refinement.vector), 60)])
    given = dict(zip(searched.get().ids, searched.get().scores, strict=True))
    known = dict(zip(feedback.ids, (refinement.documents @ refinement.vector).tolist(), strict=True))
    assert known.keys() & given.keys()
    # A cut query scores others a little.
    for point in known.keys() & given.keys():
        assert given[point] == pytest.approx(known[point], abs=0.35 * refinement.tau + 0.02 * abs(known[point]))
    # Scores that are sums cannot be compared with ranks that were fused: each place has its score of the first search.
    first = [entry.score for entry in refinement.nodes_before]
    assert [entry.score for entry in refinement.nodes] == first[: len(refinement.nodes)]


def test_alpha_is_the_dense_halfs_share(place):
    name = fill(place)
    dense, sparse = (retriever(place.client, name, mode) for mode in ("default", "sparse"))
    for topic in range(TOPICS):
        alone = retriever(place.client, name, alpha=1.0).refine(question(topic))
        assert {*ids(alone.nodes)} == {*ids(dense.refine(question(topic)).nodes)}
        assert not alone.vectors["words"].indices
    words = retriever(place.client, name, alpha=0.0).refine(question(0))
    overlap = {*ids(words.nodes)} & {*ids(sparse.refine(question(0)).nodes)}
    assert len(overlap) >= 14
    shares = [
        len({*ids(retriever(place.client, name, alpha=alpha).refine(question(0)).nodes)} & {*ids(words.nodes)})
        for alpha in (0.3, 0.9)
    ]
    assert shares[0] >= shares[1]


@pytest.mark.parametrize("mode", ["default", "sparse", "hybrid"])
def test_zero_trust_returns_the_first_search(place, mode):
    name = fill(place, "Dot", idf=True)
    for alpha in (None, 0.3) if mode == "hybrid" else (None,):
        refined = retriever(place.client, name, mode, trust=0.0, alpha=alpha, similarity_top_k=10)
        refinement = refined.refine(question(2))
        assert refinement.refined
        assert ids(refinement.nodes) == ids(refinement.nodes_before)


def test_grades_that_do_not_differ_leave_both_queries_where_they_are(place):
    class Naysayer(BaseGrader):
        def grade(self, query, nodes):
            return [0.0] * len(nodes)

    refinement = retriever(place.client, fill(place), grader=Naysayer()).refine(question(0))
    assert len(refinement.graded_nodes) == 20
    assert np.allclose(refinement.vector, refinement.query, rtol=1e-4)
    assert refinement.vectors["words"].indices == encode(["0"])[0][0]
    assert np.allclose(refinement.vectors["dense"], question(0).embedding, atol=1e-5)


# Sparse alone


@pytest.mark.parametrize("idf", [False, True], ids=["plain", "idf"])
def test_a_collection_of_sparse_vectors_alone_is_refined(place, idf):
    refined = retriever(place.client, fill(place, None, idf), "default")
    before, after = found(refined)
    assert after > before + 10
    refinement = refined.refine("3")
    assert [*refinement.vectors] == ["words"]
    weights = dict(zip(refinement.vectors["words"].indices, refinement.vectors["words"].values, strict=True))
    assert sum(60 <= term < 75 for term in weights) > 5
    assert refinement.metric == "dot"
    assert len({len(row) for row in refinement.path}) == 1
    assert len(refinement.path[-1]) == len(refinement.vector) == refinement.documents.shape[1]


def test_a_store_of_llama_index_on_sparse_vectors_alone_is_refined():
    client = QdrantClient(":memory:")
    client.create_collection("c", {}, sparse_vectors_config={"words": models.SparseVectorParams()})
    for at, point in enumerate(documents("")):
        node = TextNode(id_=str(uuid.UUID(int=at + 1)), text="t", metadata={"topic": str(at % TOPICS)})
        payload = node_to_metadata_dict(node)
        client.upsert("c", [models.PointStruct(id=node.node_id, vector=point.vector, payload=payload)])
    store = QdrantVectorStore("c", client=client, enable_hybrid=True, sparse_doc_fn=encode, sparse_query_fn=encode)
    refined = RefinedRetriever(store, grader=LabelGrader(), on_error="raise", similarity_top_k=20, trust=1.0)
    before, after = found(refined)
    assert after > before + 10


def test_the_sparse_vector_of_a_collection_with_both_is_searched_alone_where_it_is_named(place):
    name = fill(place)
    by_mode = retriever(place.client, name, "sparse")
    by_name = retriever(place.client, name, "default", vector_name="words")
    assert ids(by_mode.refine("1").nodes) == ids(by_name.refine("1").nodes)
    assert ids(by_mode.refine("1").nodes) == ids(retriever(place.client, fill(place, None), "default").retrieve("1"))


def test_examples_without_a_word_in_common_are_fetched_too(place):
    refined = retriever(place.client, fill(place, None), "default", feedback_top_k=4, rounds=1)
    there = {*ids(refined.refine("0").nodes_before)}
    other = next(str(at) for at in range(TOPICS * EACH) if at % TOPICS == 3 and str(at) not in there)
    refinement = refined.refine("0", like=[other])
    assert other in ids(refinement.graded_nodes)
    assert not refinement.failures


def test_no_words_find_nothing(place):
    refinement = retriever(place.client, fill(place, None), "default", on_error="fallback").refine("none of them")
    assert refinement.nodes == []
    assert "found 0 nodes" in refinement.reason


# What is sent


def test_refined_sparse_queries_are_short_and_not_negative(qdrant_server):
    qdrant_server.storage.create_collection(
        "c",
        {"dense": models.VectorParams(size=SIZE, distance=models.Distance.COSINE)},
        sparse_vectors_config={"words": models.SparseVectorParams()},
    )
    rng = np.random.default_rng(0)
    made = documents()
    for point in made:
        more = 2000 + rng.choice(4000, 60, replace=False)
        words = point.vector["words"]
        words.indices += more.tolist()
        words.values += [1.0] * len(more)
    qdrant_server.storage.upsert("c", made)
    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    for mode in ("sparse", "hybrid"):
        refinement = retriever(client, "c", mode).refine(question(0))
        words = refinement.vectors["words"]
        assert len(words.indices) == len({*words.indices}) == MOST_TERMS
        assert min(words.values) > 0


def test_hybrid_asks_no_more_often_than_dense(qdrant_server):
    qdrant_server.storage.create_collection(
        "c",
        {"dense": models.VectorParams(size=SIZE, distance=models.Distance.COSINE)},
        sparse_vectors_config={"words": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
    qdrant_server.storage.upsert("c", documents())
    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    asked = {}
    for mode in ("default", "sparse", "hybrid"):
        refined = retriever(client, "c", mode, early_stop=False)
        for turn in ("first", "next"):
            qdrant_server.calls.clear()
            assert refined.refine(question(1)).rounds == 3
            asked[mode, turn] = len(qdrant_server.calls)
    assert asked["hybrid", "first"] <= asked["default", "first"]
    assert asked["hybrid", "next"] <= asked["default", "next"]
    assert asked["sparse", "next"] <= asked["default", "next"]


# What is refused


def test_what_a_collection_has_is_listed_where_none_was_named_that_fits(place):
    sparse = {"words": models.SparseVectorParams(), "more": models.SparseVectorParams()}
    params = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
    name = place.create({"a": params, "b": params}, sparse_vectors_config=sparse)
    place.write(name, [models.PointStruct(id=1, vector={"a": [1.0] * SIZE}, payload={"text": "x"})])
    has = r"has the vectors 'a', 'b', 'more' \(sparse, for sparse_query_fn\), 'words' \(sparse, for sparse_query_fn\): "
    asked = QueryBundle("1", embedding=[1.0] * SIZE)
    for mode, kwargs, advice in (
        ("default", {}, "name one with vector_name"),
        ("default", {"vector_name": "c"}, "there is no 'c'; set vector_name"),
        ("hybrid", {"vector_name": "a"}, "name one with sparse_vector_name"),
        ("sparse", {"sparse_vector_name": "c"}, "there is no sparse 'c'; set sparse_vector_name"),
    ):
        with pytest.raises(ValueError, match=has + advice):
            retriever(place.client, name, mode, text_key="text", **kwargs).refine(asked)
    with pytest.raises(ValueError, match=has + "to search by a sparse one, give sparse_query_fn"):
        RefinedRetriever.from_collection(place.client, name, "text", vector_name="words").refine(asked)


def test_a_collection_of_sparse_vectors_needs_what_encodes_queries(place):
    refined = RefinedRetriever.from_collection(place.client, fill(place, None), "topic", grader=LabelGrader())
    with pytest.raises(ValueError, match=r"'words' .*: to search by a sparse one, give sparse_query_fn"):
        refined.refine(question(0))


def test_a_dense_collection_has_no_sparse_vector_to_search(place):
    name = place.create(models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    place.write(name, points())
    for mode in ("sparse", "hybrid"):
        with pytest.raises(ValueError, match="none of them is sparse"):
            retriever(place.client, name, mode).refine(question(0))


def test_what_needs_similarities_of_all_documents_is_refused(place):
    alone = retriever(place.client, fill(place, None), "default")
    with pytest.raises(ValueError, match="select and score='probability' need the similarity of every document"):
        alone.select("1")
    with pytest.raises(ValueError, match="retriever must search a dense vector alone"):
        RefinedClassifier(alone).fit(["1", "2"])
    with pytest.raises(ValueError, match=r"score='probability' needs .* vector_store_query_mode='sparse' finds some"):
        retriever(place.client, "c", "sparse", score="probability")
    by_chance = retriever(place.client, fill(place, None), "default", score="probability")
    with pytest.raises(ValueError, match="select and score='probability'"):
        by_chance.refine("1")


def test_a_memory_needs_a_dense_vector_and_serves_a_hybrid_search(place):
    name = fill(place)
    grader, memory = LabelGrader(), RefinementMemory(SimpleKVStore())
    with pytest.raises(ValueError, match="memory compares queries by their dense vectors"):
        retriever(place.client, name, "sparse", memory=memory).refine("1")
    refined = retriever(place.client, name, memory=memory, grader=grader)
    first = refined.refine(question(1))
    grader.seen.clear()
    again = refined.refine(question(1))
    assert again.remembered == len(first.grades)
    # Documents of one fused score come in any order, so that one may be new among the first.
    assert len(grader.seen) <= 2
    assert len({*ids(again.nodes)} & {*ids(first.nodes)}) >= 18


def test_a_sparse_query_mode_needs_an_encoder(place):
    name = fill(place)
    with pytest.raises(ValueError, match="vector_store_query_mode='sparse' needs sparse vectors"):
        RefinedRetriever.from_collection(place.client, name, "topic", vector_store_query_mode="sparse")


def test_the_planted_words_say_more_than_chance():
    shared = {*words_of(0).indices} & {*words_of(TOPICS).indices}
    assert vectors().shape == (TOPICS * EACH, SIZE)
    assert shared
