"""The loop on a real collection: what it finds, what it asks of Qdrant and the teacher, and what it does on failure."""

import asyncio
import copy
import json
import logging
import pickle
import threading

import numpy as np
import pytest
from llama_index.core import Settings
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters, VectorStoreQuery
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

from llama_index_refine import Budget, Grades, LLMGrader, QueryRefiner, RefinedRetriever, RefinementMemory
from llama_index_refine.graders.base import GraderError
from llama_index_refine.graders.ensembles import AverageGrader
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.graders.openai import OpenAIGrader
from llama_index_refine.retrieval.grading import reliability_of
from tests.chat_server import error
from tests.planted import SIZE, TOPICS, AnswerGrader, Planted, TopicGrader, point_id

PLANTED = Planted()


class CountingClient(QdrantClient):
    """Qdrant's own client, counting what is asked of it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = []

    def query_batch_points(self, collection_name, requests, **kwargs):
        self.batches.append(requests)
        return super().query_batch_points(collection_name, requests, **kwargs)


class ForgetfulClient(QdrantClient):
    """Qdrant's own client over an index that misses points: in each search but the first, those that are forgotten."""

    forgotten: frozenset[str] = frozenset()

    def query_batch_points(self, collection_name, requests, **kwargs):
        answers = super().query_batch_points(collection_name, requests, **kwargs)
        for answer in answers:
            answer.points = [point for point in answer.points if point.id not in self.forgotten]
        return answers


class ForgettingGrader(TopicGrader):
    """Knows the topic, and has the index forget what the first search found."""

    def __init__(self, client) -> None:
        super().__init__()
        self.client, self.found = client, frozenset()

    def grade(self, query, nodes):
        self.client.forgotten = self.found
        return super().grade(query, nodes)


class NoEmbedding(MockEmbedding):
    """An embedding model that must not be asked."""

    def _get_query_embedding(self, query):
        raise AssertionError("embedded a query that brought its vector")


@pytest.fixture
def store():
    return PLANTED.store()


def retriever(store, grader=None, **kwargs):
    options = {"rounds": 2, "early_stop": False, **kwargs}
    return RefinedRetriever(
        vector_store=store, embed_model=NoEmbedding(embed_dim=SIZE), grader=grader or TopicGrader(), **options
    )


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_finds_more_of_the_topic_than_the_first_search(store, rounds):
    refined = retriever(store, rounds=rounds, similarity_top_k=40)
    before, after = [], []
    for topic in range(TOPICS):
        refinement = refined.refine(PLANTED.query(topic))
        assert refinement.refined
        assert refinement.rounds == rounds
        before.append(PLANTED.precision(refinement.nodes_before, topic))
        after.append(PLANTED.precision(refinement.nodes, topic))
    assert np.mean(after) > np.mean(before) + 0.1


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_what_the_first_search_found_is_not_lost_to_an_index_that_misses_it(rounds):
    client = ForgetfulClient(":memory:")
    grader = ForgettingGrader(client)
    refined = retriever(PLANTED.store(client), grader, rounds=rounds, feedback_top_k=6, trust=1.0, early_stop=True)
    refined.refine(PLANTED.query(0))
    kept = 0
    for topic in range(TOPICS):
        client.forgotten = frozenset()
        before = PLANTED.store().query(VectorStoreQuery(PLANTED.queries[topic].tolist(), similarity_top_k=10)).ids
        grader.found = frozenset(before)
        found = refined.refine(PLANTED.query(topic))
        near = {point_id(row): float(value) for row, value in enumerate(PLANTED.vectors @ found.vector)}
        graded = {node.node_id for node in found.graded_nodes}
        returned = [entry.node_id for entry in found.nodes if entry.node_id not in graded]
        last = min((near[node_id] for node_id in returned), default=np.inf)
        assert all(node_id in returned for node_id in grader.found - graded if near[node_id] > last)
        kept += len(grader.found & {*returned})
        scores = [entry.score for entry in found.nodes]
        assert scores == sorted(scores, reverse=True)
    assert kept >= TOPICS


