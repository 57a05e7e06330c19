"""Each loader on a few rows in the form in which its source serves them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llama_index_refine.evaluation.datasets import Document, Query
from llama_index_refine.evaluation.named import load_named

hub = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_card(folder: Path, files: dict[str, dict[str, str]]) -> None:
    """The README whose front matter tells the hub which files make which configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["---", "configs:"]
    for config, splits in files.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_retrieval(folder: Path) -> Path:
    """As mteb/scifact, mteb/nfcorpus and mteb/arguana: JSON lines, the labels of each split in a file."""
    write_card(
        folder,
        {
            "default": {"train": "qrels/train.jsonl", "test": "qrels/test.jsonl"},
            "corpus": {"corpus": "corpus.jsonl"},
            "queries": {"queries": "queries.jsonl"},
        },
    )
    write_jsonl(folder / "qrels/train.jsonl", [{"query-id": "0", "corpus-id": "11", "score": 1.0}])
    write_jsonl(folder / "qrels/test.jsonl", [{"query-id": "1", "corpus-id": "12", "score": 2.0}])
    corpus = [{"_id": "11", "title": "Cells", "text": "They divide."}, {"_id": "12", "title": "", "text": "They rest."}]
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", [{"_id": "0", "text": "divide?"}, {"_id": "1", "text": "rest?"}])
    return folder


@pytest.mark.parametrize("name", ["scifact", "nfcorpus"])
def test_retrieval(tmp_path: Path, name: str) -> None:
    data = load_named(name, str(write_retrieval(tmp_path / "repository")))
    assert data.name == name
    assert data.documents == [Document("11", "Cells They divide."), Document("12", "They rest.")]
    assert data.queries == [Query("1", "rest?")]
    assert data.qrels == {"1": {"12": 2}}


def test_arguana_query_does_not_find_itself(tmp_path: Path) -> None:
    data = load_named("arguana", str(write_retrieval(tmp_path / "repository")))
    assert data.queries == [Query("1", "rest?", exclude="1")]


