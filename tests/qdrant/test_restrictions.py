"""What restricts a search holds for everything that enters a result, however it comes in."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import QueryBundle
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index_refine import BaseGrader, RefinedRetriever
from llama_index_refine.graders.ensembles import AverageGrader
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.scheduling import arun, run
from tests.places import SIZE, TOPICS, points, question, sparse_query, vectors

COUNT = 80
NUMBERS = range(COUNT)
DENSE = {"dense": models.VectorParams(size=SIZE, distance=models.Distance.COSINE)}
WORDS = {"words": models.SparseVectorParams()}
JUDGEMENTS = {str(topic): {str(at): float(at % TOPICS == topic) for at in NUMBERS} for topic in range(TOPICS)}


class Watching(BaseGrader):
    """A teacher that knows the topics, and remembers which documents it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []

    def grade(self, query, nodes):
        self.shown += [node.metadata["number"] for node in nodes]
        return [float(node.metadata["topic"] == query.query_str) for node in nodes]


class Told(FeedbackGrader):
    """Judgements alone, which remember whom they were asked about."""

    def __init__(self, judgements, teacher=None) -> None:
        super().__init__(judgements, teacher)
        self.shown: list[int] = []

    async def _combine(self, query, nodes):
        self.shown += [node.metadata["number"] for node in nodes]
        return await super()._combine(query, nodes)


def documents() -> list[models.PointStruct]:
    made = points("dense", sparse="words")[:COUNT]
    for point in made:
        point.payload["doc_id"] = f"d{point.id % 7}"
        point.payload["tags"] = [f"t{point.id % 3}", f"t{point.id % 4}"]
    return made


def retriever(client, name: str, grader: BaseGrader, **kwargs) -> RefinedRetriever:
    options = {"similarity_top_k": 10, "trust": 1.0, **kwargs}
    return RefinedRetriever.from_collection(client, name, "meta.abstract", grader=grader, **options)


def numbers(entries) -> list[int]:
    return [entry.node.metadata["number"] for entry in entries]


def seen(refinement, grader) -> set[int]:
    """Every document that was found, graded, shown to the teacher or returned."""
    parts = (refinement.nodes_before, refinement.graded_nodes, refinement.nodes)
    return {number for part in parts for number in numbers(part)} | set(grader.shown)


