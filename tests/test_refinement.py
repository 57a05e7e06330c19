"""The account of one refinement."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from llama_index.core.schema import NodeWithScore, TextNode

from llama_index_refine import QueryRefiner, Refinement
from tests.small_index import QUERY


def entry(name: str, score: float = 0.5) -> NodeWithScore:
    return NodeWithScore(node=TextNode(id_=name, text=name), score=score)


def strict(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_gained_and_lost():
    vector = np.ones(2, dtype=np.float32)
    refinement = Refinement.unmoved(vector, "q", [entry("a"), entry("b"), entry("c")])
    refinement.nodes = [entry("d"), entry("b"), entry("e")]
    assert [one.node_id for one in refinement.gained] == ["d", "e"]
    assert [one.node_id for one in refinement.lost] == ["a", "c"]
    assert refinement.rank_before == {"a": 1, "b": 2, "c": 3}


def test_grades_by_node(refinement):
    assert refinement.grade_of == {
        graded.node_id: pytest.approx(grade)
        for graded, grade in zip(refinement.graded_nodes, refinement.grades, strict=True)
    }
    assert len(refinement.grade_of) == 20


def test_the_path_ends_at_the_vector(refinement):
    assert len(refinement.path) == refinement.rounds == 2
    assert np.array_equal(refinement.path[-1], refinement.vector)
    assert not np.array_equal(refinement.path[0], refinement.vector)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclid"])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_the_refiner_says_metric_and_path(metric, kind):
    random = np.random.default_rng(0)
    query, documents = (kind(random.normal(size=shape).astype(np.float32)) for shape in (8, (6, 8)))
    refined = QueryRefiner(metric).refine(query, documents, [1, 0, 1, 0, 0, 1])
    assert refined.metric == metric
    assert len(refined.path) == 1
    assert type(refined.path[0]) is type(query)
    strict(refined.to_json(vectors=True))
    assert "Refinement" in refined._repr_html_()


def test_repr_is_short(refinement, unrefined):
    assert repr(refinement) == (
        f"<Refinement of {QUERY!r}. KL {refinement.kl_before:.3f} → {refinement.kl_after:.3f} nats by 20 grades in "
        f"2 rounds; {len(refinement.gained)} of 5 nodes new.>"
    )
    assert "Not refined: grading failed: RuntimeError: the teacher is out." in repr(unrefined)


def test_to_dict_says_what_was_found_graded_and_paid(refinement):
    record = refinement.to_dict()
    assert record["query_str"] == QUERY
    assert record["refined"] is True
    assert record["reason"] is None
    assert record["rounds"] == 2
    assert record["kl_after"] == refinement.kl_after
    assert [node["node_id"] for node in record["nodes"]] == [one.node_id for one in refinement.nodes]
    assert [node["rank"] for node in record["nodes"]] == [1, 2, 3, 4, 5]
    assert [node["node_id"] for node in record["lost"]] == [one.node_id for one in refinement.lost]
    assert [node["grade"] for node in record["graded"]] == pytest.approx(refinement.grades.tolist())
    assert [node["target"] for node in record["graded"]] == pytest.approx(refinement.target[:20].tolist())
    assert record["timings"] == dict(refinement.timings)
    assert "vector" not in record
    assert "owl" not in json.dumps(record)


def test_to_dict_with_vectors_and_texts(refinement):
    record = refinement.to_dict(vectors=True, texts=True)
    assert record["vector"] == pytest.approx(refinement.vector.tolist())
    assert np.shape(record["documents"]) == refinement.documents.shape
    assert np.shape(record["path"]) == (2, 48)
    assert record["nodes"][0]["text"] == refinement.nodes[0].text
    assert record["graded"][0]["text"] == refinement.graded_nodes[0].text


def test_json_is_strict(refinement, unrefined):
    assert strict(refinement.to_json(vectors=True, texts=True)) == refinement.to_dict(vectors=True, texts=True)
    broken = replace(refinement, kl_before=math.nan, tau=math.inf, nodes=[entry("a", math.nan)])
    record = strict(broken.to_json())
    assert isinstance(record, dict)
    assert record["kl_before"] is record["tau"] is record["nodes"][0]["score"] is None
    plain = strict(unrefined.to_json(vectors=True))
    assert isinstance(plain, dict)
    assert plain["reason"] == "grading failed: RuntimeError: the teacher is out"
    assert plain["graded"] == plain["lost"] == []
    assert "\n" not in refinement.to_json(texts=True)
