import json
from pathlib import Path

import numpy as np
import pytest

from llama_index_refine.evaluation.datasets import Dataset, Document, Query, load_folder
from llama_index_refine.evaluation.loading import expand, load_dataset
from llama_index_refine.evaluation.metrics import score_rankings
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


def written(folder: Path, corpus: dict[str, str], queries: dict[str, str], qrels: str, encoding: str = "utf-8") -> Path:
    folder.mkdir()
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps({"_id": key, "text": text}) + "\r\n" for key, text in rows.items())
        (folder / f"{name}.jsonl").write_bytes(lines.encode(encoding))
    (folder / "qrels.tsv").write_bytes(qrels.encode(encoding))
    return folder


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path: Path) -> None:
    texts = {"a": "cats or dogs", "b": "dogs or cats", "c": "rain"}
    folder = written(tmp_path / "data", texts, {"a": "cats or dogs", "c": "rain", "q": "snow"}, "a\tb\t1\nc\tc\t1\n")
    data = load_folder(folder)
    assert [query.exclude for query in data.queries] == ["a", None, None]
    assert data.pool(data.queries[0]).tolist() == [1, 2]
    assert data.relevant(data.queries[1]) == {2}
    assert data.sample(None) == [0, 1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\r\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\t\r\n"])
def test_byte_order_marks_and_qrels_with_and_without_header(
    tmp_path: Path, encoding: str, header: str, end: str
) -> None:
    rows = f"q1\td1\t1{end}q1\td2\t0{end}\n"
    data = load_folder(written(tmp_path / "data", {"d1": "größer", "d2": "b"}, {"q1": "猫"}, header + rows, encoding))
    assert data.queries[0] == Query("q1", "猫")
    assert data.documents[0] == Document("d1", "größer")
    assert data.qrels == {"q1": {"d1": 1, "d2": 0}}


def test_qrels_as_trec_writes_them(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", {"d1": "a", "d2": "b"}, {"q1": "q"}, "q1 0 d1 1\nq1 0 d2 0\n")
    assert load_folder(folder).qrels == {"q1": {"d1": 1, "d2": 0}}


def test_files_with_marks_that_were_put_together(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", {"d1": "a"}, {"q1": "q"}, "q1\td1\t1\n", "utf-8-sig")
    for name, more in (("corpus.jsonl", '{"_id": "d2", "text": "b"}\n'), ("qrels.tsv", "q1\td2\t1\n")):
        (folder / name).write_bytes((folder / name).read_bytes() + more.encode("utf-8-sig"))
    assert load_folder(folder).qrels == {"q1": {"d1": 1, "d2": 1}}


@pytest.mark.parametrize("file", ["corpus.jsonl", "qrels.tsv"])
def test_a_file_in_another_encoding_is_named(tmp_path: Path, file: str) -> None:
    folder = written(tmp_path / "data", {"d1": "a"}, {"q1": "q"}, "q1\td1\t1\n")
    (folder / file).write_bytes('{"_id": "d1", "text": "größer"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{file} is not in UTF-8"):
        load_folder(folder)


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
        ("corpus.jsonl", '{"_id": "d", "text": null}', "corpus.jsonl, line 1 has no 'text'"),
        ("queries.jsonl", "[1]", "queries.jsonl, line 1 must be a JSON object"),
        ("qrels/test.tsv", "query\tdocument\tscore\nq0 d0 1\n", "test.tsv, line 2 must be query-id"),
        ("qrels/test.tsv", "query\tdocument\tscore\nq0\td0\tyes\n", "test.tsv, line 2 must be query-id"),
        ("qrels/test.tsv", "q0\td0\t1\nq0\td1\tinf\n", "test.tsv, line 2 must be query-id"),
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


def test_a_label_with_a_fraction_is_relevant_and_counts_in_every_metric(tmp_path: Path) -> None:
    texts = {f"d{n}": f"text {n}" for n in range(4)}
    folder = written(tmp_path / "data", texts, {"q": "x"}, "q\td0\t1.0\nq\td1\t0.67\nq\td2\t0.33\nq\td3\t0.0\n")
    data = load_folder(folder)
    assert data.relevant(data.queries[0]) == {0, 1, 2}
    found = score_rankings({"q": ["d0", "d1", "d2", "d3"]}, data.qrels)
    assert found["MAP"]["q"] == found["recall@10"]["q"] == found["nDCG@10"]["q"] == 1


def test_the_digest_tells_what_is_measured(tmp_path: Path) -> None:
    texts = {"d0": "a", "d1": "b"}
    first = load_folder(written(tmp_path / "one", texts, {"q": "x"}, "q\td0\t1\n"))
    same = load_folder(written(tmp_path / "two", texts, {"q": "x"}, "q\td0\t1\n"))
    labels = load_folder(written(tmp_path / "three", texts, {"q": "x"}, "q\td1\t1\n"))
    words = load_folder(written(tmp_path / "four", {**texts, "d1": "c"}, {"q": "x"}, "q\td0\t1\n"))
    assert first.digest == same.digest
    assert len({first.digest, labels.digest, words.digest}) == 3