TENANT = MetadataFilters(filters=[MetadataFilter(key="tenant", value="a")])
RAW = models.Filter(must_not=[models.FieldCondition(key="tenant", match=models.MatchValue(value="b"))])
RESTRICTIONS = {
    "filters": ({"filters": TENANT}, lambda at: at // TOPICS % 2 == 0),
    "node_ids": ({"node_ids": [str(at) for at in range(0, 60, 2)]}, lambda at: at in range(0, 60, 2)),
    "doc_ids": ({"doc_ids": ["d1", "d2"]}, lambda at: at % 7 in (1, 2)),
    "raw": ({"vector_store_kwargs": {"qdrant_filters": RAW}}, lambda at: at // TOPICS % 2 == 0),
    "both": ({"filters": TENANT, "doc_ids": ["d1", "d2"]}, lambda at: at // TOPICS % 2 == 0 and at % 7 in (1, 2)),
}


@pytest.mark.parametrize("restriction", RESTRICTIONS)
async def test_a_judged_node_outside_is_neither_graded_nor_returned(place, restriction):
    kwargs, inside = RESTRICTIONS[restriction]
    name = place.create(DENSE, sparse_vectors_config=WORDS)
    place.write(name, documents())
    grader = Told(JUDGEMENTS)
    refined = retriever(place.client, name, grader, **kwargs, on_error="raise")
    for refinement in (refined.refine(question(0)), await refined.arefine(question(0))):
        assert refinement.refined
        assert all(map(inside, seen(refinement, grader)))
    grader.shown.clear()
    (batched, _) = await refined.arefine_batch([question(0), question(1)])
    assert all(map(inside, seen(batched, grader)))


async def test_an_asynchronous_client_holds_to_it_too(qdrant_server):
    qdrant_server.storage.create_collection("c", DENSE, sparse_vectors_config=WORDS)
    qdrant_server.storage.upsert("c", documents())
    client = AsyncQdrantClient(url=qdrant_server.url, check_compatibility=False)
    grader = Told(JUDGEMENTS)
    refinement = await retriever(client, "c", grader, filters=TENANT).arefine(question(0))
    assert refinement.refined
    assert all(number // TOPICS % 2 == 0 for number in seen(refinement, grader))


def test_judged_nodes_outside_take_no_place_from_those_inside(place):
    """Twenty may be graded: the first twenty judgements are another tenant's, and the one inside is heard."""
    name = place.create(DENSE, sparse_vectors_config=WORDS)
    place.write(name, documents())
    others = {str(at): 1.0 for at in NUMBERS if at // TOPICS % 2}
    far = min((at for at in NUMBERS if at // TOPICS % 2 == 0), key=lambda at: cosine(question(0).embedding)[at])
    grader = Told({"0": {**others, str(far): 1.0}}, Watching())
    refinement = retriever(place.client, name, grader, filters=TENANT, rounds=1).refine(question(0))
    assert far in numbers(refinement.graded_nodes)


# Score thresholds


def explored(refined, query, blocking: bool = True):
    """Retrieve, and return what was graded beside what was found, for the threshold that the refined search had."""
    works = [refined._pipeline().retrieve(query)]
    (outcome,) = run(works) if blocking else asyncio.run(arun(works))
    return outcome.get()


def dense(refinement) -> np.ndarray:
    """The vector that was searched for, whatever was beside it."""
    return next(vector for vector in refinement.vectors.values() if isinstance(vector, np.ndarray))


def cosine(vector) -> np.ndarray:
    rows = vectors()[:COUNT]
    return rows @ np.asarray(vector) / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)


@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_nothing_worse_than_the_score_threshold_is_graded_or_returned(place, distance, rounds):
    name = place.create({"dense": models.VectorParams(size=SIZE, distance=models.Distance(distance))})
    place.write(name, [point.model_copy(update={"vector": {"dense": point.vector["dense"]}}) for point in documents()])
    everyone = retriever(place.client, name, Watching(), similarity_top_k=COUNT, rounds=1).refine(question(0))
    found = everyone.nodes_before
    threshold = (found[24].score + found[25].score) / 2
    grader = Told(JUDGEMENTS)
    refined = retriever(
        place.client,
        name,
        grader,
        similarity_top_k=COUNT,
        rounds=rounds,
        vector_store_kwargs={"score_threshold": threshold},
        on_error="raise",
    )
    refinement, feedback = explored(refined, question(0))
    assert refinement.refined
    sign = -1 if distance == "Euclid" else 1
    assert all(sign * entry.score > sign * threshold for entry in refinement.nodes)
    # What people have judged counts, however far it is; nothing else from behind the threshold is shown in round one.
    judged = {int(name) for judgements in JUDGEMENTS.values() for name in judgements}
    assert rounds > 1 or set(grader.shown) - judged <= set(numbers(found[:25]))
    carried = feedback.view.threshold(refinement.vector, threshold)
    plain = retriever(
        place.client, name, Watching(), similarity_top_k=COUNT, vector_store_kwargs={"score_threshold": carried}
    ).refine(QueryBundle("0", embedding=refinement.vector.tolist()))
    assert set(numbers(refinement.nodes)) <= set(numbers(plain.nodes_before))


def test_a_threshold_that_nothing_passes_leaves_nothing(place):
    name = place.create(DENSE, sparse_vectors_config=WORDS)
    place.write(name, documents())
    grader = Told(JUDGEMENTS)
    refined = retriever(place.client, name, grader, vector_store_kwargs={"score_threshold": 1.5})
    assert refined.retrieve(question(0)) == []
    assert grader.shown == []


def test_in_hybrid_mode_the_threshold_is_the_dense_searchs(place):
    """A judged document without a word of the query is held to it; what the sparse search finds is not."""
    name = place.create(DENSE, sparse_vectors_config=WORDS)
    place.write(name, documents())
    grader = Told(JUDGEMENTS)
    refined = retriever(
        place.client,
        name,
        grader,
        vector_store_query_mode="hybrid",
        sparse_query_fn=sparse_query,
        similarity_top_k=COUNT,
        vector_store_kwargs={"score_threshold": 0.6},
    )
    refinement, feedback = explored(refined, question(0))
    assert refinement.refined
    after, least = cosine(dense(refinement)), feedback.view.threshold(refinement.vector, 0.6)
    assert any(after[number] < least for number in numbers(refinement.nodes))
    words = {*refinement.vectors["words"].indices}
    assert all(after[at] > least or {at % TOPICS, 100 + at} & words for at in numbers(refinement.nodes))


# Filters that say less than was asked for


def filters(*parts, condition=FilterCondition.AND) -> MetadataFilters:
    return MetadataFilters(filters=list(parts), condition=condition)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"filters": filters()}, "filters has an empty MetadataFilters"),
        ({"filters": filters(MetadataFilter(key="a", value=1), filters())}, "filters has an empty MetadataFilters"),
        ({"filters": filters(MetadataFilter(key="a", value=1), condition=None)}, "filters .* condition is None"),
        ({"vector_store_kwargs": {"qdrant_filters": models.Filter()}}, "qdrant_filters has no condition"),
        (
            {"vector_store_kwargs": {"qdrant_filters": models.Filter(must=[models.Filter(should=[])])}},
            "qdrant_filters has no condition",
        ),
        (
            {"filters": filters(MetadataFilter(key="day", value="2024-01-01", operator=FilterOperator.GTE))},
            r"filters compares 'day' with the text '2024-01-01', .*'qdrant_filters': .*DatetimeRange\(gte='2024",
        ),
        (
            {
                "vector_store_kwargs": {
                    "qdrant_filters": models.Filter(
                        should=[
                            models.IsNullCondition(is_null=models.PayloadField(key="a")),
                            models.FieldCondition(key="a", range=models.Range()),
                        ]
                    )
                }
            },
            "qdrant_filters has no condition, or a part without one",
        ),
        (
            {
                "vector_store_kwargs": {
                    "qdrant_filters": models.Filter(
                        must=[models.FieldCondition(key="a", match=models.MatchExcept(**{"except": []}))]
                    )
                }
            },
            "qdrant_filters has no condition, or a part without one",
        ),
        (
            {
                "vector_store_kwargs": {
                    "qdrant_filters": models.Filter(
                        min_should=models.MinShould(
                            conditions=[models.IsNullCondition(is_null=models.PayloadField(key="a"))], min_count=0
                        )
                    )
                }
            },
            "qdrant_filters has no condition, or a part without one",
        ),
        *(
            (
                {"vector_store_kwargs": {"qdrant_filters": models.Filter(must_not=nothing)}},
                "qdrant_filters has no condition, or a part without one",
            )
            for nothing in (
                models.HasIdCondition(has_id=[]),
                [models.FieldCondition(key="a", match=models.MatchAny(any=[]))],
            )
        ),
        *(
            (
                {"filters": filters(MetadataFilter(key="level", operator=operator, value=value))},
                "'level' .* does not take|does not take .*'level'",
            )
            for operator, value in [
                (FilterOperator.LTE, None),
                (FilterOperator.GT, None),
                (FilterOperator.NE, None),
                (FilterOperator.IN, []),
                (FilterOperator.NIN, []),
                (FilterOperator.NIN, None),
                (FilterOperator.TEXT_MATCH, " "),
                (FilterOperator.TEXT_MATCH, None),
            ]
        ),
        ({"filters": filters(MetadataFilter(key="", value=1))}, "filters has a MetadataFilter whose key is empty"),
        ({"node_ids": ["1", ""]}, "node_ids has an empty id"),
        ({"node_ids": [None]}, "node_ids has an empty id"),
        ({"doc_ids": ["a", None]}, "doc_ids has an empty id"),
        ({"node_ids": "123"}, "node_ids must be a list of ids, got the text '123'"),
        ({"doc_ids": "a"}, "doc_ids must be a list of ids, got the text 'a'"),
        ({"doc_ids": []}, "doc_ids is empty"),
        *(
            ({"vector_store_kwargs": {"score_threshold": given}}, "score_threshold must be a finite number")
            for given in (float("nan"), float("inf"), "0.5", True, [0.5])
        ),
        ({"vector_store_kwargs": {"shard_key_selector": []}}, "shard_key_selector must name a shard"),
        ({"vector_store_kwargs": {"shard_key_selector": ["a", ""]}}, "shard_key_selector must name a shard"),
        ({"vector_store_kwargs": {"shard_identifier": ""}}, "shard_identifier must name a shard"),
        (
            {"filters": filters(filters(MetadataFilter(key="a", value=None)))},
            r"filters has a value that its operator does not take .*'qdrant_filters'",
        ),
    ],
)
def test_a_filter_that_would_not_hold_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RefinedRetriever.from_collection(QdrantClient(":memory:"), "c", "text", **kwargs)


@pytest.mark.parametrize("operator", FilterOperator)
def test_every_operator_is_translated_or_refused(operator):
    value = [1] if operator in (FilterOperator.IN, FilterOperator.NIN) else "1"
    if operator in (FilterOperator.GT, FilterOperator.GTE, FilterOperator.LT, FilterOperator.LTE):
        value = 1
    wanted = filters(MetadataFilter(key="number", value=value, operator=operator))
    refused = operator in (FilterOperator.ANY, FilterOperator.ALL, FilterOperator.CONTAINS)
    expected = pytest.raises(NotImplementedError, match="not supported by Qdrant") if refused else nullcontext()
    with expected:
        refined = RefinedRetriever.from_collection(QdrantClient(":memory:"), "c", "text", filters=wanted)
        (group,) = refined._collection.options.filter.must
        (condition,) = group.must
        assert operator == FilterOperator.IS_EMPTY or condition.key == "number"


def test_a_store_that_drops_a_condition_is_refused():
    """As those before llama-index-vector-stores-qdrant 0.8.7 did with operators that they did not know."""
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    class Dropping(QdrantVectorStore):
        def _build_subfilter(self, filters):
            known = [one for one in filters.filters if one.operator != FilterOperator.CONTAINS]
            return super()._build_subfilter(filters.model_copy(update={"filters": known}))

    store = Dropping("c", client=QdrantClient(":memory:"))
    tenant = MetadataFilter(key="tenants", value="a", operator=FilterOperator.CONTAINS)
    for wanted, there in ((filters(tenant), 0), (filters(tenant, MetadataFilter(key="a", value=1)), 1)):
        with pytest.raises(
            ValueError, match=f"filters asks for {there + 1} conditions, .* Dropping translated {there}"
        ):
            RefinedRetriever(store, filters=wanted)


def test_dates_are_compared_by_a_raw_filter():
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=2, distance=models.Distance.DOT))
    rows = [
        models.PointStruct(id=at, vector=[1.0, at], payload={"text": "a", "day": f"202{at}-05-01T00:00:00Z"})
        for at in range(5)
    ]
    client.upsert("c", rows)
    since = models.Filter(must=[models.FieldCondition(key="day", range=models.DatetimeRange(gte="2023-01-01"))])
    refined = RefinedRetriever.from_collection(
        client, "c", "text", grader=FeedbackGrader(), vector_store_kwargs={"qdrant_filters": since}
    )
    found = refined.retrieve(QueryBundle("q", embedding=[1.0, 1.0]))
    assert sorted(entry.node_id for entry in found) == ["3", "4"]


