"""What was graded leaves as training data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama_index.core.schema import MetadataMode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from llama_index_refine import RefinementMemory
from tests.memory.parts import WHERE, asked, filled, retriever, store_in
from tests.places import Place, points

both_places = pytest.mark.parametrize("place", WHERE, indirect=True)
in_memory = pytest.mark.parametrize("place", ["memory"], indirect=True)
FACTS = {"by", "date", "filters"}
TOPIC = {point.payload["meta"]["abstract"]: point.payload["topic"] for point in points()}


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@both_places
@pytest.mark.parametrize("kind", ["kv", "qdrant"])
def test_triplets_have_a_relevant_node_and_another(place: Place, kind, tmp_path):
    name = filled(place)
    memory = RefinementMemory(store_in(place, kind), clock=lambda: 0.0)
    refined = retriever(place, name, memory)
    graded = [[*refined.refine(asked(topic)).grade_of.values()] for topic in (1, 3)]
    path = tmp_path / "triplets.jsonl"
    path.write_text("what was there")
    count = memory.export(path, refined.vector_store, metadata_mode=MetadataMode.NONE)
    rows = rows_in(path)
    assert count == len(rows) == sum(max(grades.count(1.0), grades.count(0.0)) for grades in graded)
    for row in rows:
        assert row.keys() == {"anchor", "positive", "negative", *FACTS}
        assert TOPIC[row["positive"]] == row["anchor"] != TOPIC[row["negative"]]
        assert (row["by"], row["date"], row["filters"]) == ("teacher", "1970-01-01T00:00:00+00:00", "")
    # No graded node is left out.
    assert len({(row["anchor"], row[side]) for row in rows for side in ("positive", "negative")}) == 40


@in_memory
async def test_pairs_tell_people_from_teachers_and_keep_filter_and_date(place: Place, tmp_path):
    now = [0.0]
    memory = RefinementMemory(SimpleKVStore(), clock=lambda: now[0])
    only_a = MetadataFilters(filters=[MetadataFilter(key="tenant", value="a")])
    refined = retriever(place, filled(place), memory, filters=only_a)
    grades = refined.refine(asked(2)).grade_of
    judged, now[0] = next(iter(grades)), 86400.0
    refined.judge(asked(2), judged, 0.25)
    path = tmp_path / "pairs.jsonl"
    assert await memory.aexport(path, refined.vector_store, "pairs") == len(grades)
    rows = rows_in(path)
    (by_people,) = [row for row in rows if row["by"] == "people"]
    # What LlamaIndex embeds has the metadata before the text.
    assert by_people["sentence2"].startswith(f"topic: 2\nnumber: {judged}\n")
    assert (by_people["sentence1"], by_people["score"], by_people["date"][:10]) == ("2", 0.25, "1970-01-02")
    assert {row["date"][:10] for row in rows if row["by"] == "teacher"} == {"1970-01-01"}
    assert all('"tenant"' in row["filters"] and '"a"' in row["filters"] for row in rows)
    memory.export(path, refined.vector_store)
    assert {row["by"] for row in rows_in(path)} == {"teacher", "both"}


@in_memory
def test_what_expired_changed_or_is_gone_is_left_out(place: Place, tmp_path):
    name, now = filled(place), [0.0]
    memory = RefinementMemory(SimpleKVStore(), max_age=10, clock=lambda: now[0])
    refined = retriever(place, name, memory)
    gone, changed, *_ = [int(node_id) for node_id in refined.refine(asked(1)).grade_of]
    place.writer.delete(name, [gone])
    place.writer.set_payload(name, {"meta": {"abstract": "rewritten"}}, [changed])
    path = tmp_path / "pairs.jsonl"
    assert memory.export(path, refined.vector_store, "pairs") == 18
    assert not [row for row in rows_in(path) if "rewritten" in row["sentence2"]]
    now[0] = 11.0
    assert memory.export(path, refined.vector_store, "pairs") == 0


@in_memory
def test_bad_input_leaves_the_file_as_it_was(place: Place, tmp_path):
    memory = RefinementMemory(SimpleKVStore())
    refined = retriever(place, filled(place), memory)
    refined.refine(asked(1))
    path = tmp_path / "kept.jsonl"
    path.write_text("kept")
    with pytest.raises(ValueError, match="kind must be 'triplets' or 'pairs', got 'tuples'"):
        memory.export(path, refined.vector_store, "tuples")
    with pytest.raises(ValueError, match="vector_store must be the QdrantVectorStore"):
        memory.export(path, place.client)
    place.writer.delete(place.made[0], list(range(200)))
    with pytest.raises(ValueError, match="vector_store holds none of the graded nodes"):
        memory.export(path, refined.vector_store)
    assert path.read_text() == "kept"
    with pytest.raises(FileNotFoundError):
        RefinementMemory(SimpleKVStore()).export(tmp_path / "no folder" / "file", refined.vector_store)


@in_memory
def test_the_datasets_library_reads_it(place: Place, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra bench")
    memory = RefinementMemory(SimpleKVStore())
    refined = retriever(place, filled(place), memory)
    refined.refine(asked(1))
    path = tmp_path / "pairs.jsonl"
    count = memory.export(path, refined.vector_store, "pairs")
    read = datasets.Dataset.from_json(str(path), cache_dir=str(tmp_path))
    assert (read.num_rows, read.features["score"].dtype) == (count, "float64")
