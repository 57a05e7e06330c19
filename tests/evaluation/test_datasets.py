import json
from pathlib import Path

import numpy as np
import pytest

from llama_index_refine.evaluation.datasets import Dataset, Document, Query, load_folder
from llama_index_refine.evaluation.loading import expand, load_dataset
from tests.toy_data import write_folder


def test_folder_in_beirs_form(toy: Path) -> None:
    data = load_folder(toy)
    assert data.name == "toy"
    assert data.documents[41] == Document("d41", "Topic 1 Document 41.")
    assert data.queries[0] == Query("q0", "What about topic 0?")
    assert data.qrels["q5"]["d239"] == 1
    assert data.vectors == {"toy": toy / "toy.npz"}
    assert load_dataset(str(toy)).qrels == data.qrels


def test_groups_restrict_what_a_query_searches(grouped: Path) -> None:
    data = load_folder(grouped)
    rows = data.pool(data.queries[1])
    assert {data.documents[row].groups for row in rows} == {("odd",)}
    assert len(rows) == 120


def test_document_may_be_in_several_groups(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", vectors=False)
    rows = [{"_id": "d0", "text": "a", "group": ["x", "y"]}, {"_id": "d1", "text": "b", "group": "y"}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_folder(folder)
    assert data.pool(Query("q", "", "x")).tolist() == [0]
    assert data.pool(Query("q", "", "y")).tolist() == [0, 1]
    assert data.pool(Query("q", "", "z")).tolist() == []


def test_excluded_document_is_not_searched() -> None:
    documents = [Document(f"d{i}", "text") for i in range(3)]
    data = Dataset("x", documents, [Query("d1", "text", exclude="d1")], {"d1": {"d2": 1}})
    assert data.pool(data.queries[0]).tolist() == [0, 2]


def test_plain_qrels_file_and_the_split(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", vectors=False)
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td1\t2\n")
    assert load_folder(folder, "train").qrels == {"q0": {"d1": 2}}
    assert "q5" in load_folder(folder).qrels
    (folder / "qrels.tsv").write_text("q0\t0\td7\t1\n")
    assert load_folder(folder).qrels == {"q0": {"d7": 1}}


def test_sample_is_the_same_for_the_same_seed(toy: Path) -> None:
    data = load_folder(toy)
    assert data.sample(None) == [0, 1, 2, 3, 4, 5]
    assert data.sample(3, seed=4) == data.sample(3, seed=4)
    assert len(set(data.sample(3))) == 3


def test_sample_keeps_both_halves_of_a_changed_instruction() -> None:
    queries = [Query(f"{i}-{half}", "text") for i in range(9) for half in ("og", "changed")]
    data = Dataset("x", [Document("d", "text")], queries, {q.id: {"d": 1} for q in queries}, changed={"0": ["d"]})
    ids = [queries[row].id for row in data.sample(6)]
    assert len(ids) == 6
    assert len({name.split("-")[0] for name in ids}) == 3


def test_queries_without_a_relevant_document_are_left_out() -> None:
    queries = [Query("a", "text"), Query("b", "text"), Query("c", "text")]
    data = Dataset("x", [Document("d", "text")], queries, {"a": {"d": 1}, "b": {"d": 0}, "c": {"gone": 1}})
    assert data.sample(None) == [0]


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write_folder(tmp_path / "data", vectors=False)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        load_folder(folder)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("corpus.jsonl", "{not json", "corpus.jsonl, line 1 is not JSON"),
        ("corpus.jsonl", '{"text": "x"}', "corpus.jsonl, line 1 has no '_id'"),
        ("queries.jsonl", "[1]", "queries.jsonl, line 1 must be a JSON object"),
        ("qrels/test.tsv", "query\tdocument\tscore\nq0 d0 1\n", "test.tsv, line 2 must be query-id"),
        ("qrels/test.tsv", "query\tdocument\tscore\nq0\td0\tyes\n", "test.tsv, line 2 must be query-id"),
        ("qrels/test.tsv", "q0\tnowhere\t1\n", "no query has a relevant document"),
        ("corpus.jsonl", "", "no documents"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, file: str, line: str, message: str) -> None:
    folder = write_folder(tmp_path / "data", vectors=False)
    (folder / file).write_text(line)
    with pytest.raises(ValueError, match=message):
        load_folder(folder)


def test_unknown_name_tells_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'no-such-data' is neither a folder.*scifact"):
        load_dataset("no-such-data")


def test_followir_is_measured_in_its_three_parts() -> None:
    assert expand(["scifact", "FollowIR"]) == ["scifact", "followir-core17", "followir-news21", "followir-robust04"]


def test_vectors_are_found_by_name(toy: Path) -> None:
    with np.load(load_folder(toy).vectors["toy"]) as arrays:
        assert arrays["corpus"].shape == (240, 32)