# Anything at all


@cache
def shelf() -> QdrantClient:
    client = QdrantClient(":memory:")
    client.create_collection("c", DENSE, sparse_vectors_config=WORDS)
    client.upsert("c", documents())
    return client


def leaf(key, value, operator, test):
    return MetadataFilter(key=key, value=value, operator=operator), test


LEAVES = st.one_of(
    st.sampled_from("ab").map(
        lambda who: leaf("tenant", who, FilterOperator.EQ, lambda at: "ab"[at // TOPICS % 2] == who)
    ),
    st.integers(0, COUNT).map(lambda most: leaf("number", most, FilterOperator.LT, lambda at: at < most)),
    st.integers(0, COUNT).map(lambda least: leaf("number", least, FilterOperator.GTE, lambda at: at >= least)),
    st.lists(st.sampled_from("01234"), min_size=1).map(
        lambda topics: leaf("topic", topics, FilterOperator.IN, lambda at: str(at % TOPICS) in topics)
    ),
    st.lists(st.sampled_from("01234"), min_size=1).map(
        lambda topics: leaf("topic", topics, FilterOperator.NIN, lambda at: str(at % TOPICS) not in topics)
    ),
)


def joined(condition, parts):
    wanted = filters(*(part for part, _ in parts), condition=condition)
    tests = [test for _, test in parts]
    if condition == FilterCondition.AND:
        return wanted, lambda at: all(test(at) for test in tests)
    if condition == FilterCondition.OR:
        return wanted, lambda at: any(test(at) for test in tests)
    return wanted, lambda at: not any(test(at) for test in tests)


GROUPS = st.recursive(
    st.builds(joined, st.sampled_from(FilterCondition), st.lists(LEAVES, min_size=1, max_size=3)),
    lambda inner: st.builds(joined, st.sampled_from(FilterCondition), st.lists(inner, min_size=1, max_size=2)),
    max_leaves=4,
)
SOME = st.sets(st.sampled_from(NUMBERS), min_size=1, max_size=40)


@st.composite
def restrictions(draw):
    """A retriever's arguments, and which documents they admit."""
    kwargs, tests = {}, []
    if draw(st.booleans()):
        kwargs["filters"], test = draw(GROUPS)
        tests.append(test)
    if draw(st.booleans()):
        ids = draw(SOME)
        kwargs["node_ids"] = [str(at) for at in sorted(ids)]
        tests.append(ids.__contains__)
    if draw(st.booleans()):
        docs = draw(st.sets(st.integers(0, 6), min_size=1))
        kwargs["doc_ids"] = [f"d{at}" for at in sorted(docs)]
        tests.append(lambda at: at % 7 in docs)
    if not tests:
        tag = draw(st.sampled_from(["t0", "t1", "t2", "t3"]))
        raw = models.Filter(should=[models.FieldCondition(key="tags", match=models.MatchValue(value=tag))])
        kwargs["vector_store_kwargs"] = {"qdrant_filters": raw}
        tests.append(lambda at: tag in (f"t{at % 3}", f"t{at % 4}"))
    return kwargs, lambda at: all(test(at) for test in tests)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    restriction=restrictions(),
    judged=st.dictionaries(st.sampled_from(NUMBERS), st.sampled_from([0.0, 0.5, 1.0]), max_size=30),
    topic=st.integers(0, TOPICS - 1),
    rounds=st.integers(1, 3),
    top_k=st.integers(1, 30),
    feedback_top_k=st.integers(2, 30),
    hybrid=st.booleans(),
    threshold=st.none() | st.floats(-0.5, 0.9),
    mixed=st.booleans(),
    blocking=st.booleans(),
)
def test_nothing_outside_is_ever_graded_shown_or_returned(
    restriction, judged, topic, rounds, top_k, feedback_top_k, hybrid, threshold, mixed, blocking
):
    kwargs, inside = restriction
    if hybrid:
        kwargs |= {"vector_store_query_mode": "hybrid", "sparse_query_fn": sparse_query}
    if threshold is not None:
        kwargs["vector_store_kwargs"] = {**kwargs.get("vector_store_kwargs", {}), "score_threshold": threshold}
    watching = Watching()
    told = FeedbackGrader({str(topic): {str(at): grade for at, grade in judged.items()}}, watching)
    grader = AverageGrader([told, watching]) if mixed else told
    refined = retriever(
        shelf(), "c", grader, similarity_top_k=top_k, feedback_top_k=feedback_top_k, rounds=rounds, **kwargs
    )
    query = question(topic)
    refinement, feedback = explored(refined, query, blocking)
    assert all(map(inside, seen(refinement, watching)))
    assert len(refinement.graded_nodes) <= feedback_top_k
    if threshold is not None:
        after, least = cosine(dense(refinement)), threshold
        if refinement.refined:
            least = feedback.view.threshold(refinement.vector, threshold)
        for entry in refinement.nodes:
            number = entry.node.metadata["number"]
            near = after[number] > least - 1e-5
            words = {number % TOPICS, 100 + number} & {*refinement.vectors["words"].indices} if hybrid else set()
            assert (near or words) if hybrid else (near and entry.score > threshold - 1e-5)
