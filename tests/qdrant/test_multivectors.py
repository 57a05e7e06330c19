"""Documents that are matrices, compared by MaxSim, wherever the collection lives."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.schema import QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from qdrant_client import AsyncQdrantClient, models

from llama_index_refine import QueryRefiner, RefinedRetriever, RefinementMemory
from llama_index_refine.classifier import RefinedClassifier
from llama_index_refine.scheduling import run
from llama_index_refine.similarity import maxsim
from tests.places import (
    EACH,
    SIZE,
    TOPICS,
    LabelGrader,
    Place,
    hits,
    matrices,
    matrix_query,
    points,
    question,
    vectors,
    with_matrices,
)
from tests.small_index import BrokenGrader
from tests.strict_mode import StrictMode

MAX_SIM = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
DENSE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)


def tokens(distance: str = "Cosine") -> models.VectorParams:
    return models.VectorParams(size=SIZE, distance=models.Distance(distance), multivector_config=MAX_SIM)


def both(place, distance: str = "Cosine") -> str:
    """A collection with a dense vector and a multivector."""
    name = place.create({"dense": DENSE, "tokens": tokens(distance)})
    place.write(name, with_matrices("tokens", "dense"))
    return name


def retriever(place, name, **kwargs) -> RefinedRetriever:
    fixed = {
        "early_stop": False,
        "grader": LabelGrader(),
        "on_error": "raise",
        "trust": 1.0,
        "multivector_query_fn": matrix_query,
    }
    options = {"text_key": "meta.abstract", "similarity_top_k": 10, **fixed, **kwargs}
    return RefinedRetriever.from_collection(place.client, name, **options)


def found(refined: RefinedRetriever, queries) -> tuple[int, int]:
    """How many nodes of the right topic both searches return, over some queries that are topics."""
    before, after = 0, 0
    for topic, query in enumerate(queries):
        refinement = refined.refine(query)
        assert refinement.refined
        assert len({entry.node.node_id for entry in refinement.nodes}) == refined.similarity_top_k
        before += hits(refinement.nodes_before, topic)
        after += hits(refinement.nodes, topic)
    return before, after


@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid"])
@pytest.mark.parametrize("vector_name", ["", "tokens"])
def test_a_multivector_is_searched_and_refined(place, distance, vector_name):
    params = tokens(distance)
    name = place.create({vector_name: params} if vector_name else params)
    place.write(name, with_matrices(vector_name))
    refined = retriever(place, name)
    before, after = found(refined, ["0", "1"])
    assert after > before
    (outcome,) = run([refined._collection.space()])
    space = outcome.result
    assert (space.name, space.size, space.metric, space.multivector) == (vector_name, SIZE, distance.lower(), True)


@pytest.mark.parametrize("datatype", ["float16", "uint8"])
def test_every_storage_type(place, datatype):
    params = tokens("Euclid").model_copy(update={"datatype": models.Datatype(datatype)})
    name = place.create(params)

    def whole(matrix) -> list[list[float]]:
        return np.clip(np.array(matrix) * 30 + 128, 0, 255).round().tolist()

    stored = [point.model_copy(update={"vector": whole(point.vector)}) for point in with_matrices("")]
    place.write(name, stored)

    def query(texts: list[str]) -> list[list[list[float]]]:
        return [whole(matrix) for matrix in matrix_query(texts)]

    before, after = found(retriever(place, name, multivector_query_fn=query), ["0", "1"])
    assert after > before


@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid"])
def test_scores_and_vectors_are_maxsim(place, distance):
    """The first search's scores, and those of the second at the refined matrix, of documents that were not graded."""
    name = place.create(tokens(distance))
    place.write(name, with_matrices(""))
    refined = retriever(place, name, rounds=1, feedback_top_k=6)
    refinement, feedback = run([refined._pipeline().retrieve(QueryBundle("1"))])[0].get()
    documents = [torch.from_numpy(matrix).float() for matrix in matrices()]

    def near(matrix: np.ndarray) -> torch.Tensor:
        return maxsim(torch.from_numpy(np.asarray(matrix, dtype=np.float32)), documents, distance.lower())

    first = near(np.array(matrix_query(["1"])[0]))
    first = (-2 * first).sqrt() if distance == "Euclid" else first
    # At the scale of the first search.
    second = feedback.view.scores(refinement.vector.ravel(), near(refinement.vector))
    graded = {entry.node.node_id for entry in refinement.graded_nodes}
    for entry in refinement.nodes_before:
        assert entry.score == pytest.approx(float(first[entry.node.metadata["number"]]), abs=1e-3)
    others = [entry for entry in refinement.nodes if entry.node.node_id not in graded]
    assert others
    for entry in others:
        assert entry.score == pytest.approx(float(second[entry.node.metadata["number"]]), abs=1e-3)
    assert refinement.vector.shape == refinement.query.shape == (2, SIZE)
    assert refinement.documents.shape == (6, 2, SIZE)
    assert refinement.background.shape[1:] == (2, SIZE)
    assert refinement.metric == distance.lower()
    assert list(refinement.vectors) == [""]
    np.testing.assert_allclose(refinement.vectors[""], refinement.vector, atol=1e-6)


