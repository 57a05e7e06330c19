"""A million vectors on a laptop: retrieval with refinement beside plain retrieval, on Qdrant Edge.

    python results/edge_million.py                          ten thousand, a hundred thousand and a million vectors
    python results/edge_million.py --sizes 10000 50000      smaller ones
    python results/edge_million.py --out results/edge_million.md

Vectors are 384-dimensional, around random centres, a thousand to each; a query lies between two of them, and the
teacher knows the topic, so that what is timed is everything but the LLM. Each size runs in a process of its own, so
that its memory is its own. Plain retrieval is the vector store's own query. Times are medians and 95th percentiles over
the queries; those of another machine will differ, their ratios should not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DIMENSION = 384
PER_TOPIC = 1000
CHUNK = 2000
WARM_UP = 20
SEED = 5
# Edge indexes with one thread for each core, and the measurement is for a machine of two.
CORES = 2


def centres(count: int) -> np.ndarray:
    """(topics, DIMENSION)"""
    return np.random.default_rng(SEED).normal(size=(max(count // PER_TOPIC, 2), DIMENSION)).astype(np.float32)


def documents(count: int) -> Iterator[tuple[int, np.ndarray]]:
    """The vectors, a chunk at a time; vector i is about topic i % topics."""
    middle = centres(count)
    rng = np.random.default_rng(SEED + 1)
    for start in range(0, count, CHUNK):
        topics = np.arange(start, min(start + CHUNK, count)) % len(middle)
        noise = rng.normal(size=(len(topics), DIMENSION)).astype(np.float32)
        yield start, middle[topics] + 2.0 * noise


def questions(count: int, queries: int) -> list[tuple[int, np.ndarray]]:
    """Queries between their topic and another, with some noise."""
    middle = centres(count)
    rng = np.random.default_rng(SEED + 2)
    made = []
    for _ in range(queries):
        topic, other = rng.choice(len(middle), 2, replace=False)
        made.append((int(topic), 0.5 * middle[topic] + 0.4 * middle[other] + 0.5 * rng.normal(size=DIMENSION)))
    return made


def memory() -> float:
    """Resident memory in MiB, files that are mapped into it included."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def measure(count: int, queries: int, folder: str) -> dict[str, object]:
    """Fill a collection and time both ways of retrieving from it."""
    from llama_index.core.schema import QueryBundle
    from llama_index.core.vector_stores.types import VectorStoreQuery
    from qdrant_client import models

    from llama_index_refine import BaseGrader, RefinedRetriever
    from llama_index_refine.qdrant.edge import EdgeClient

    class Knowing(BaseGrader):
        def grade(self, query, nodes):
            return [float(node.metadata["topic"] == query.query_str) for node in nodes]

    client = EdgeClient(folder)
    client.create_collection("million", models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE))
    topics = len(centres(count))
    began = time.perf_counter()
    for start, rows in documents(count):
        payloads = [{"text": f"document {start + at}", "topic": str((start + at) % topics)} for at in range(len(rows))]
        points = [
            models.PointStruct.model_construct(id=start + at, vector=row, payload=payload)
            for at, (row, payload) in enumerate(zip(rows.tolist(), payloads, strict=True))
        ]
        client.upsert("million", points)
    written = time.perf_counter() - began
    client.optimize("million")
    indexed = time.perf_counter() - began - written
    refined = RefinedRetriever.from_collection(
        client, "million", "text", grader=Knowing(), similarity_top_k=10, feedback_top_k=20, on_error="raise"
    )
    store = refined._collection.store
    plain_seconds, refined_seconds, stages = [], [], []
    hits = [0, 0]
    for at, (topic, vector) in enumerate(questions(count, WARM_UP + queries)):
        began = time.perf_counter()
        plain = store.query(VectorStoreQuery(query_embedding=vector.tolist(), similarity_top_k=10))
        between = time.perf_counter()
        refinement = refined.refine(QueryBundle(str(topic), embedding=vector.tolist()))
        ended = time.perf_counter()
        if at < WARM_UP:
            continue
        assert refinement.refined
        plain_seconds.append(between - began)
        refined_seconds.append(ended - between)
        own = refinement.timings.get("search", 0) + refinement.timings.get("fetch", 0)
        stages.append((own, ended - between - own))
        hits[0] += sum(node.metadata["topic"] == str(topic) for node in plain.nodes)
        hits[1] += sum(entry.node.metadata["topic"] == str(topic) for entry in refinement.nodes)
    info = client.get_collection("million")
    result = {
        "vectors": count,
        "indexed": info.indexed_vectors_count,
        "write_s": written,
        "index_s": indexed,
        "memory_mib": memory(),
        "disk_mib": sum(file.stat().st_blocks for file in Path(folder).rglob("*") if file.is_file()) / 2048,
        "plain_ms": percentiles(plain_seconds),
        "refined_ms": percentiles(refined_seconds),
        "searching_ms": percentiles([search for search, _ in stages]),
        "refining_ms": percentiles([rest for _, rest in stages]),
        "relevant_plain": hits[0] / queries,
        "relevant_refined": hits[1] / queries,
    }
    client.close()
    return result