@pytest.mark.parametrize("feedback_top_k", [2, 3, 8, 20, 500])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_never_grades_more_than_it_may_nor_a_node_twice(store, feedback_top_k, rounds):
    grader = TopicGrader()
    retriever(store, grader, feedback_top_k=feedback_top_k, rounds=rounds).retrieve(PLANTED.query(1))
    shown = [node for wave in grader.shown for node in wave]
    assert len(shown) == len(set(shown)) == min(feedback_top_k, len(PLANTED.labels))


def test_returns_what_retrieve_returns_and_all_there_is_to_know(store):
    refined = retriever(store, trust=1.0)
    refinement = refined.refine(PLANTED.query(2))
    nodes = refined.retrieve(PLANTED.query(2))
    assert [entry.node.node_id for entry in nodes] == [entry.node.node_id for entry in refinement.nodes]
    assert len(refinement.nodes) == len(refinement.nodes_before) == 10
    assert len(refinement.graded_nodes) == len(refinement.grades) == len(refinement.documents) == 20
    assert refinement.ungraded == 0
    assert refinement.query_str == "topic 2"
    np.testing.assert_allclose(refinement.query, PLANTED.queries[2], atol=1e-6)
    assert refinement.vector.shape == (SIZE,)
    assert {"search", "grade", "refine"} <= set(refinement.timings)
    assert all(seconds >= 0 for seconds in refinement.timings.values())
    scores = [entry.score for entry in refinement.nodes]
    assert scores == sorted(scores, reverse=True)
    assert refinement.reason is None


def test_one_round_sends_two_requests_once_the_background_is_there():
    client = CountingClient(":memory:")
    refined = retriever(PLANTED.store(client), rounds=1)
    refined.retrieve(PLANTED.query(0))
    assert len(client.batches) == 3
    client.batches.clear()
    refined.retrieve(PLANTED.query(1))
    assert [[request.limit for request in requests] for requests in client.batches] == [[20], [30]]


@pytest.mark.parametrize(("top_k", "fetches"), [(20, False), (200, True)])
def test_two_rounds_send_one_search_more_and_of_long_lists_fetch_only_what_they_grade(top_k, fetches):
    client = CountingClient(":memory:")
    grader = TopicGrader()
    refined = retriever(PLANTED.store(client), grader, rounds=2, similarity_top_k=top_k, early_stop=False)
    refined.retrieve(PLANTED.query(0))
    client.batches.clear()
    refined.retrieve(PLANTED.query(1))
    first, ranking, *fetched, last = (requests[0] for requests in client.batches)
    assert first.with_vector
    assert bool(ranking.with_vector) is bool(ranking.with_payload) is not fetches
    assert [(fetch.limit, bool(fetch.with_vector)) for fetch in fetched] == [(10, True)] * fetches
    assert not last.with_vector
    assert [len(wave) for wave in grader.shown[-2:]] == [10, 10]


def test_background_is_left_out_when_not_wanted():
    client = CountingClient(":memory:")
    refinement = retriever(PLANTED.store(client), rounds=1, background_size=0).refine(PLANTED.query(0))
    assert len(client.batches) == 2
    assert refinement.background.shape == (0, SIZE)
    published = retriever(PLANTED.store(client), rounds=1, refiner=QueryRefiner.paper()).refine(PLANTED.query(0))
    assert published.iterations == 100
    assert published.background.shape == (0, SIZE)


def test_background_on_a_tiny_collection_does_no_harm():
    """Twelve documents, half of them relevant: nearly every background document is a graded one."""
    planted = Planted(3)
    client = QdrantClient(":memory:")
    store = QdrantVectorStore(collection_name="tiny", client=client)
    rows = [*range(6), *range(40, 46)]
    store.add([planted.nodes()[row] for row in rows])
    nodes = retriever(store, feedback_top_k=8, similarity_top_k=6).retrieve(planted.query(0))
    assert planted.precision(nodes, 0) == 1
    without = retriever(store, feedback_top_k=8, similarity_top_k=6, background_size=0).retrieve(planted.query(0))
    assert planted.precision(nodes, 0) >= planted.precision(without, 0)


