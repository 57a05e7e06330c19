"""LlamaIndex's evaluators on a refined retriever."""

from __future__ import annotations

import json

import pytest
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.evaluation.benchmarks import BeirEvaluator

from llama_index_refine import RefinedRetriever
from tests.small_index import QUERY, BrokenGrader, SubjectGrader, make_index, make_nodes, node_id


async def test_retriever_evaluator(index, retriever):
    metrics = ["hit_rate", "mrr", "precision", "recall", "ndcg"]
    relevant = [node_id(f"owls {at}") for at in range(10)]
    unrefined = RefinedRetriever.from_index(index, grader=BrokenGrader(), similarity_top_k=4)
    refined = RetrieverEvaluator.from_metric_names(metrics, retriever=retriever)
    plain = RetrieverEvaluator.from_metric_names(metrics, retriever=unrefined)
    ours, theirs = await refined.aevaluate(QUERY, relevant), await plain.aevaluate(QUERY, relevant)
    assert ours.metric_vals_dict["precision"] == 1
    assert ours.metric_vals_dict["mrr"] == 1
    assert theirs.metric_vals_dict["precision"] == 0.25
    assert refined.evaluate(QUERY, relevant).retrieved_ids == ours.retrieved_ids


def test_beir_evaluator(tmp_path, monkeypatch, capsys):
    pytest.importorskip("beir")
    pytest.importorskip("pytrec_eval")
    folder = tmp_path / "datasets" / "BeIR__small" / "small"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": node.node_id, "title": "", "text": node.text} for node in make_nodes()]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": QUERY}))
    relevant = "\n".join(f"q1\t{node_id(f'owls {at}')}\t1" for at in range(10))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{relevant}")
    monkeypatch.setenv("LLAMA_INDEX_CACHE_DIR", str(tmp_path))

    def refined(documents):
        index = make_index(documents)
        return RefinedRetriever.from_index(
            index, grader=SubjectGrader("owls"), similarity_top_k=4, trust=1.0, early_stop=False
        )

    def plain(documents):
        return make_index(documents).as_retriever(similarity_top_k=4)

    precision = []
    for create in (plain, refined):
        BeirEvaluator().run(create, datasets=["small"], metrics_k_values=[4])
        precision.append(float(capsys.readouterr().out.split("'precision@4': ")[1].split("}")[0].split(",")[0]))
    assert precision[0] == 0.25
    # The evaluator gives documents new ids in every run, by which the background is drawn anew.
    assert precision[1] >= 0.75
