"""A GPU gives what the CPU gives."""

import numpy as np
import pytest
import torch
from llama_index.core.embeddings import MockEmbedding

from llama_index_refine import QueryRefiner, RefinedRetriever
from llama_index_refine.similarity import METRICS
from tests.planted import SIZE, Planted, TopicGrader
from tests.refining import test_matrices, test_refiner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def batch(queries: int = 5):
    lessons = [test_refiner.lesson(seed) for seed in range(queries)]
    return [np.stack(parts) for parts in zip(*lessons, strict=True)]


def near(on_gpu, on_cpu) -> None:
    for name in ("vector", "fused", "held_out", "student_after"):
        np.testing.assert_allclose(getattr(on_gpu, name), getattr(on_cpu, name), atol=1e-4, err_msg=name)
    assert on_gpu.converged


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("background", [True, False])
def test_one_query(metric, background):
    query, documents, grades, around = test_refiner.lesson()
    around = around if background else None
    on_gpu = QueryRefiner(metric, device="cuda").refine(query, documents, grades, around)
    assert isinstance(on_gpu.vector, np.ndarray)
    near(on_gpu, QueryRefiner(metric).refine(query, documents, grades, around))


@pytest.mark.parametrize("metric", METRICS)
def test_tensors_stay_where_they_are(metric):
    parts = test_refiner.lesson()
    found = QueryRefiner(metric).refine(*(torch.from_numpy(part).cuda() for part in parts))
    assert all(tensor.is_cuda for tensor in (found.vector, found.fused, found.target, *found.path))
    np.testing.assert_allclose(found.vector.cpu(), QueryRefiner(metric).refine(*parts).vector, atol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shared", [True, False])
def test_a_batch(metric, shared):
    queries, documents, grades, around = batch()
    around = around[0] if shared else around
    options = {"population": 10_000, "trust": np.linspace(0.2, 1, 5), "signal": np.linspace(0.1, 3, 5)}
    on_gpu = QueryRefiner(metric, device="cuda").refine_batch(queries, documents, grades, around, **options)
    on_cpu = QueryRefiner(metric).refine_batch(queries, documents, grades, around, **options)
    for pair in zip(on_gpu, on_cpu, strict=True):
        near(*pair)


@pytest.mark.parametrize("metric", METRICS)
def test_a_matrix(metric):
    parts = test_matrices.lesson()
    near(QueryRefiner(metric, device="cuda").refine(*parts), QueryRefiner(metric).refine(*parts))


def test_the_published_procedure():
    query, documents, grades, _ = test_refiner.lesson()
    on_gpu = QueryRefiner.paper(device="cuda").refine(query, documents, grades)
    near(on_gpu, QueryRefiner.paper().refine(query, documents, grades))


def test_a_retriever():
    planted = Planted()

    def found(device):
        embed_model, refiner = MockEmbedding(embed_dim=SIZE), QueryRefiner(device=device)
        retriever = RefinedRetriever(planted.store(), embed_model, TopicGrader(), refiner=refiner)
        return [(hit.node_id, round(hit.score, 4)) for hit in retriever.retrieve(planted.query(0))]

    assert found("cuda") == found(None)