def test_filters_hold_in_every_search_and_in_the_background():
    client = CountingClient(":memory:")
    filters = MetadataFilters(filters=[ExactMatchFilter(key="half", value=1)])
    refinement = retriever(PLANTED.store(client), filters=filters).refine(PLANTED.query(4))
    assert all(entry.node.metadata["half"] == 1 for entry in [*refinement.nodes, *refinement.graded_nodes])
    assert all(request.filter is not None for requests in client.batches for request in requests)


def test_more_results_than_grades_cost_no_second_request():
    client = CountingClient(":memory:")
    refinement = retriever(PLANTED.store(client), rounds=1, similarity_top_k=60).refine(PLANTED.query(0))
    assert len(refinement.nodes) == len(refinement.nodes_before) == 60
    (listed,) = client.batches[0]
    assert (listed.limit, listed.with_vector) == (60, True)
    assert len(refinement.grades) == 20


async def test_asynchronously_the_same(store):
    refined = retriever(store, trust=1.0)
    expected = refined.retrieve(PLANTED.query(5))
    found = await refined.aretrieve(PLANTED.query(5))
    assert [entry.node.node_id for entry in found] == [entry.node.node_id for entry in expected]


async def test_asynchronous_client_alone_serves_aretrieve_and_says_so_to_retrieve():
    aclient = AsyncQdrantClient(":memory:")
    store = QdrantVectorStore(collection_name="planted", aclient=aclient)
    await store.async_add(PLANTED.nodes())
    refined = retriever(store)
    assert len(await refined.aretrieve(PLANTED.query(0))) == 10
    with pytest.raises(ValueError, match="only an asynchronous client"):
        refined.retrieve(PLANTED.query(0))


async def test_an_embedding_model_with_the_blocking_half_only_serves_asynchronously_too(store):
    class Blocking(MockEmbedding):
        def _get_query_embedding(self, query):
            return PLANTED.queries[int(query.split()[-1])].tolist()

        async def _aget_query_embedding(self, query):
            raise NotImplementedError

    refined = RefinedRetriever(store, embed_model=Blocking(embed_dim=SIZE), grader=TopicGrader())
    found, failed = await refined.arefine_batch(["topic 2", "topic 99"], return_exceptions=True)
    assert found.refined
    assert isinstance(failed, IndexError)


async def test_grading_does_not_block_the_event_loop(store):
    """Two queries whose teachers wait for each other: one alone would wait for ever."""
    meeting = asyncio.Barrier(2) if hasattr(asyncio, "Barrier") else None
    if meeting is None:
        pytest.skip("asyncio.Barrier needs Python 3.11")

    class Meeting(TopicGrader):
        async def agrade(self, query, nodes):
            await asyncio.wait_for(meeting.wait(), 60)
            return self.grade(query, nodes)

    refined = retriever(store, Meeting(), rounds=1)
    both = await asyncio.gather(refined.aretrieve(PLANTED.query(0)), refined.aretrieve(PLANTED.query(1)))
    assert [len(nodes) for nodes in both] == [10, 10]


def test_on_disk_the_same(tmp_path, store):
    on_disk = PLANTED.store(QdrantClient(path=str(tmp_path / "qdrant")))
    args = {"rounds": 1, "background_size": 0}
    expected = [entry.node.node_id for entry in retriever(store, **args).retrieve(PLANTED.query(3))]
    assert [entry.node.node_id for entry in retriever(on_disk, **args).retrieve(PLANTED.query(3))] == expected


def test_embeds_a_bare_question_with_the_model_of_the_settings(store):
    class Fixed(MockEmbedding):
        def _get_query_embedding(self, query):
            return PLANTED.queries[int(query.split()[-1])].tolist()

    before = Settings._embed_model
    Settings.embed_model = Fixed(embed_dim=SIZE)
    try:
        nodes = RefinedRetriever(vector_store=store, grader=TopicGrader()).retrieve("topic 6")
    finally:
        Settings._embed_model = before
    assert PLANTED.precision(nodes, 6) == 1


