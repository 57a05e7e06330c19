"""What a refined query costs beside a plain search, by REST, gRPC, local mode and Edge: requests, searches and time.

    python -m results.costs --before PATH_OF_ANOTHER_CHECKOUT [--mode hybrid]

Run alone on a machine with two free cores: one for the server, one for the queries. The servers are those of the
tests, with Edge for their storage, as local mode's filters look at every point in Python, which no server does;
QDRANT_BINARY, where it names Qdrant's executable, adds a real one. The teacher answers at once, by labels. Each time is
the tenth percentile of all queries; both checkouts take turns, so that a slow moment counts for both.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import BaseNode, QueryBundle
from qdrant_client import QdrantClient, models

from llama_index_refine import BaseGrader, RefinedRetriever
from llama_index_refine.stores import open_store

ROOT = Path(__file__).parent.parent
NAME, SIZE, TOPICS = "costs", 384, 40
# Terms of a document, and of all documents; the first of a document are its topic's.
TERMS, VOCABULARY, OF_TOPIC = 60, 20_000, 8
# The time below which this share of the queries stays: what else the machine does disturbs it least.
UNDISTURBED = 0.1
REST, GRPC, LOCAL, EDGE, REAL_REST, REAL_GRPC = (
    "REST", "gRPC", "local mode", "Edge", "REST, real server", "gRPC, real server",
)  # fmt: skip
# How many documents of a topic are relevant to a query: as in question answering, and as in intent detection.
KINDS = {"few relevant": 3, "plenty relevant": None}


class LabelGrader(BaseGrader):
    """Knows the relevant documents."""

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Sequence[float | None]:
        relevant = set(json.loads(query.query_str))
        return [float(node.metadata["number"] in relevant) for node in nodes]


def documents(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, SIZE) vectors and (TOPICS, SIZE) centres: document i is about topic i % TOPICS."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(TOPICS, SIZE))
    rows = centres[np.arange(count) % TOPICS] + 2.0 * rng.normal(size=(count, SIZE))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), centres


def words(topic: int, seed: int, count: int) -> models.SparseVector:
    """Some terms of a topic, and others."""
    rng = np.random.default_rng([topic, seed])
    terms = np.r_[topic * OF_TOPIC + rng.permutation(OF_TOPIC)[: count // 4], rng.integers(1000, VOCABULARY, count)]
    terms = np.unique(terms)[:count]
    return models.SparseVector(indices=terms.tolist(), values=rng.uniform(0.5, 2.0, len(terms)).tolist())


def encode(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    """Encode a query, which is a list of its relevant documents, by their topic."""
    about = [words(json.loads(text)[0] % TOPICS, 0, 8) for text in texts]
    return [one.indices for one in about], [one.values for one in about]


def fill(client: Any, count: int, mode: str) -> None:
    rows, _ = documents(count)
    hybrid = mode == "hybrid"
    sparse = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)} if hybrid else None
    space = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
    client.create_collection(NAME, {"dense": space} if hybrid else space, sparse_vectors_config=sparse)
    text = "some hundred words of text, as a chunk of a document has them " * 16
    points = [
        models.PointStruct(
            id=at,
            vector={"dense": row, "words": words(at % TOPICS, at + 1, TERMS)} if hybrid else row,
            payload={"text": f"{at} {text}", "number": at},
        )
        for at, row in enumerate(rows.tolist())
    ]
    for start in range(0, count, 500):
        client.upsert(NAME, points[start : start + 500])


def queries(count: int, size: int, relevant: int | None) -> list[QueryBundle]:
    rows, centres = documents(size)
    rng = np.random.default_rng(1)
    made = []
    for at in range(count):
        topic = at % TOPICS
        vector = centres[topic] + 1.5 * rng.normal(size=SIZE)
        about = np.arange(topic, size, TOPICS)
        nearest = about[np.argsort(-(rows[about] @ vector))][:relevant]
        made.append(QueryBundle(json.dumps(nearest.tolist()), embedding=vector.tolist()))
    return made


class Counting:
    """A client's calls, and the searches in them."""

    def __init__(self, client: Any) -> None:
        self.requests = self.searches = 0
        for method in ("query_batch_points", "query_points", "count", "get_collection", "retrieve", "scroll"):
            setattr(client, method, self._counted(getattr(client, method)))

    def _counted(self, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.requests += 1
            self.searches += len(kwargs["requests"]) if "requests" in kwargs else 1
            return call(*args, **kwargs)

        return counted


def measure(
    client: Any, calls: Counting, size: int, count: int, rounds: int, early_stop: bool, mode: str
) -> dict[str, Any]:
    """Time plain and refined queries in turn. Runs in a process of its own, with the package of its PYTHONPATH."""
    names = ("dense", None, "words", encode) if mode == "hybrid" else ()
    store = open_store(client, NAME, "text", *names)
    embed_model = MockEmbedding(embed_dim=SIZE)
    of_mode = {"similarity_top_k": 10, "vector_store_query_mode": mode}
    plain = VectorStoreIndex.from_vector_store(store, embed_model).as_retriever(**of_mode)
    # The same grades in both, unless told otherwise: an older package asks for all of them.
    known = inspect.signature(RefinedRetriever).parameters
    options = {"rounds": rounds, "trust": 1.0, "on_error": "raise", "early_stop": early_stop, **of_mode}
    options = {name: value for name, value in options.items() if name in known}
    refined = RefinedRetriever(store, embed_model, LabelGrader(), **options)
    found: dict[str, Any] = {}
    for kind, relevant in KINDS.items():
        asked = queries(count + 10, size, relevant)
        for query in asked[:10]:
            plain.retrieve(query)
            refined.retrieve(query)
        times: dict[str, list[float]] = {"plain": [], "refined": []}
        processor = dict.fromkeys(times, 0.0)
        before = calls.requests, calls.searches
        for query in asked[10:]:
            for name, retriever in (("plain", plain), ("refined", refined)):
                began, worked = time.perf_counter(), time.process_time()
                retriever.retrieve(query)
                times[name].append(1000 * (time.perf_counter() - began))
                processor[name] += 1000 * (time.process_time() - worked) / count
        found[kind] = {name: float(np.quantile(values, UNDISTURBED)) for name, values in times.items()}
        found[kind] |= {f"{name} processor": spent for name, spent in processor.items()}
        # One of each is the plain search's.
        found[kind]["requests"] = (calls.requests - before[0]) / count - 1
        found[kind]["searches"] = (calls.searches - before[1]) / count - 1
    return found


def client_of(place: str, address: str, size: int, mode: str) -> Any:
    if place in (REST, REAL_REST):
        return QdrantClient(url=address, check_compatibility=False)
    if place in (GRPC, REAL_GRPC):
        port = int(address.rsplit(":", 1)[-1])
        return QdrantClient(url="http://127.0.0.1", grpc_port=port, prefer_grpc=True, check_compatibility=False)
    if place == EDGE:
        return on_edge(size, mode)
    client = QdrantClient(":memory:")
    fill(client, size, mode)
    return client


def on_edge(size: int, mode: str) -> Any:
    from llama_index_refine.qdrant.edge import EdgeClient

    client = EdgeClient(tempfile.mkdtemp())
    fill(client, size, mode)
    client.optimize(NAME)
    return client


def serve(place: str, size: int, mode: str) -> None:
    """Be one of the tests' servers, until the input ends."""
    if place == REST:
        from tests.qdrant_server import QdrantServer

        server: Any = QdrantServer().start()
        address = server.url
    else:
        from tests.qdrant_grpc_server import QdrantGrpcServer

        server = QdrantGrpcServer().start()
        address = f"http://127.0.0.1:{server.port}"
    server.storage = on_edge(size, mode)
    print(address, flush=True)
    sys.stdin.read()
    server.stop()


@contextmanager
def serving(place: str, size: int, mode: str) -> Iterator[str]:
    """The address of a server with the collection; empty where there is none."""
    if place in (LOCAL, EDGE):
        yield ""
    elif place in (REST, GRPC):
        command = [sys.executable, "-m", "results.costs", "--serve", place, "--points", str(size)]
        command += ["--mode", mode]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate("")
    else:
        from tests.qdrant_process import QdrantProcess

        with tempfile.TemporaryDirectory() as folder:
            server = QdrantProcess(Path(folder))
            fill(QdrantClient(url=server.url), size, mode)
            yield server.url if place == REAL_REST else f"http://127.0.0.1:{server.grpc_port}"
            server.stop()


def in_a_process(checkout: Path, place: str, address: str, options: argparse.Namespace) -> dict[str, Any]:
    """What `measure` returns, by the number of rounds."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", place, "--address", address]
    command += ["--points", str(options.points), "--queries", str(options.queries), "--mode", options.mode]
    command += ["--rounds", *map(str, options.rounds), *(["--early-stop"] if options.early_stop else [])]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def compare(options: argparse.Namespace) -> list[str]:
    places = [REST, GRPC, LOCAL, EDGE] + ([REAL_REST, REAL_GRPC] if os.environ.get("QDRANT_BINARY") else [])
    rows = []
    for place in options.places or places:
        with serving(place, options.points, options.mode) as address:
            runs: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
            for _ in range(options.turns):
                for name, checkout in (("before", options.before), ("after", ROOT)):
                    runs[name].append(in_a_process(checkout, place, address, options))
            for rounds in map(str, options.rounds):
                of_these = {name: [run[rounds] for run in some] for name, some in runs.items()}
                rows += [row(place, rounds, kind, of_these) for kind in KINDS]
                print("\n".join(rows[-len(KINDS) :]), flush=True)
    return rows


def row(place: str, rounds: str, kind: str, runs: dict[str, list[dict[str, Any]]]) -> str:
    def middle(name: str, what: str) -> float:
        return statistics.median(run[kind][what] for run in runs[name])

    def over(name: str, what: str) -> float:
        return statistics.median(run[kind][f"refined{what}"] - run[kind][f"plain{what}"] for run in runs[name])

    cells = [place, rounds, kind]
    cells += [f"{middle(name, what):.2f}" for what in ("requests", "searches") for name in ("before", "after")]
    plain = statistics.median(run[kind]["plain"] for name in runs for run in runs[name])
    cells += [f"{over('before', '') / plain:.1f}", f"{over('after', '') / plain:.1f}"]
    cells += [f"{over('after', what) / over('before', what):.2f}" for what in ("", " processor")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--places", nargs="*", help="only these")
    parser.add_argument("--mode", choices=("default", "hybrid"), default="default")
    parser.add_argument("--early-stop", action="store_true", help="leave grades that would change little, if it can")
    parser.add_argument("--out", type=Path, help="a file to write the table to")
    for name in ("--measure", "--serve", "--address"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", nargs="*", type=int, default=[1, 2])
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, options.points, options.mode)
    if options.measure:
        client = client_of(options.measure, options.address, options.points, options.mode)
        calls, asked, how = Counting(client), (options.points, options.queries), (options.early_stop, options.mode)
        found = {rounds: measure(client, calls, *asked, rounds, *how) for rounds in options.rounds}
        print(json.dumps(found))
        return None
    rows = compare(options)
    if options.out:
        options.out.write_text(page(options, rows))
    return None


def page(options: argparse.Namespace, rows: list[str]) -> str:
    head = [
        "where", "rounds", "grades", "requests before", "after", "searches before", "after",
        "time over a plain search, in plain searches, before", "after", "after / before",
        "client's processor, after / before",
    ]  # fmt: skip
    return "\n".join(
        [
            "# What a refined query costs beside a plain search",
            "",
            f"`python -m results.costs`: {options.points} vectors of {SIZE} dimensions, ten nodes returned, twenty "
            f"graded by a teacher that answers at once; {options.queries} queries, {options.turns} turns. "
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