def test_after_a_dense_search_both_queries_are_refined(place):
    name = both(place)
    options = {"vector_name": "tokens", "prefetch_vector_name": "dense", "vector_store_kwargs": {"prefetch_limit": 40}}
    refined = retriever(place, name, **options)
    before, after = found(refined, [question(topic) for topic in range(2)])
    assert after > before
    refinement = refined.refine(question(0))
    assert refinement.vector.shape == (2, SIZE)
    assert {name: np.shape(one) for name, one in refinement.vectors.items()} == {"tokens": (2, SIZE), "dense": (SIZE,)}
    topic = vectors()[0::TOPICS].mean(0)
    near = [float(one @ topic / np.linalg.norm(one)) for one in (question(0).embedding, refinement.vectors["dense"])]
    assert near[1] > near[0]


def test_what_the_dense_search_misses_is_not_compared(place):
    name = both(place)
    options = {"vector_name": "tokens", "prefetch_vector_name": "dense", "trust": 0.0, "feedback_top_k": 2}
    few = retriever(place, name, **options, similarity_top_k=4, vector_store_kwargs={"prefetch_limit": 8})
    rows = vectors()[: TOPICS * EACH // 2]
    query = np.array(question(0).embedding)
    nearest = np.argsort(-(rows @ query) / np.linalg.norm(rows, axis=1))[:8]
    assert {entry.node.metadata["number"] for entry in few.retrieve(question(0))} <= {*nearest.tolist()}


@pytest.mark.parametrize("prefetch", [None, "dense"])
def test_no_trust_returns_the_first_search(place, prefetch):
    name = both(place)
    refined = retriever(place, name, vector_name="tokens", prefetch_vector_name=prefetch, trust=0.0)
    refinement = refined.refine(question(2) if prefetch else "2")
    assert refinement.refined
    ids = [[entry.node.node_id for entry in nodes] for nodes in (refinement.nodes_before, refinement.nodes)]
    assert ids[0] == ids[1]
    scores = [[entry.score for entry in nodes] for nodes in (refinement.nodes_before, refinement.nodes)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_filters_thresholds_and_examples_hold(place):
    name = both(place)
    admitted = models.Filter(must=[models.FieldCondition(key="tenant", match=models.MatchValue(value="a"))])
    kwargs = {"qdrant_filters": admitted}
    plain = retriever(place, name, vector_name="tokens", vector_store_kwargs=kwargs)
    nodes = plain.retrieve("1")
    assert {entry.node.metadata["tenant"] for entry in nodes} == {"a"}
    worst = sorted(entry.score for entry in nodes)[len(nodes) // 2]
    kwargs = {**kwargs, "score_threshold": worst}
    strict = retriever(place, name, vector_name="tokens", vector_store_kwargs=kwargs, feedback_top_k=4)
    assert all(entry.score > worst for entry in strict.retrieve("1"))
    like = [str(topic) for topic in range(1, 4 * TOPICS, TOPICS)]
    refinement = plain.refine("1", like=like)
    assert {*like} & {entry.node_id for entry in refinement.graded_nodes}


@pytest.mark.parametrize("prefetch", [None, "dense"])
def test_all_ways_to_call_agree(place, prefetch):
    name = both(place)
    queries = [question(topic) if prefetch else str(topic) for topic in range(2)]

    def fresh() -> RefinedRetriever:
        return retriever(place, name, vector_name="tokens", prefetch_vector_name=prefetch)

    ids = lambda nodes: [entry.node.node_id for entry in nodes]  # noqa: E731
    one = [ids(fresh().retrieve(query)) for query in queries]
    assert [ids(nodes) for nodes in fresh().retrieve_batch(queries)] == one
    assert [ids(nodes) for nodes in asyncio.run(fresh().aretrieve_batch(queries))] == one
    assert ids(asyncio.run(fresh().aretrieve(queries[0]))) == one[0]


@pytest.mark.parametrize("rounds", [1, 3])
def test_only_graded_matrices_cross_the_network(place, rounds):
    """A search brings as many matrices as are graded next, and the background is drawn once, of few documents."""
    if place.server is None:
        pytest.skip("counts what a server of ours answers")
    name = place.create(tokens())
    place.write(name, with_matrices(""))
    refined = retriever(place, name, rounds=rounds, early_stop=True, feedback_top_k=12, similarity_top_k=12)
    refined.retrieve("1")
    (outcome,) = run([refined._collection.background()])
    assert len(outcome.result.ids) == 15
    asked = len(place.server.calls)
    refinement = refined.refine("0")
    assert (refinement.rounds > 1) == (rounds > 1)
    brought = 0
    for kind, body in place.server.calls[asked:]:
        if kind == "query":
            brought += _matrices_asked_for(body, place.kind)
    assert brought == len(refinement.grades)


@pytest.mark.parametrize("place", ["rest", "grpc", "server", "server-grpc"], indirect=True)
@pytest.mark.parametrize("limits", [{"condition_max_size": 5}, {"filter_max_conditions": 0}, {"max_query_limit": 15}])
@pytest.mark.parametrize("prefetch", [None, "dense"])
def test_keeps_to_strict_mode(place, limits, prefetch):
    config = models.StrictModeConfig(enabled=True, unindexed_filtering_retrieve=True, **limits)
    if place.server:
        place.server.strict = StrictMode(config)
    strict = {} if place.server else {"strict_mode_config": config}
    name = place.create({"dense": DENSE, "tokens": tokens()}, **strict)
    place.write(name, with_matrices("tokens", "dense"))
    refined = retriever(place, name, vector_name="tokens", prefetch_vector_name=prefetch, similarity_top_k=10)
    for topic in range(2):
        refinement = refined.refine(question(topic) if prefetch else str(topic))
        assert refinement.refined
        assert len(refinement.background) > 2


def _matrices_asked_for(body, kind: str) -> int:
    if kind == "rest":
        return sum(one["limit"] for one in body["searches"] if one.get("with_vector"))
    return sum(one.limit for one in body.query_points if one.with_vectors.enable or one.with_vectors.include.names)


def test_a_matrix_may_come_with_the_query(place):
    name = place.create(tokens())
    place.write(name, with_matrices(""))
    plain = retriever(place, name)

    def never(texts: list[str]) -> list[list[list[float]]]:
        raise AssertionError(texts)

    given = retriever(place, name, multivector_query_fn=never)
    matrix = matrix_query(["1"])[0]
    nodes = given.retrieve(QueryBundle("1", embedding=matrix))
    assert [entry.node_id for entry in nodes] == [entry.node_id for entry in plain.retrieve("1")]
    with pytest.raises(ValueError, match=r"the query's embedding must be a matrix, \(T, d\)"):
        given.retrieve(QueryBundle("1", embedding=[1.0] * SIZE))
    with pytest.raises(ValueError, match=r"matrix has vectors of 3 dimensions, the multivector '' .* has 16"):
        given.retrieve(QueryBundle("1", embedding=[[1.0, 2.0, 3.0]]))
    with pytest.raises(ValueError, match="the query's embedding holds NaN"):
        given.retrieve(QueryBundle("1", embedding=[[float("nan")] * SIZE]))


def test_a_document_without_a_multivector_is_passed_over(place):
    place.needs_a_client("1.20", "memory rest grpc", "fails by itself on a document without its multivector")
    name = both(place)
    place.write(name, [models.PointStruct(id=1000, vector={"dense": question(0).embedding}, payload={"topic": "0"})])
    for prefetch in (None, "dense"):
        refined = retriever(place, name, vector_name="tokens", prefetch_vector_name=prefetch)
        nodes = refined.retrieve(question(0) if prefetch else "0")
        assert len(nodes) == 10
        assert "1000" not in {entry.node_id for entry in nodes}


def test_the_errors_say_what_a_collection_has_and_what_it_is_for(place):
    name = place.create(
        {"dense": DENSE, "late": tokens(), "later": tokens()},
        sparse_vectors_config={"bm25": models.SparseVectorParams()},
    )
    what = (
        r"'bm25' \(sparse, for sparse_query_fn\), 'dense', 'late' \(a multivector, for multivector_query_fn\), "
        r"'later' \(a multivector, for multivector_query_fn\)"
    )
    for options, message in (
        ({}, f"has the vectors {what}: name one with vector_name"),
        ({"vector_name": "dense"}, f"'dense' .* has one vector per point: leave it out, or set vector_name; .* {what}"),
        ({"vector_name": "lat"}, f"{what}: there is no 'lat'; set vector_name"),
        (
            {"vector_name": "late", "prefetch_vector_name": "later"},
            "'later' .* only a dense one chooses",
        ),
        ({"vector_name": "late", "prefetch_vector_name": "x"}, "there is no 'x'; set prefetch_vector_name"),
        (
            {"vector_name": "late", "multivector_query_fn": None},
            f"'late' .* is a multivector: give multivector_query_fn to search it, or set vector_name; .* {what}",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            retriever(place, name, **options).retrieve("0" if len(options) < 2 else question(0))
    only = place.create({"late": tokens()})
    with pytest.raises(ValueError, match=r"'late' .*: each of them is a multivector or sparse"):
        retriever(place, only, multivector_query_fn=None).retrieve(question(0))


def test_a_dense_vector_beside_a_multivector_is_searched_as_any(place):
    name = both(place)
    before, after = found(retriever(place, name, multivector_query_fn=None), map(question, range(2)))
    assert after > before


@pytest.mark.parametrize("place", ["memory", "grpc"], indirect=True)
def test_a_collection_rebuilt_with_another_model_is_noticed(place):
    """The matrices of a background that no longer are those of its documents are drawn again."""
    name = place.create(tokens())
    place.write(name, with_matrices(""))
    refined = retriever(place, name)
    refined.retrieve("0")
    (outcome,) = run([refined._collection.background()])
    turned = with_matrices("")
    for point in turned:
        point.vector = [row[::-1] for row in point.vector]
    place.write(name, turned)
    refined.refine("0")
    (again,) = run([refined._collection.background()])
    assert again.result.ids == outcome.result.ids
    first, second = (one.result.vectors.matrices[0] for one in (outcome, again))
    np.testing.assert_allclose(second.numpy(), first.flip(-1).numpy(), atol=1e-6)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda texts: [], "must return a matrix for each of 1 texts, got 0"),
        (lambda texts: None, "must return a matrix for each of 1 texts, got NoneType"),
        (lambda texts: [[1.0] * SIZE], r"must be a matrix, \(T, d\)"),
        (lambda texts: [[]], r"must be a matrix, \(T, d\)"),
        (lambda texts: [[["a"]]], "must be a matrix of numbers"),
        (lambda texts: [[[1.0], [1.0, 2.0]]], "must be a matrix of numbers"),
        (lambda texts: [[[float("inf")] * SIZE]], "holds NaN or infinity"),
        (lambda texts: [[[1.0] * 3]], "vectors of 3 dimensions"),
    ],
)
def test_what_the_function_returns_is_looked_at(place, returns, message):
    name = place.create(tokens())
    place.write(name, with_matrices(""))
    with pytest.raises(ValueError, match=message):
        retriever(place, name, multivector_query_fn=returns).retrieve("0")


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_tensors_and_several_texts_make_one_matrix(place):
    name = place.create(tokens())
    place.write(name, with_matrices(""))
    refined = retriever(
        place, name, multivector_query_fn=lambda texts: [torch.tensor(one) for one in matrix_query(texts)]
    )
    refinement = refined.refine(QueryBundle("0", custom_embedding_strs=["0", "1"]))
    assert refinement.query.shape == (4, SIZE)
    with pytest.raises(ValueError, match="the query has no text"):
        refined.retrieve(QueryBundle("", image_path="picture.png"))


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_one_bad_query_does_not_fail_its_batch(place):
    name = place.create(tokens())
    place.write(name, with_matrices(""))

    def sometimes(texts: list[str]) -> list[list[list[float]]]:
        return [[[1.0]] if text == "4" else matrix_query([text])[0] for text in texts]

    results = retriever(place, name, multivector_query_fn=sometimes).refine_batch(["0", "4"], return_exceptions=True)
    assert results[0].refined
    assert isinstance(results[1], ValueError)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_queries_of_different_lengths_share_a_batch(place):
    name = place.create(tokens())
    place.write(name, with_matrices(""))

    calls: list[list[str]] = []

    def longer(texts: list[str]) -> list[list[list[float]]]:
        calls.append(texts)
        return [matrix_query([text])[0] * (1 + int(text)) for text in texts]

    refined = retriever(place, name, multivector_query_fn=longer)
    shapes = [refinement.vector.shape for refinement in refined.refine_batch(["0", "1", "2"])]
    assert shapes == [(2, SIZE), (4, SIZE), (6, SIZE)]
    assert calls == [["0", "1", "2"]]


@pytest.mark.parametrize("place", ["memory"], indirect=True)
@pytest.mark.parametrize("prefetch", [None, "dense"])
def test_without_a_teacher_the_first_search_stands(place, prefetch):
    name = both(place)
    options = {"vector_name": "tokens", "prefetch_vector_name": prefetch, "grader": BrokenGrader()}
    refinement = retriever(place, name, **options, on_error="fallback").refine(question(0) if prefetch else "0")
    assert "the teacher is out" in refinement.reason
    assert list(refinement.nodes) == list(refinement.nodes_before)
    assert refinement.query.shape == refinement.vector.shape == (2, SIZE)
    assert refinement.documents.shape == (0, 2, SIZE)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_query_of_several_questions_has_a_matrix_for_each(place):
    name = place.create(tokens())
    place.write(name, with_matrices(""))
    parts = [SubQuestion(sub_question=text, tool_name="retriever") for text in ("0", "1")]

    class Generator(BaseQuestionGenerator):
        def generate(self, tools, query):
            return parts

        async def agenerate(self, tools, query):
            return parts

        def _get_prompts(self):
            return {}

        def _update_prompts(self, prompts):
            pass

    refinement = retriever(place, name, decompose=Generator()).refine("0 and 1")
    assert [part.vector.shape for part in refinement.parts] == [(2, SIZE)] * 2
    topics = {entry.node.metadata["topic"] for entry in refinement.nodes[:10]}
    assert {"0", "1"} <= topics


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_an_empty_query_searches_nothing(place):
    name = place.create(tokens())
    place.write(name, with_matrices(""))
    refinement = retriever(place, name).refine("  ")
    assert refinement.reason == "the query is empty"


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_refiner_of_ones_own_is_for_the_collections_distance(place):
    name = both(place)
    options = {"vector_name": "tokens", "prefetch_vector_name": "dense", "refiner": QueryRefiner(reach=3.0)}
    assert retriever(place, name, **options).refine(question(0)).refined
    with pytest.raises(ValueError, match="refiner is for dot, the collection is cosine"):
        retriever(place, name, vector_name="tokens", refiner=QueryRefiner("dot")).refine("0")


@pytest.mark.parametrize("place", ["memory"], indirect=True)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multivector_query_fn": None, "prefetch_vector_name": "dense"}, "prefetch_vector_name has no effect"),
        ({"multivector_query_fn": "model"}, "multivector_query_fn must be a function"),
        ({"vector_store_kwargs": {"prefetch_limit": 10}}, "prefetch_limit has no effect"),
        (
            {"prefetch_vector_name": "dense", "vector_store_kwargs": {"prefetch_limit": 0}},
            "prefetch_limit must be at least 1",
        ),
        ({"score": "probability"}, "score='probability' .* multivector_query_fn"),
        ({"memory": RefinementMemory(SimpleKVStore())}, "memory .* multivector_query_fn"),
        ({"refiner": QueryRefiner.paper()}, "refiner is a PublishedRefiner, which cannot refine matrices"),
        (
            {
                "vector_store_query_mode": "hybrid",
                "sparse_query_fn": lambda texts: ([[0]] * len(texts), [[1.0]] * len(texts)),
            },
            "multivector_query_fn .* leave out vector_store_query_mode='hybrid'",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_at_construction(place, options, message):
    name = place.create({"dense": DENSE, "tokens": tokens()})
    with pytest.raises(ValueError, match=message):
        retriever(place, name, vector_name="tokens", **options)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_selections_and_labels_take_vectors(place):
    name = place.create(tokens())
    place.write(name, with_matrices(""))
    refined = retriever(place, name)
    with pytest.raises(ValueError, match=r"select .* multivector_query_fn"):
        refined.select("0")
    with pytest.raises(ValueError, match="retriever must not have a multivector_query_fn"):
        RefinedClassifier(refined).fit(["0", "1"])


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_an_asynchronous_client_alone_is_enough(place):
    name = place.create(tokens())
    place.write(name, with_matrices(""))

    async def retrieved() -> list[str]:
        client = AsyncQdrantClient(":memory:")
        await client.create_collection(name, tokens())
        await client.upsert(name, with_matrices(""))
        nodes = await retriever(Place("memory", client, client), name).aretrieve("0")
        return [entry.node_id for entry in nodes]

    assert asyncio.run(retrieved()) == [entry.node_id for entry in retriever(place, name).retrieve("0")]


def test_points_and_matrices_of_the_tests_fit_together():
    assert len(matrices()) == len(with_matrices("")) == len(points()) / 2 == TOPICS * EACH / 2