def test_banking77(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    for split, rows in {
        "train": [("My card has not come", 0, "card_arrival"), ("Top up failed", 1, "top_up_failed")],
        "test": [("Where is my card?", 0, "card_arrival")],
    }.items():
        columns = ("text", "label", "label_text")
        write_jsonl(folder / f"{split}.jsonl", [dict(zip(columns, row, strict=True)) for row in rows])
    data = load_named("banking77", str(folder))
    assert [query.text for query in data.queries] == ["card arrival", "top up failed"]
    assert len(data.documents) == 3
    assert data.qrels["card_arrival"] == {"d0": 1, "d2": 1}


def test_clinc150(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    write_card(folder, {name: {"train": f"{name}/train-00000-of-00001.parquet"} for name in ("plus", "small")})
    features = hub.Features({"text": hub.Value("string"), "intent": hub.ClassLabel(names=["alarm", "oos", "balance"])})
    for name in ("plus", "small"):
        (folder / name).mkdir()
        rows = {
            "text": ["wake me at six", "what is love", "how much have i", f"only in {name}"],
            "intent": [0, 1, 2, 2],
        }
        hub.Dataset.from_dict(rows, features=features).to_parquet(folder / name / "train-00000-of-00001.parquet")
    described = [
        {"intent_name": "alarm", "intent_description": "Requests to set an alarm, including its time."},
        {"intent_name": "balance", "intent_description": " Requests for the balance. "},
    ]
    write_csv(folder / "clinc150_intent_mapping.csv", described)
    data = load_named("clinc150", str(folder))
    assert [query.text for query in data.queries] == [
        "Requests to set an alarm, including its time.",
        "Requests for the balance.",
    ]
    assert [document.text for document in data.documents] == ["wake me at six", "how much have i", "only in plus"]
    assert data.qrels["balance"] == {"d1": 1, "d2": 1}


def test_argkp21(tmp_path: Path) -> None:
    topic = {"topic": "We should adopt an austerity regime", "stance": -1}
    for split, number in (("train", 0), ("dev", 8)):
        argument, key_point = f"arg_{number}_0", f"kp_{number}_0"
        write_csv(tmp_path / f"arguments_{split}.csv", [{"arg_id": argument, "argument": "It hurts, much", **topic}])
        write_csv(tmp_path / f"key_points_{split}.csv", [{"key_point_id": key_point, "key_point": "It harms", **topic}])
        write_csv(tmp_path / f"labels_{split}.csv", [{"arg_id": argument, "key_point_id": key_point, "label": 1}])
    data = load_named("argkp21", str(tmp_path))
    group = "We should adopt an austerity regime|-1"
    assert data.documents[1] == Document("arg_8_0", "It hurts, much", (group,))
    assert data.queries[0] == Query("kp_0_0", "It harms", group)
    assert data.qrels == {"kp_0_0": {"arg_0_0": 1}, "kp_8_0": {"arg_8_0": 1}}


def write_followir(folder: Path, labels: str = "default") -> Path:
    """As mteb/Core17InstructionRetrieval: Parquet, a configuration each for instructions, candidates and changes."""
    tables: dict[str, tuple[str, dict[str, list[Any]]]] = {
        labels: ("test", {"query-id": ["7-og", "7-changed"], "corpus-id": ["a", "b"], "score": [1.0, 1.0]}),
        "corpus": ("corpus", {"_id": ["a", "b", "c"], "title": ["A", "", "C"], "text": ["first", "second", "third"]}),
        "queries": ("queries", {"_id": ["7-og", "7-changed"], "text": ["ships", "ships"]}),
        "instruction": ("instruction", {"query-id": ["7-og", "7-changed"], "instruction": ["Any.", "Only steam."]}),
        "top_ranked": ("top_ranked", {"query-id": ["7-og", "7-changed"], "corpus-ids": [["a", "b"], ["a", "b"]]}),
        "qrel_diff": ("qrel_diff", {"query-id": ["7"], "corpus-ids": [["a"]]}),
    }
    write_card(folder, {name: {split: f"{name}/{split}-00000.parquet"} for name, (split, _) in tables.items()})
    for name, (split, columns) in tables.items():
        (folder / name).mkdir()
        hub.Dataset.from_dict(columns).to_parquet(folder / name / f"{split}-00000.parquet")
    return folder


def test_followir(tmp_path: Path) -> None:
    data = load_named("followir-core17", str(write_followir(tmp_path / "repository")))
    assert data.queries[1] == Query("7-changed", "ships\nOnly steam.", "7-changed")
    assert data.documents[0] == Document("a", "A first", ("7-og", "7-changed"))
    assert data.pool(data.queries[0]).tolist() == [0, 1]
    assert data.changed == {"7": ["a"]}


def test_real_scholar_query(tmp_path: Path) -> None:
    (tmp_path / "paper_database").mkdir()
    titles = {"2101.00001": "On ranking", "2101.00002": "On hashing", "2101.00003": "Withdrawn"}
    (tmp_path / "paper_database/id2paper.json").write_text(json.dumps(titles))
    with zipfile.ZipFile(tmp_path / "paper_database/cs_paper_2nd.zip", "w") as papers:
        for number, title in titles.items():
            abstract = "" if title == "Withdrawn" else f"{title}, told shortly."
            papers.writestr(
                f"cs_paper_2nd/{number}", json.dumps({"title": title, "abstract": abstract, "sections": {}})
            )
    question = {"question": "Papers about ranking", "answer_arxiv_id": ["2101.00001", "9999.00001"], "qid": "x"}
    write_jsonl(tmp_path / "RealScholarQuery/test.jsonl", [question])
    data = load_named("realscholarquery", str(tmp_path))
    assert data.documents == [
        Document("2101.00001", "On ranking, told shortly."),
        Document("2101.00002", "On hashing, told shortly."),
    ]
    assert data.queries == [Query("q0", "Papers about ranking")]
    assert data.qrels == {"q0": {"2101.00001": 1}}


def test_without_network_it_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "from llama_index_refine.evaluation.loading import load_dataset\n"
        "from llama_index_refine.evaluation.named import DatasetUnavailable\n"
        "try: load_dataset('scifact')\n"
        "except DatasetUnavailable as error: print(error)\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=True)
    assert "scifact could not be fetched from mteb/scifact" in done.stdout
    assert "HF_HOME" in done.stdout
    assert "qrels/test.tsv" in done.stdout


def test_broken_source_is_not_called_a_network_problem(tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "repository")
    write_jsonl(folder / "corpus.jsonl", [{"number": "11"}])
    with pytest.raises(KeyError):
        load_named("scifact", str(folder))


def test_followir_is_sampled_by_instruction(tmp_path: Path) -> None:
    data = load_named("followir-news21", str(write_followir(tmp_path / "repository", labels="qrels")))
    assert data.sample(1) == [0, 1]
