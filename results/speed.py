"""Time what the library itself costs a query, beside the published procedure in the same process, on one core.

    python results/speed.py --out results/speed.json

Every figure is a median over --repeats runs. Ratios hold on another machine, milliseconds only on this one.
With --device cuda the arithmetic of both, and the vectors, are on a GPU, and only refinements are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from llama_index_refine import BaseGrader, QueryRefiner, RefinedRetriever

GRADED, BACKGROUND, BATCH = 20, 30, 64
DOCUMENTS = 2000


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def lesson(size: int, batch: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    queries = unit(rng.normal(size=(batch, size)))
    documents = unit(queries[:, None] + rng.normal(size=(batch, GRADED, size)) / 3)
    background = unit(rng.normal(size=(BACKGROUND, size)))
    return queries, documents, rng.random((batch, GRADED)), background


def milliseconds(work, repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def refinement(size: int, repeats: int, device: str) -> dict[str, float]:
    queries, documents, grades, background = lesson(size, BATCH)
    if device != "cpu":
        parts = (queries, documents, grades, background)
        queries, documents, grades, background = (torch.from_numpy(part).float().to(device) for part in parts)
    ours, paper = QueryRefiner(), QueryRefiner.paper()
    one = milliseconds(lambda: ours.refine(queries[0], documents[0], grades[0], background, population=10_000), repeats)
    published = milliseconds(lambda: paper.refine(queries[0], documents[0], grades[0]), max(3, repeats // 5))
    batch = milliseconds(
        lambda: ours.refine_batch(queries, documents, grades, background, population=10_000), max(3, repeats // 5)
    )
    return {
        "dimensions": size,
        "ours_ms": one,
        "paper_ms": published,
        "times_faster": published / one,
        "batch_ms_per_query": batch / BATCH,
        "batch_throughput": one * BATCH / batch,
    }


class ByNumber(BaseGrader):
    """Takes no time: grades by the document's number."""

    def grade(self, query, nodes):
        return [float(node.metadata["row"] % 3 == 0) for node in nodes]


def overhead(size: int, rounds: int, repeats: int) -> dict[str, float]:
    """Time a whole query and take off what waited for Qdrant and the teacher."""
    rng = np.random.default_rng(1)
    store = QdrantVectorStore(collection_name="speed", client=QdrantClient(":memory:"))
    store.add(
        [
            TextNode(text=f"document {row}", metadata={"row": row}, embedding=vector.tolist())
            for row, vector in enumerate(unit(rng.normal(size=(DOCUMENTS, size))))
        ]
    )
    retriever = RefinedRetriever(store, MockEmbedding(embed_dim=size), ByNumber(), rounds=rounds)
    own, whole = [], []
    for vector in unit(rng.normal(size=(repeats + 1, size))):
        query = QueryBundle("query", embedding=vector.tolist())
        began = time.perf_counter()
        found = retriever.refine(query)
        took = time.perf_counter() - began
        waiting = sum(seconds for stage, seconds in found.timings.items() if stage != "refine")
        own.append(took - waiting)
        whole.append(took)
    return {
        "dimensions": size,
        "rounds": rounds,
        "added_ms": 1e3 * float(np.median(own[1:])),
        "whole_query_ms": 1e3 * float(np.median(whole[1:])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cpu", help="cpu, or a torch device such as cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine, overheads = platform.machine(), [(size, rounds) for size in (384, 1024) for rounds in (1, 2)]
    if args.device != "cpu":
        machine, overheads = f"{torch.cuda.get_device_name(args.device)}, {machine}", []
    result = {
        "machine": f"{machine}, one core, torch {torch.__version__}, Python {platform.python_version()}",
        "setting": f"K = {GRADED}, {BACKGROUND} background vectors, batch of {BATCH}, median of {args.repeats}",
        "refinement": [refinement(size, args.repeats, args.device) for size in (384, 1024, 4096)],
        "overhead": [overhead(size, rounds, args.repeats) for size, rounds in overheads],
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