class TestFallback:
    """Whatever the teacher does, the application gets nodes."""

    @pytest.fixture(autouse=True)
    def _log(self, caplog):
        caplog.set_level(logging.WARNING, logger="llama_index_refine")
        self.caplog = caplog

    def assert_first_search_stands(self, refined, reason):
        query = PLANTED.query(0)
        refinement = refined.refine(query)
        assert not refinement.refined
        assert reason in refinement.reason
        assert reason in self.caplog.text
        ids = [entry.node.node_id for entry in refinement.nodes]
        assert ids == [entry.node.node_id for entry in refinement.nodes_before]
        np.testing.assert_array_equal(refinement.vector, refinement.query)
        assert [entry.node.node_id for entry in refined.retrieve(query)] == ids

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (lambda nodes: 1 / 0, "ZeroDivisionError"),
            (lambda nodes: [None] * len(nodes), "graded 0 of 10"),
            (lambda nodes: [1.0] + [None] * (len(nodes) - 1), "graded 1 of 10"),
            (lambda nodes: [float("nan")] * len(nodes), "graded 0 of 10"),
            (lambda nodes: [1.0], "1 grades for 10 nodes"),
            (lambda nodes: [7.0] * len(nodes), "must be in [0, 1]"),
            (lambda nodes: None, "TypeError"),
        ],
    )
    def test_teacher_fails(self, store, answer, reason):
        self.assert_first_search_stands(retriever(store, AnswerGrader(answer)), reason)

    def test_nothing_to_refine_by(self, store):
        refined = retriever(store, node_ids=[PLANTED.nodes()[0].node_id])
        self.assert_first_search_stands(refined, "found 1 nodes")
        empty = retriever(store, filters=MetadataFilters(filters=[ExactMatchFilter(key="half", value=9)]))
        assert empty.retrieve(PLANTED.query(0)) == []

    def test_raises_when_asked_to(self, store):
        refined = retriever(store, AnswerGrader(lambda nodes: 1 / 0), on_error="raise")
        with pytest.raises(ZeroDivisionError):
            refined.retrieve(PLANTED.query(0))
        silent = retriever(store, AnswerGrader(lambda nodes: [None] * len(nodes)), on_error="raise")
        assert len(silent.retrieve(PLANTED.query(0))) == 10

    def test_a_later_round_that_fails_leaves_the_grades_of_the_first(self, store):
        class Once(TopicGrader):
            def grade(self, query, nodes):
                if self.shown:
                    raise RuntimeError("gone")
                return super().grade(query, nodes)

        refinement = retriever(store, Once()).refine(PLANTED.query(0))
        assert refinement.refined
        assert len(refinement.grades) == 10
        assert "gone" in self.caplog.text

    def test_nodes_without_a_grade_teach_nothing_and_are_not_asked_again(self, store):
        class Half(TopicGrader):
            def grade(self, query, nodes):
                grades = super().grade(query, nodes)
                return [None if at % 2 else grade for at, grade in enumerate(grades)]

        grader = Half()
        refinement = retriever(store, grader).refine(PLANTED.query(0))
        assert refinement.refined
        assert (len(refinement.grades), refinement.ungraded) == (10, 10)
        shown = [node for wave in grader.shown for node in wave]
        assert len(shown) == len(set(shown)) == 20


def test_a_blocking_part_that_cancels_itself_fails_its_own_query_only(store):
    def cancelled(nodes):
        raise asyncio.CancelledError

    found = retriever(store, AnswerGrader(cancelled)).refine(PLANTED.query(0))
    assert found.reason == "grading failed: RuntimeError: the request was cancelled"
    assert len(found.nodes) == 10

    class Cancelling(MockEmbedding):
        def _get_query_embedding(self, query):
            if query == "cancelled":
                raise asyncio.CancelledError
            return PLANTED.queries[1].tolist()

    refined = RefinedRetriever(store, embed_model=Cancelling(embed_dim=SIZE), grader=TopicGrader())
    failed, answered = refined.refine_batch(["cancelled", "topic 1"], return_exceptions=True)
    assert str(failed) == "the request was cancelled"
    assert answered.refined


