"""What a memory saves, and what it must never do."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from llama_index_refine import FeedbackGrader, OpenAIGrader, QueryRefiner, RefinementMemory, Reliability
from llama_index_refine.memory.transfer import ASTRAY
from llama_index_refine.retrieval.records import reliability_of
from tests.memory.parts import WHERE, FileKVStore, Teacher, asked, filled, ids, retriever, store_in
from tests.places import Place, open_place, points, vectors

both_places = pytest.mark.parametrize("place", WHERE, indirect=True)
both_stores = pytest.mark.parametrize("kind", ["kv", "qdrant"])


@both_places
@both_stores
def test_the_same_question_costs_no_call(place: Place, kind):
    name = filled(place)
    teacher = Teacher()
    refined = retriever(place, name, RefinementMemory(store_in(place, kind)), teacher, trust=1.0)
    first = refined.refine(asked(2))
    assert len(teacher.seen) == 20
    assert first.remembered == 0
    again = refined.refine(asked(2))
    assert len(teacher.seen) == 20
    assert (again.remembered, again.rounds) == (20, 0)
    assert ids(again.nodes) == ids(first.nodes)
    assert again.grade_of == first.grade_of
    assert json.loads(again.to_json())["remembered"] == 20
    refined.retrieve(asked(2, "in other words"))
    assert len(teacher.seen) > 20


@both_stores
async def test_the_same_in_every_way_of_asking(tmp_path, kind):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name = filled(place)
        teacher = Teacher()
        refined = retriever(place, name, RefinementMemory(store_in(place, kind)), teacher, trust=1.0)
        expected = ids(await refined.aretrieve(asked(1)))
        count = len(teacher.seen)
        assert ids((await refined.arefine(asked(1))).nodes) == expected
        assert [ids(nodes) for nodes in await refined.aretrieve_batch([asked(1), asked(1)])] == [expected] * 2
        assert [ids(nodes) for nodes in refined.retrieve_batch([asked(1)])] == [expected]
        assert len(teacher.seen) == count


@pytest.mark.parametrize("where", ["disk", "edge"])
def test_a_restart_forgets_nothing(tmp_path, where):
    """Another process would begin like this: another client, another teacher, another memory on the same folder."""
    records, found = [], []
    for run in range(2):
        with open_place(where, tmp_path, ("", 0)) as place:
            if run == 0:
                place.client.create_collection(
                    "documents", models.VectorParams(size=16, distance=models.Distance.COSINE)
                )
                place.write("documents", points())
            teacher = Teacher()
            memory = RefinementMemory(QdrantVectorStore(client=place.client, collection_name="memory"))
            refined = retriever(place, "documents", memory, teacher)
            found.append(refined.refine(asked(3)))
            assert len(teacher.seen) == (20 if run == 0 else 0)
            records.append(reliability_of(teacher))
    assert found[1].remembered == 20
    assert ids(found[1].nodes) == ids(found[0].nodes)
    assert records[1].belief.hypotheses == pytest.approx(records[0].belief.hypotheses)
    assert records[1].belief.queries == 1
    assert found[1].trust == pytest.approx(found[0].trust)


def test_a_key_value_store_written_to_a_file_is_read_after_a_restart(tmp_path):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, store, teacher = filled(place), SimpleKVStore(), Teacher()
        retriever(place, name, RefinementMemory(store)).retrieve(asked(0))
        store.persist(str(tmp_path / "memory.json"))
        read = SimpleKVStore.from_persist_path(str(tmp_path / "memory.json"))
        assert retriever(place, name, RefinementMemory(read), teacher).refine(asked(0)).remembered == 20
        assert not teacher.seen


OTHER_PROCESS = """
import sys
from pathlib import Path
from qdrant_client import models
from llama_index_refine import RefinementMemory
from tests.memory.parts import FileKVStore, Teacher, asked, retriever
from tests.places import SIZE, open_place, points
folder = Path(sys.argv[1])
for where, topic in (("memory", 2), ("edge", 3)):
    with open_place(where, folder / "other", ("", 0)) as place:
        place.client.create_collection("shared", models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
        place.write("shared", points())
        teacher = Teacher()
        refined = retriever(place, "shared", RefinementMemory(FileKVStore(folder / "memory")), teacher)
        refined.retrieve(asked(1))
        assert not teacher.seen, "this was asked in the other process"
        refined.retrieve(asked(topic))
        assert len(teacher.seen) == 20
"""


def test_two_processes_share_a_store(tmp_path):
    with open_place("memory", tmp_path, ("", 0)) as one, open_place("edge", tmp_path / "one", ("", 0)) as other:
        memory = RefinementMemory(FileKVStore(tmp_path / "memory"))
        teacher = Teacher()
        for place in (one, other):
            place.client.create_collection("shared", models.VectorParams(size=16, distance=models.Distance.COSINE))
            place.write("shared", points())
        retriever(one, "shared", memory, teacher).retrieve(asked(1))
        assert len(teacher.seen) == 20
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", OTHER_PROCESS, str(tmp_path)],
            cwd=Path(__file__).parent.parent.parent,
            check=True,
            timeout=120,
        )
        for place in (one, other):
            for topic in (1, 2, 3):
                assert retriever(place, "shared", memory, teacher).refine(asked(topic)).remembered == 20
        assert len(teacher.seen) == 20


@both_places
def test_what_was_deleted_or_changed_is_not_remembered(place: Place):
    name, teacher = filled(place), Teacher()
    memory = RefinementMemory(SimpleKVStore())
    refined = retriever(place, name, memory, teacher)
    graded = ids(refined.refine(asked(2)).graded_nodes)
    teacher.seen.clear()
    gone, changed = int(graded[0]), int(graded[1])
    place.writer.delete(name, models.PointIdsList(points=[gone]))
    payload = {"topic": "9", "meta": {"abstract": "about something else by now"}}
    place.write(name, [models.PointStruct(id=changed, vector=vectors()[changed].tolist(), payload=payload)])
    found = refined.refine(asked(2))
    assert str(gone) not in {*ids(found.graded_nodes), *ids(found.nodes)}
    seen = [node.node_id for node in teacher.seen]
    assert str(changed) in seen
    assert len(seen) <= 3, "only what is new among the first is graded"
    assert found.grade_of[str(changed)] == 0
    teacher.seen.clear()
    assert refined.refine(asked(2)).remembered == len(found.graded_nodes)
    assert not teacher.seen
    (record,) = [row for _, _, row in _everything(memory) if row.get("query_str") == "2"]
    assert str(gone) not in {grade["node_id"] for grade in record["grades"]}


@both_places
def test_of_new_documents_only_those_at_the_top_are_graded(place: Place):
    name, teacher = filled(place), Teacher()
    refined = retriever(place, name, RefinementMemory(SimpleKVStore()), teacher, trust=1.0)
    moved = refined.refine(asked(2)).vector
    teacher.seen.clear()
    far = -np.array(moved)
    for point, vector in ((9001, moved), (9002, far), (9003, far)):
        payload = {"topic": "2", "meta": {"abstract": f"new {point}"}}
        place.write(name, [models.PointStruct(id=point, vector=vector.tolist(), payload=payload)])
    found = refined.refine(asked(2))
    assert [node.node_id for node in teacher.seen] == ["9001"]
    assert found.remembered == 20
    assert "9001" in ids(found.nodes)


@both_places
@both_stores
def test_grades_expire_and_those_of_people_do_not(place: Place, kind):
    name, teacher, now = filled(place), Teacher(), [1000.0]
    memory = RefinementMemory(store_in(place, kind), max_age=60, clock=lambda: now[0])
    refined = retriever(place, name, memory, teacher)
    refined.retrieve(asked(4))
    refined.judge(asked(4), "100", 1.0)
    now[0] += 59
    assert refined.refine(asked(4)).remembered == 21
    assert len(teacher.seen) == 20
    now[0] += 2
    found = refined.refine(asked(4))
    assert found.remembered == 1
    assert found.grade_of["100"] == 1
    assert len(teacher.seen) == 40
    assert "100" not in {node.node_id for node in teacher.seen}


def tenant(which: str) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="tenant", value=which)])


@both_places
@both_stores
def test_the_grades_of_one_tenant_never_reach_another(place: Place, kind):
    name = filled(place)
    memory = RefinementMemory(store_in(place, kind))
    first = Teacher(upside_down=True)
    for words in ("", "again", "once more"):
        retriever(place, name, memory, first, filters=tenant("a")).retrieve(asked(2, words, 0.1))
    for filters in (tenant("b"), None, MetadataFilters(filters=[*tenant("a").filters, *tenant("b").filters])):
        alone, teacher = Teacher(), Teacher()
        expected = retriever(place, name, None, alone, filters=filters, trust=1.0).refine(asked(2))
        found = retriever(place, name, memory, teacher, filters=filters, trust=1.0).refine(asked(2))
        assert (found.remembered, found.borrowed) == (0, 0)
        assert [node.node_id for node in teacher.seen] == [node.node_id for node in alone.seen]
        assert ids(found.nodes) == ids(expected.nodes)
    found = retriever(place, name, memory, Teacher(), filters=tenant("b")).refine(asked(2))
    assert {entry.node.metadata["tenant"] for entry in [*found.nodes, *found.graded_nodes]} == {"b"}


def test_a_record_that_was_moved_to_another_scope_is_not_believed(tmp_path):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, store = filled(place), SimpleKVStore()
        memory = RefinementMemory(store)
        retriever(place, name, memory, filters=tenant("a")).retrieve(asked(2))
        ((_, _, mine),) = [row for row in _everything(memory) if "grades" in row[2]]
        retriever(place, name, memory, filters=tenant("b")).retrieve(asked(2))
        for scope, key, row in _everything(memory):
            if "grades" in row and row["scope"] != mine["scope"]:
                store.put(key, mine, f"refinement_memory_{scope}")
        found = retriever(place, name, memory, filters=tenant("b")).refine(asked(2))
        assert (found.remembered, found.borrowed) == (0, 0)


@pytest.mark.parametrize("change", ["teacher", "collection", "vector", "text"])
def test_what_decides_a_grade_decides_whether_it_is_remembered(tmp_path, change):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, memory = filled(place), RefinementMemory(SimpleKVStore())
        retriever(place, name, memory).retrieve(asked(2))
        teacher, query = Teacher(), asked(2)
        if change == "teacher":
            teacher.fingerprint = lambda: "another prompt"  # type: ignore[method-assign]
        elif change == "collection":
            name = filled(place)
        elif change == "vector":
            query.embedding = (-np.array(query.embedding)).tolist()
        else:
            query.query_str = "3"
        assert retriever(place, name, memory, teacher).refine(query).remembered == 0
        assert teacher.seen


@both_places
@both_stores
def test_a_similar_question_costs_less(place: Place, kind):
    name, teacher = filled(place), Teacher()
    refined = retriever(place, name, RefinementMemory(store_in(place, kind)), teacher, similarity_top_k=40)
    refined.retrieve(asked(2))
    teacher.seen.clear()
    found = refined.refine(asked(2, "again", 0.15))
    assert found.borrowed >= 10
    assert len(teacher.seen) == 10
    alone = retriever(place, name, None, feedback_top_k=10, similarity_top_k=40).refine(asked(2, "again", 0.15))
    assert _hits(found) >= _hits(alone)
    assert found.student_after.sum() == pytest.approx(1, abs=1e-5)


def _hits(refinement) -> int:
    return sum(entry.node.metadata["topic"] == "2" for entry in refinement.nodes)


@both_places
def test_a_poisoned_memory_moves_other_topics_by_nothing_and_its_own_within_the_bound(place: Place):
    name = filled(place)
    clean, poisoned = RefinementMemory(SimpleKVStore()), RefinementMemory(SimpleKVStore())
    for topic in range(5):
        retriever(place, name, clean).retrieve(asked(topic))
        with poisoned.as_user("mallory" if topic == 2 else "another"):
            retriever(place, name, poisoned, Teacher(upside_down=topic == 2)).retrieve(asked(topic))
    borrowed = 0
    for topic in range(5):
        query = asked(topic, "again", 0.15)
        runs = [
            retriever(place, name, memory, Teacher(), trust=1.0, similarity_top_k=30).refine(query)
            for memory in (clean, poisoned)
        ]
        if topic != 2:
            assert ids(runs[0].nodes) == ids(runs[1].nodes)
            borrowed += runs[1].borrowed
        assert _led(runs[1]) <= ASTRAY * 1.01
    assert borrowed
    # What the similar query says of the same documents is not what is heard now: nothing of it is believed.
    query = asked(2, "again", 0.15)
    spoilt = retriever(place, name, poisoned, Teacher(), trust=1.0).refine(query)
    alone = retriever(place, name, None, Teacher(), trust=1.0).refine(query)
    assert spoilt.borrowed == 0
    assert ids(spoilt.nodes) == ids(alone.nodes)
    assert poisoned.forget(user="mallory") > 0


def _led(refinement) -> float:
    """How far borrowed grades led a query, in the unit of the bound."""
    own = QueryRefiner().refine(
        refinement.query,
        refinement.documents,
        refinement.grades,
        refinement.background,
        population=200 - len(refinement.graded_nodes),
    )
    unit = [vector / np.linalg.norm(vector) for vector in (own.vector, refinement.vector, refinement.query)]
    rows = refinement.background / np.linalg.norm(refinement.background, axis=1, keepdims=True)
    rows = rows - rows.mean(0)
    radius = np.sqrt(np.square(rows).sum(1).mean())
    return float(np.linalg.norm(unit[1] - unit[0]) * radius / (rows @ unit[2]).std())


@both_places
def test_what_people_judge_stands_above_the_teacher(place: Place):
    name, teacher = filled(place), Teacher()
    memory = RefinementMemory(SimpleKVStore())
    refined = retriever(place, name, memory, teacher)
    first = refined.refine(asked(1))
    best = next(node_id for node_id, grade in first.grade_of.items() if grade == 1)
    refined.judge(asked(1), best, 0.0, user="anna")
    refined.judge(asked(1), best, 0.5, user="ben")
    refined.judge(asked(1), best, 0.25, user="anna")
    found = refined.refine(asked(1))
    assert found.grade_of[best] == pytest.approx(0.375)
    assert memory.forget(user="anna") == 1
    assert refined.refine(asked(1)).grade_of[best] == pytest.approx(0.5)
    # One that was never shown, and a query that was never asked.
    refined.judge(asked(4), "139", 1.0)
    teacher.seen.clear()
    assert refined.refine(asked(4)).grade_of["139"] == 1
    assert "139" not in {node.node_id for node in teacher.seen}


async def test_judgements_that_a_feedback_grader_knows_are_kept_as_people_s(tmp_path):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, memory = filled(place), RefinementMemory(SimpleKVStore())
        feedback = FeedbackGrader({"1": {"199": 0.75}}, Teacher())
        await retriever(place, name, memory, feedback).aretrieve(asked(1))
        teacher = Teacher()
        found = await retriever(place, name, memory, FeedbackGrader({}, teacher)).arefine(asked(1))
        assert not teacher.seen
        assert found.grade_of["199"] == 0.75
        assert await memory.aforget(node_ids=["199"]) == 1


def test_judgements_that_cannot_be_kept_are_refused(tmp_path):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, memory = filled(place), RefinementMemory(SimpleKVStore())
        with pytest.raises(ValueError, match="memory is None"):
            retriever(place, name, None).judge(asked(1), "5", 1.0)
        for node_id in ("5000", "no id"):
            with pytest.raises(ValueError, match=f"node_id '{node_id}' cannot be found"):
                retriever(place, name, memory).judge(asked(1), node_id, 1.0)
        with pytest.raises(ValueError, match="outside the retriever's filter"):
            retriever(place, name, memory, filters=tenant("b")).judge(asked(1), "1", 1.0)
        with pytest.raises(ValueError, match="grade must be in"):
            retriever(place, name, memory).judge(asked(1), "5", 1.5)
        with pytest.raises(ValueError, match="query is empty"):
            retriever(place, name, memory).judge("  ", "5", 1.0)
        assert not _everything(memory)


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
    kept = {row["query_str"] for _, _, row in _everything(memory) if "grades" in row}
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
    assert "3" not in {row["query_str"] for _, _, row in _everything(memory) if "grades" in row}
    assert memory.forget(doc_ids=["none of them"]) == 0
    memory.clear()
    assert not [row for row in _everything(memory) if "grades" in row[2]]
    with pytest.raises(ValueError, match="name what to forget"):
        memory.forget()
    with pytest.raises(ValueError, match="must be lists of ids"):
        memory.forget(node_ids="5")


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


@pytest.mark.parametrize("spoilt", [{}, {"grades": 3}, {"grades": [{"grade": 7}]}, {"vector": "!"}, {"time": None}])
def test_a_record_that_is_none_counts_for_nothing(tmp_path, spoilt):
    with open_place("memory", tmp_path, ("", 0)) as place:
        name, store, teacher = filled(place), SimpleKVStore(), Teacher()
        memory = RefinementMemory(store)
        refined = retriever(place, name, memory, teacher)
        refined.retrieve(asked(1))
        for scope, key, row in _everything(memory):
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
        stored = [row for scope, _, row in _everything(memory) if scope == "teachers"]
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


def _everything(memory: RefinementMemory) -> list:
    (rows,) = memory._shelf.run([lambda shelf: shelf.everything()])
    teachers = memory._shelf.run([lambda shelf: shelf.everything("teachers")])[0]
    return [*rows, *(row for row in teachers if row not in rows)]
