"""What a memory saves, and what it must never do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine import FeedbackGrader, QueryRefiner, RefinementMemory
from llama_index_refine.graders.account import current_account
from llama_index_refine.memory.remembered import RememberedQuery
from llama_index_refine.memory.transfer import AGAINST, ASTRAY, MAYBE, similarity_of
from llama_index_refine.retrieval.grading import reliability_of
from tests.memory.parts import WHERE, FileKVStore, Teacher, asked, everything, filled, ids, retriever, store_in
from tests.places import Place, open_place, points, vectors
from tests.strict_mode import StrictMode

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


@both_places
def test_a_longer_list_is_no_news(place: Place):
    """What a short list did not reach was there before; whoever asks for more of it wants no other grades."""
    name, memory, teacher = filled(place), RefinementMemory(SimpleKVStore()), Teacher()
    retriever(place, name, memory, teacher, trust=1.0, early_stop=False).refine(asked(2))
    assert len(teacher.seen) == 20
    longer = retriever(place, name, memory, teacher, trust=1.0, early_stop=False, similarity_top_k=150).refine(asked(2))
    assert len(teacher.seen) == 20
    assert len(longer.nodes) == 150


@both_places
def test_what_an_early_stop_left_is_not_asked_when_asked_again(place: Place):
    teacher = Teacher()
    refined = retriever(place, filled(place), RefinementMemory(SimpleKVStore()), teacher, early_stop=True, trust=1.0)
    for topic in range(5):
        first = refined.refine(asked(topic))
        count = len(teacher.seen)
        again = refined.refine(asked(topic))
        assert len(teacher.seen) == count
        assert again.remembered == len(first.graded_nodes)


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
@pytest.mark.parametrize("raises", [False, True])
def test_what_a_teacher_failed_to_grade_is_asked_when_asked_again(place: Place, raises):
    class Failing(Teacher):
        """Grades six nodes, and is then out of order."""

        ill = True

        def grade(self, query, nodes):
            grades = super().grade(query, nodes)
            left = max(6 - len(self.seen) + len(nodes), 0) if self.ill else len(nodes)
            if raises and not left:
                raise RuntimeError("out of order")
            if left < len(nodes):
                current_account().note("the teacher is out of order")
            return [*grades[:left], *[None] * (len(nodes) - left)]

    teacher = Failing()
    refined = retriever(place, filled(place), RefinementMemory(SimpleKVStore()), teacher)
    assert len(refined.refine(asked(2)).grades) == 6
    teacher.ill = False
    teacher.seen.clear()
    again = refined.refine(asked(2))
    assert (again.remembered, len(teacher.seen), len(again.grades)) == (6, 14, 20)
    teacher.seen.clear()
    assert refined.refine(asked(2)).remembered == 20
    assert not teacher.seen


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
    (record,) = [row for _, _, row in everything(memory) if row.get("query_str") == "2"]
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
    graded = ids(refined.refine(asked(4)).graded_nodes)
    judged = next(name for name in ("100", "101", "102") if name not in graded)
    refined.judge(asked(4), judged, 1.0)
    now[0] += 59
    assert refined.refine(asked(4)).remembered == 21
    assert len(teacher.seen) == 20
    now[0] += 2
    found = refined.refine(asked(4))
    assert found.remembered == 1
    assert found.grade_of[judged] == 1
    assert len(teacher.seen) == 40
    assert judged not in {node.node_id for node in teacher.seen}


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
        ((_, _, mine),) = [row for row in everything(memory) if "grades" in row[2]]
        retriever(place, name, memory, filters=tenant("b")).retrieve(asked(2))
        for scope, key, row in everything(memory):
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
        retriever(place, name, clean, trust=1.0).retrieve(asked(topic))
        with poisoned.as_user("mallory" if topic == 2 else "another"):
            retriever(place, name, poisoned, Teacher(upside_down=topic == 2), trust=1.0).retrieve(asked(topic))
    (poison,) = [RememberedQuery.from_dict(row) for _, _, row in everything(poisoned) if row.get("query_str") == "2"]
    borrowed = others = 0
    for topic in range(5):
        query = asked(topic, "again", 0.15)
        runs = [
            retriever(place, name, memory, Teacher(), trust=1.0, similarity_top_k=30).refine(query)
            for memory in (clean, poisoned)
        ]
        similar = similarity_of(np.array(query.embedding), [poison], vectors()[:30])[0]
        if similar < MAYBE:
            others += 1
            assert ids(runs[0].nodes) == ids(runs[1].nodes)
            borrowed += runs[1].borrowed
        assert _led(runs[1]) <= ASTRAY * 1.01
    assert borrowed
    assert others
    # What the similar query says of the same documents is not what is heard now: nothing of it is believed.
    query = asked(2, "again", 0.15)
    spoilt = retriever(place, name, poisoned, Teacher(), trust=1.0).refine(query)
    assert spoilt.borrowed == 0
    assert _led(spoilt) == pytest.approx(0, abs=1e-3)
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


@both_places
def test_what_a_feedback_grader_is_told_later_counts_for_a_question_that_is_remembered(place: Place):
    name, teacher = filled(place), Teacher()
    feedback = FeedbackGrader({}, teacher)
    refined = retriever(place, name, RefinementMemory(SimpleKVStore()), feedback)
    best = next(node_id for node_id, grade in refined.refine(asked(1)).grade_of.items() if grade == 1)
    teacher.seen.clear()
    for grade in (0.0, 0.75):
        feedback.judge("1", best, grade)
        assert refined.refine(asked(1)).grade_of[best] == grade
    assert not teacher.seen


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
        assert not everything(memory)


@both_places
def test_grades_that_are_upside_down_do_not_follow_their_query(place: Place):
    name = filled(place)
    kept = []
    for upside_down in (False, True):
        memory = RefinementMemory(SimpleKVStore())
        retriever(place, name, memory, Teacher(upside_down), trust=1.0, rounds=1).retrieve(asked(2))
        (query,) = [RememberedQuery.from_dict(row) for _, _, row in everything(memory) if row.get("query_str") == "2"]
        kept.append(query.follows)
    assert kept[1] == pytest.approx(-kept[0], abs=0.01)
    assert kept[1] < AGAINST < kept[0]


@pytest.mark.parametrize("place", ["rest", "grpc"], indirect=True)
def test_where_no_node_may_be_asked_for_by_its_id_a_question_is_graded_again(place: Place):
    name, teacher = filled(place), Teacher()
    memory = RefinementMemory(SimpleKVStore())
    refined = retriever(place, name, memory, teacher, filters=tenant("a"))
    assert refined.refine(asked(2)).refined
    place.server.strict = StrictMode(models.StrictModeConfig(enabled=True, filter_max_conditions=1))
    for _ in range(3):
        teacher.seen.clear()
        again = retriever(place, name, memory, teacher, filters=tenant("a"), background_size=29).refine(asked(2))
        assert again.refined, again.reason
        assert len(teacher.seen) == 20
    (record,) = [row for _, _, row in everything(memory) if row.get("query_str") == "2"]
    assert len({grade["node_id"] for grade in record["grades"]}) == len(record["grades"])


@both_places
def test_a_retriever_that_may_grade_less_keeps_to_that_and_ends_no_other_s_question(place: Place):
    name, teacher, now = filled(place), Teacher(), [0.0]
    memory = RefinementMemory(SimpleKVStore(), clock=lambda: now[0])
    wide = retriever(place, name, memory, teacher, trust=1.0)
    narrow = retriever(place, name, memory, teacher, trust=1.0, feedback_top_k=4)
    first = wide.refine(asked(2))
    vector = np.array(first.vector).tolist()

    def new(point: int) -> None:
        payload = {"topic": "2", "meta": {"abstract": f"new {point}"}}
        place.write(name, [models.PointStruct(id=point, vector=vector, payload=payload)])

    for point, refined in ((9001, narrow), (9002, wide)):
        new(point)
        teacher.seen.clear()
        refined.refine(asked(2))
        assert [node.node_id for node in teacher.seen] == [str(point)]
    # Of what was graded as far as it may be, some is forgotten: others are not graded for it by who may grade less.
    memory.forget(node_ids=[first.graded_nodes[0].node_id])
    teacher.seen.clear()
    narrow.refine(asked(2))
    assert not teacher.seen