def test_a_blocking_teacher_that_never_returns_is_given_up_at_the_deadline(store):
    released = threading.Event()

    def hanging(nodes):
        released.wait(60)
        return [1.0] * len(nodes)

    try:
        refined = retriever(store, AnswerGrader(hanging), budget=Budget(seconds=0.2))
        found, others = refined.refine(PLANTED.query(0)), refined.refine_batch([PLANTED.query(1), PLANTED.query(2)])
        assert not released.is_set()
        for one in (found, *others):
            assert "AnswerGrader had not answered by the deadline" in one.reason
            assert len(one.nodes) == 10
    finally:
        released.set()


def test_judgements_that_cannot_be_looked_up_are_named_and_cost_no_grade_that_is_there(store):
    lookups = []

    def look_up(query):
        lookups.append(query)
        if len(lookups) > fails_after:
            raise ConnectionError("the database is away")
        return {}

    fails_after = 0
    failed = retriever(store, FeedbackGrader(look_up, TopicGrader())).refine(PLANTED.query(0))
    assert failed.reason == "looking up what people have judged failed: ConnectionError: the database is away"
    lookups.clear()
    memory, fails_after = RefinementMemory(SimpleKVStore()), 100
    retriever(store, FeedbackGrader(look_up, TopicGrader()), memory=memory).refine(PLANTED.query(0))
    fails_after = len(lookups) - 1
    lookups.clear()
    memory = RefinementMemory(SimpleKVStore())
    assert retriever(store, FeedbackGrader(look_up, TopicGrader()), memory=memory).refine(PLANTED.query(0)).refined


def test_misuse_is_refused_before_anything_is_searched(store):
    for arguments, name in [
        ({"similarity_top_k": 0}, "similarity_top_k"),
        ({"feedback_top_k": 1}, "feedback_top_k"),
        ({"rounds": 0}, "rounds"),
        ({"background_size": -1}, "background_size"),
        ({"on_error": "ignore"}, "on_error"),
    ]:
        with pytest.raises(ValueError, match=name):
            retriever(store, **arguments)
    with pytest.raises(ValueError, match=r"grader must be a BaseGrader, got MockLLM; for an LLM, LLMGrader\(llm\)"):
        retriever(store, MockLLM())
    with pytest.raises(ValueError, match="vector_store must be a QdrantVectorStore"):
        RefinedRetriever(vector_store="planted")
    with pytest.raises(ValueError, match=f"7 dimensions.*{SIZE}"):
        retriever(store).retrieve(QueryBundle("short", embedding=[0.1] * 7))
    with pytest.raises(ValueError, match="NaN"):
        retriever(store).retrieve(QueryBundle("nan", embedding=[float("nan")] * SIZE))
    with pytest.raises(ValueError, match="refiner is for euclid"):
        retriever(store, refiner=QueryRefiner("euclid"), on_error="raise").retrieve(PLANTED.query(0))


