"""What a memory keeps, drops, and survives."""

from __future__ import annotations

import json
import logging
from uuid import UUID

import pytest
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index_refine import OpenAIGrader, RefinementMemory, Reliability
from llama_index_refine.retrieval.grading import reliability_of
from tests.memory.parts import WHERE, Teacher, asked, everything, filled, ids, retriever, store_in
from tests.places import Place, open_place

both_places = pytest.mark.parametrize("place", WHERE, indirect=True)
both_stores = pytest.mark.parametrize("kind", ["kv", "qdrant"])


@both_places
@both_stores
def test_the_size_is_limited_and_what_people_judged_goes_last(place: Place, kind):
    name, now = filled(place), [0.0]
    memory = RefinementMemory(store_in(place, kind), max_queries=4, clock=lambda: now[0])
    refined = retriever(place, name, memory, feedback_top_k=2)
    refined.judge(asked(0, "judged"), "5", 1.0)
    for at in range(8):
        now[0] += 1
        refined.retrieve(asked(at % 5, f"number {at}", 0.1))
    kept = {row["query_str"] for _, _, row in everything(memory) if "grades" in row}
    assert kept == {"0 judged", "0 number 5", "1 number 6", "2 number 7"}


@both_places
@both_stores
def test_nodes_documents_and_users_can_be_forgotten(place: Place, kind):
    name, teacher = filled(place), Teacher()
    memory = RefinementMemory(store_in(place, kind))
    refined = retriever(place, name, memory, teacher)
    with memory.as_user("anna"):
        graded = ids(refined.refine(asked(1)).graded_nodes)
    with memory.as_user("ben"):
        refined.retrieve(asked(3))
    assert memory.forget(node_ids=graded[:1]) >= 1
    teacher.seen.clear()
    assert refined.refine(asked(1)).remembered == 19
    assert graded[0] in {node.node_id for node in teacher.seen}
    assert memory.forget(user="ben") == 20
    assert "3" not in {row["query_str"] for _, _, row in everything(memory) if "grades" in row}
    assert memory.forget(doc_ids=["none of them"]) == 0
    memory.clear()
    assert not [row for row in everything(memory) if "grades" in row[2]]
    with pytest.raises(ValueError, match="name what to forget"):
        memory.forget()
    with pytest.raises(ValueError, match="must be lists of ids"):
        memory.forget(node_ids="5")
    for nobody in ({"doc_ids": [None]}, {"doc_ids": ["a", " "]}, {"node_ids": [""]}, {"user": ""}):
        with pytest.raises(ValueError, match=f"{next(iter(nobody))} has an empty name"):
            memory.forget(**nobody)


class BrokenStore(SimpleKVStore):
    """A store that is out."""

    def get(self, *args, **kwargs):
        raise ConnectionError("out, with a secret in its address")

    put = get_all = get


def test_a_store_that_fails_is_a_warning(tmp_path, caplog):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name = filled(place)
        expected = retriever(place, name, None, trust=1.0).refine(asked(1))
        with caplog.at_level(logging.WARNING, "llama_index_refine"):
            found = retriever(place, name, RefinementMemory(BrokenStore()), trust=1.0, on_error="raise").refine(
                asked(1)
            )
        assert ids(found.nodes) == ids(expected.nodes)
        assert "could not be read (ConnectionError)" in caplog.text
        assert "could not be written (ConnectionError)" in caplog.text
        assert "secret" not in caplog.text


@pytest.mark.parametrize("payload", [None, {}, {"record": {}}, {"key": "k" * 32}])
def test_a_point_that_something_else_wrote_counts_for_nothing(tmp_path, payload):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, store, teacher = filled(place), store_in(place, "qdrant"), Teacher()
        memory = RefinementMemory(store)
        refined = retriever(place, name, memory, teacher)
        refined.retrieve(asked(1))
        rows = [row for row in everything(memory) if "grades" in row[2]]
        ((scope, key, _),) = rows
        client, collection = place.client, store.collection_name
        stray = {"scope": scope} if payload is None else {**payload, "scope": scope if payload else ""}
        vector = asked(1).embedding
        ids_of = [str(UUID(key[:32])), str(UUID(int=7))]
        client.upsert(collection, [models.PointStruct(id=one, vector=vector, payload=stray) for one in ids_of])
        client.upsert(collection, [models.PointStruct(id=str(UUID(int=8)), vector=vector)])
        assert refined.refine(asked(1)).remembered == 0
        assert refined.refine(asked(1)).remembered == 20
        assert memory.forget(user="nobody") == 0