def percentiles(seconds: list[float]) -> list[float]:
    """Median and 95th percentile, in milliseconds."""
    return [round(1000 * float(np.percentile(seconds, share)), 2) for share in (50, 95)]


def table(rows: list[dict], queries: int) -> str:
    """The report."""
    first, last = rows[0], rows[-1]
    sizes = " ".join(str(row["vectors"]) for row in rows)
    lines = [
        "# A million vectors on Qdrant Edge",
        "",
        f"`python results/edge_million.py --sizes {sizes} --queries {queries}`, "
        f"{CORES} cores, {platform.machine()}, Python {platform.python_version()}; {DIMENSION} dimensions, {queries} "
        "queries each, 20 graded documents, a teacher that takes no time.",
        "",
        "Milliseconds are median / 95th percentile. *Searching* is the time in Qdrant of all searches of one refined "
        "retrieval; *refining* is all the rest: choosing, optimising, fusing, making nodes.",
        "",
        "| vectors | plain | with refinement | ratio | searching | refining | relevant of 10, plain | refined "
        "| memory | disk | written in | indexed in |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = [" / ".join(f"{value:.1f}" for value in row[f"{name}_ms"]) for name in ("plain", "refined")]
        parts = [" / ".join(f"{value:.1f}" for value in row[f"{name}_ms"]) for name in ("searching", "refining")]
        lines.append(
            f"| {row['vectors']:,} | {times[0]} | {times[1]} | {row['refined_ms'][0] / row['plain_ms'][0]:.1f} "
            f"| {parts[0]} | {parts[1]} | {row['relevant_plain']:.1f} | {row['relevant_refined']:.1f} "
            f"| {row['memory_mib'] / 1024:.2f} GiB | {row['disk_mib'] / 1024:.2f} GiB | {row['write_s']:.0f} s "
            f"| {row['index_s']:.0f} s |"
        )
    growth = last["refining_ms"][0] / first["refining_ms"][0]
    lines += [
        "",
        f"From {first['vectors']:,} to {last['vectors']:,} vectors, {last['vectors'] / first['vectors']:.0f} times as "
        f"many, plain retrieval took {last['plain_ms'][0] / first['plain_ms'][0]:.1f} times as long, and refining "
        f"itself {growth:.2f} times.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write the report to this file as well")
    parser.add_argument("--folder", type=Path, help="where the collections are made; a temporary folder otherwise")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(measure(options.one, options.queries, folder)))
        return
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in options.sizes:
        command = [sys.executable, __file__, "--one", str(size), "--queries", str(options.queries)]
        if options.folder:
            command += ["--folder", str(options.folder)]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(ran.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr)
    report = table(rows, options.queries)
    print(report)
    if options.out:
        options.out.write_text(report)


if __name__ == "__main__":
    main()