@pytest.mark.parametrize("name", ["similarity_top_k", "feedback_top_k", "rounds", "background_size"])
@pytest.mark.parametrize("value", [2.5, "5", True, None])
def test_what_counts_is_a_whole_number(store, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, got {value!r}"):
        retriever(store, **{name: value})


def test_filters_that_say_nothing_are_named(store):
    with pytest.raises(ValueError, match="filters is None, which would exclude nothing"):
        retriever(store).with_filters(None)


@pytest.mark.parametrize("query", ["topic 1", QueryBundle("topic 1")])
def test_one_query_is_no_batch(store, query):
    refined = retriever(store)
    for batch in (refined.refine_batch, refined.retrieve_batch, refined.select_batch):
        with pytest.raises(ValueError, match="queries must be a list of queries, got one: 'topic 1'"):
            batch(query)


def test_prompts_of_the_teacher_are_within_reach(store):
    refined = retriever(store, LLMGrader())
    (name,) = [key for key in refined.get_prompts() if key.startswith("grader:")][:1]
    text = refined.get_prompts()[name].get_template()
    refined.update_prompts({name: PromptTemplate("Briefly. " + text)})
    assert refined.get_prompts()[name].get_template().startswith("Briefly.")


def test_budget_bounds_what_a_query_may_cost(store):
    class Counting(TopicGrader):
        def grade(self, query, nodes):
            from llama_index_refine.graders.account import current_account

            account = current_account()
            return [grade if account.open_call() else None for grade in super().grade(query, nodes)]

    refinement = retriever(store, Counting(), budget=Budget(calls=7)).refine(PLANTED.query(0))
    assert refinement.llm_calls == 7
    assert len(refinement.grades) == 7
    assert json.dumps(refinement.timings)


class Guessing(TopicGrader):
    """Tosses a coin for each node, another one in each query."""

    def grade(self, query, nodes):
        super().grade(query, nodes)
        return np.random.default_rng(len(self.shown)).random(len(nodes)).round().tolist()


class TestTrust:
    """A teacher that guesses is found out, whichever retriever it serves; one that knows loses nothing."""

    def precision(self, refined, topics):
        return np.mean([PLANTED.precision(refined.retrieve(PLANTED.query(topic)), topic) for topic in topics])

    def test_no_trust_returns_the_first_search(self, store):
        refinement = retriever(store, trust=0.0, rounds=1).refine(PLANTED.query(0))
        assert [n.node.node_id for n in refinement.nodes] == [n.node.node_id for n in refinement.nodes_before]

    def test_a_guessing_teacher_hardly_harms(self, store):
        topics = list(range(TOPICS)) * 3
        plain = self.precision(retriever(store, trust=0.0, similarity_top_k=40), topics)
        believed = self.precision(retriever(store, Guessing(), trust=1.0, similarity_top_k=40), topics)
        weighed = self.precision(retriever(store, Guessing(), similarity_top_k=40), topics)
        assert believed < plain - 0.03
        assert weighed > plain - 0.025

    def test_what_is_known_of_a_teacher_serves_all_its_retrievers(self, store):
        grader = Guessing()
        half = MetadataFilters(filters=[ExactMatchFilter(key="half", value=1)])
        first, second = retriever(store, grader), retriever(store, grader, filters=half)
        for topic in [*range(TOPICS)] * 3:
            first.retrieve(PLANTED.query(topic))
        assert second.refine(PLANTED.query(0)).trust < 0.2
        assert reliability_of(grader).belief.queries > TOPICS
        assert reliability_of(Guessing()).belief.queries == 0

    @pytest.mark.parametrize("trust", [-0.1, 1.1, float("nan")])
    def test_out_of_range(self, store, trust):
        with pytest.raises(ValueError, match="trust"):
            retriever(store, trust=trust)


def test_what_the_teacher_is_unsure_of_moves_the_query_less(store):
    class Unsure(TopicGrader):
        def __init__(self, spread):
            super().__init__()
            self.spread = spread

        def grade(self, query, nodes):
            grades = super().grade(query, nodes)
            return Grades(grades, [self.spread] * len(grades))

    moved = [
        np.linalg.norm(refinement.vector - refinement.query)
        for refinement in (
            retriever(store, Unsure(spread), trust=1.0, rounds=1).refine(PLANTED.query(1)) for spread in (0.0, 0.45)
        )
    ]
    assert moved[1] < 0.9 * moved[0]


@pytest.mark.parametrize("grade", [1.0000001, -1e-9])
def test_a_grade_that_a_rounding_put_outside_is_taken(store, grade):
    refinement = retriever(store, AnswerGrader(lambda nodes: [grade, 0.5] + [0.5] * (len(nodes) - 2))).refine(
        PLANTED.query(0)
    )
    assert refinement.refined
    assert refinement.grades[0] == round(grade)


@pytest.mark.parametrize("grade", [0.0, 0.5, 1.0])
def test_a_teacher_that_grades_everything_alike_moves_nothing(store, grade):
    refined = retriever(store, AnswerGrader(lambda nodes: [grade] * len(nodes)), similarity_top_k=30)
    for topic in range(TOPICS):
        refinement = refined.refine(PLANTED.query(topic))
        np.testing.assert_allclose(refinement.vector, refinement.query, atol=1e-5)
        assert [n.node.node_id for n in refinement.nodes] == [n.node.node_id for n in refinement.nodes_before]


def test_a_teacher_that_uses_a_small_part_of_the_scale_is_understood(store):
    """Another part for each query: what counts is how a grade stands among the others."""

    class Squeezed(TopicGrader):
        def grade(self, query, nodes):
            lowest = 0.8 * int(query.query_str.split()[-1]) / TOPICS
            return [lowest + 0.15 * grade for grade in super().grade(query, nodes)]

    for topic in range(TOPICS):
        found, exact = (
            retriever(store, grader, similarity_top_k=40, rounds=1, trust=1.0).refine(PLANTED.query(topic))
            for grader in (Squeezed(), TopicGrader())
        )
        if not np.ptp(exact.grades):
            continue
        np.testing.assert_allclose(found.vector, exact.vector, atol=1e-4)
        # By itself such a grade says little, so that its document moves less than a bare verdict would move it.
        own = [np.abs(one.fused - one.held_out).mean() / one.tau for one in (found, exact)]
        assert own[0] < own[1]


@pytest.mark.parametrize(("yes", "rounds"), [(1.0, 3), (0.9, 3), (0.6, 1)])
def test_a_teacher_whose_grades_all_lie_near_one_half_is_asked_once(store, yes, rounds):
    """From its second query on: what a new one is like is not known yet."""

    class Soft(TopicGrader):
        def grade(self, query, nodes):
            return [1 - yes + (2 * yes - 1) * grade for grade in super().grade(query, nodes)]

    refined = retriever(store, Soft(), rounds=3)
    asked = [refined.refine(PLANTED.query(topic)) for topic in range(3)]
    assert [one.rounds for one in asked] == [3, rounds, rounds]
    assert [len(one.grades) for one in asked] == [20] * 3
    known = retriever(store, Soft(), rounds=3, trust=0.9)
    assert [known.refine(PLANTED.query(topic)).rounds for topic in range(2)] == [3, 3]


def test_why_nodes_were_left_ungraded_is_told(store, chat_server):
    grader = OpenAIGrader("teacher", base_url=chat_server.url, api_key="key", retries=0)
    chat_server.reply = lambda question: error(401, "Incorrect API key provided")
    refinement = retriever(store, grader).refine(PLANTED.query(0))
    assert not refinement.refined
    assert "401" in refinement.reason
    assert len(refinement.failures) >= 1
    assert [n.node.node_id for n in refinement.nodes] == [n.node.node_id for n in refinement.nodes_before]


def test_a_teacher_that_is_to_raise_does(store, chat_server):
    grader = OpenAIGrader("teacher", base_url=chat_server.url, api_key="key", retries=0, on_error="raise")
    chat_server.reply = lambda question: error(401, "Incorrect API key provided")
    with pytest.raises(GraderError, match="401"):
        retriever(store, grader).retrieve(PLANTED.query(0))


def test_what_people_judged_counts_wherever_it_ranks(store):
    """Two documents far below those that are shown, judged by hand, move the query as far as their grades say."""
    refined = retriever(store, trust=0.0, similarity_top_k=300)
    ranking = [entry.node for entry in refined.retrieve(PLANTED.query(3))]
    up = next(node for node in ranking[100:] if node.metadata["topic"] == 5)
    down = next(node for node in ranking[100:] if node.metadata["topic"] == 6)
    grader = FeedbackGrader({"topic 3": {up.node_id: 1.0, down.node_id: 0.0}})
    found = retriever(store, AverageGrader([grader]), trust=1.0, similarity_top_k=300).refine(PLANTED.query(3))
    assert found.refined
    assert {entry.node_id for entry in found.graded_nodes} == {up.node_id, down.node_id}
    ids = [entry.node_id for entry in found.nodes]
    assert up.node_id in ids[:10]
    assert down.node_id not in ids[:100]


@pytest.mark.parametrize("feedback_top_k", [2, 6])
def test_judged_nodes_count_among_those_that_may_be_graded(store, feedback_top_k):
    judgements = {"topic 3": {node.node_id: 0.5 for node in PLANTED.nodes()[::30]}}
    teacher = TopicGrader()
    grader = FeedbackGrader(judgements, teacher)
    found = retriever(store, grader, feedback_top_k=feedback_top_k).refine(PLANTED.query(3))
    assert len(found.grades) <= feedback_top_k
    assert len(found.grades) + sum(len(wave) for wave in teacher.shown) <= 2 * feedback_top_k


def test_judged_nodes_take_the_place_of_those_that_nobody_judged(store):
    """The last node shown is judged itself; those that come in from below push out others."""
    ranking = [entry.node for entry in retriever(store, trust=0.0, similarity_top_k=300).retrieve(PLANTED.query(3))]
    shown = 10
    judged = [ranking[shown - 1], ranking[150], ranking[200]]
    grader = FeedbackGrader({"topic 3": {node.node_id: 0.0 for node in judged}}, TopicGrader())
    found = retriever(store, grader, feedback_top_k=shown, rounds=1).refine(PLANTED.query(3))
    graded = [entry.node_id for entry in found.graded_nodes]
    assert {node.node_id for node in judged} <= set(graded)
    assert graded[: shown - 3] == [node.node_id for node in ranking[: shown - 3]]
    assert len(graded) == shown


def test_people_are_followed_from_the_first_query_and_the_teacher_behind_them_is_not(store):
    judgements = {"topic 3": {node.node_id: float(node.metadata["topic"] == 3) for node in PLANTED.nodes()}}
    assert retriever(store, FeedbackGrader(judgements)).refine(PLANTED.query(3)).trust == 1
    assert retriever(store, AverageGrader([FeedbackGrader(judgements)])).refine(PLANTED.query(3)).trust == 1
    assert retriever(store, FeedbackGrader({}, TopicGrader())).refine(PLANTED.query(3)).trust < 1


def test_a_judged_node_that_is_gone_is_passed_over(store):
    grader = FeedbackGrader({"topic 3": {"00000000-0000-4000-8000-999999999999": 1.0}}, TopicGrader())
    assert retriever(store, grader).refine(PLANTED.query(3)).refined


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_query_finds_nothing_and_asks_nobody(text):
    client = CountingClient(":memory:")
    refined = retriever(PLANTED.store(client=client), AnswerGrader(lambda nodes: 1 / 0), on_error="raise")
    client.batches.clear()
    for refinement in (refined.refine(text), asyncio.run(refined.arefine(text)), refined.refine_batch([text])[0]):
        assert refinement.nodes == refinement.nodes_before == []
        assert refinement.reason == "the query is empty"
        assert not refinement.refined
        assert json.loads(refinement.to_json())["reason"] == refinement.reason
        assert repr(refinement)
    assert refined.retrieve(text) == []
    assert client.batches == []
    mixed = refined.retrieve_batch([text, PLANTED.query(0)], return_exceptions=True)
    assert mixed[0] == []


def test_a_retriever_says_why_it_cannot_be_pickled(store):
    refined = retriever(store)
    for bring_out in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="make a client and a retriever in each process"):
            bring_out(refined)
    copied = copy.copy(refined)
    copied.similarity_top_k = 3
    assert (len(copied.retrieve(PLANTED.query(0))), len(refined.retrieve(PLANTED.query(0)))) == (3, 10)


def test_copies_share_the_teacher_that_is_made_for_the_llm_of_the_settings(store, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    refined = RefinedRetriever(store, NoEmbedding(embed_dim=SIZE))
    halves = MetadataFilters(filters=[ExactMatchFilter(key="half", value=1)])
    copied, narrowed = copy.copy(refined), refined.with_filters(halves)
    assert copied.grader is narrowed.grader is refined.grader