@pytest.mark.parametrize("spoilt", [{}, {"grades": 3}, {"grades": [{"grade": 7}]}, {"vector": "!"}, {"time": None}])
def test_a_record_that_is_none_counts_for_nothing(tmp_path, spoilt):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, store, teacher = filled(place), SimpleKVStore(), Teacher()
        memory = RefinementMemory(store)
        refined = retriever(place, name, memory, teacher)
        refined.retrieve(asked(1))
        for scope, key, row in everything(memory):
            store.put(key, {**row, **spoilt} if spoilt else {}, f"refinement_memory_{scope}")
        assert refined.refine(asked(1)).remembered == 0
        assert len(teacher.seen) == 40
        assert refined.refine(asked(1)).remembered == 20


def test_no_key_is_ever_stored(tmp_path, chat_server):
    with open_place("memory", tmp_path, ("", 0)) as place:
        store = SimpleKVStore()
        teacher = OpenAIGrader("gpt-4o-mini", base_url=chat_server.url, api_key="sk-very-secret")
        found = retriever(place, filled(place), RefinementMemory(store), teacher).refine(asked(1))
        assert found.llm_calls
        assert "very-secret" not in json.dumps(store.to_dict())
        json.dumps(store.to_dict(), allow_nan=False)


def test_a_new_process_does_not_start_sceptical(tmp_path):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, memory, teacher = filled(place), RefinementMemory(SimpleKVStore()), Teacher()
        for topic in range(5):
            retriever(place, name, memory, teacher, feedback_top_k=4).retrieve(asked(topic))
        known = reliability_of(teacher)
        new = Teacher()
        retriever(place, name, memory, new).retrieve(asked(0, "something else", 2.0))
        assert reliability_of(new).belief.queries > known.belief.queries > 4
        # Who knows less writes nothing over it.
        fresh = Reliability()
        stored = [row for scope, _, row in everything(memory) if scope == "teachers"]
        fresh.adopt(Reliability.from_dict(stored[0]))
        assert fresh.to_dict() == reliability_of(new).to_dict()
        known.adopt(Reliability())
        assert known.belief.queries > 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"store": QdrantClient}, "store must be a LlamaIndex key-value store"),
        ({"store": SimpleKVStore, "max_age": 0}, "max_age must be above 0"),
        ({"store": SimpleKVStore, "max_queries": 0}, "max_queries must be at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    store = arguments.pop("store")
    with pytest.raises(ValueError, match=message):
        RefinementMemory(store(":memory:") if store is QdrantClient else store(), **arguments)


def test_a_retriever_takes_only_a_memory(tmp_path):
    with (
        open_place("memory", tmp_path, ("", 0)) as place,
        pytest.raises(ValueError, match="RefinementMemory\\(store\\)"),
    ):
        retriever(place, filled(place), SimpleKVStore())


def test_vectors_of_another_size_are_a_warning_that_says_what_to_do(tmp_path, caplog):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name = filled(place)
        size = models.VectorParams(size=8, distance=models.Distance.COSINE)
        place.client.create_collection("of another size", size)
        memory = RefinementMemory(QdrantVectorStore(client=place.client, collection_name="of another size"))
        with caplog.at_level(logging.WARNING, "llama_index_refine"):
            assert retriever(place, name, memory).refine(asked(1)).refined
        assert "holds vectors of 8 dimensions" in caplog.text


async def test_an_asynchronous_client_alone_will_do(tmp_path):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, teacher = filled(place), Teacher()
        client = AsyncQdrantClient(":memory:")
        memory = RefinementMemory(QdrantVectorStore(aclient=client, collection_name="memory"))
        refined = retriever(place, name, memory, teacher)
        await refined.aretrieve(asked(1))
        assert (await refined.arefine(asked(1))).remembered == 20
        await refined.ajudge(asked(1), "150", 1.0, user="anna")
        assert await memory.aforget(user="anna") == 1
        await memory.aclear()
        assert (await refined.arefine(asked(1))).remembered == 0
        await client.close()


def test_events_tell_what_the_memory_gave(tmp_path):
    from llama_index_refine.retrieval.events import RefinementEvent

    with open_place("memory", tmp_path, ("", 0)) as place:
        refined = retriever(place, filled(place), RefinementMemory(SimpleKVStore()))
        refined.retrieve(asked(1))
        event = RefinementEvent.of(refined.refine(asked(1)))
        assert (event.remembered, event.borrowed, event.llm_calls) == (20, 0, 0)


@both_places
@both_stores
def test_what_was_asked_longest_ago_goes_first_whether_or_not_it_was_answered_from_memory(place: Place, kind):
    name, now = filled(place), [0.0]
    memory = RefinementMemory(store_in(place, kind), max_queries=3, clock=lambda: now[0])
    refined = retriever(place, name, memory, feedback_top_k=4)
    for topic in (0, 1, 2, 0, 3):
        now[0] += 1
        refined.retrieve(asked(topic))
    assert {row["query_str"] for _, _, row in everything(memory) if "grades" in row} == {"0", "2", "3"}
