"""Three Qdrant nodes with shards and replicas, one of which goes down while the teacher grades.

Started as Qdrant's documentation has it: the first node with its own URI, the others told to join it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index_refine import RefinedRetriever
from tests.places import IMAGE, SIZE, LabelGrader, points, question, why_no_docker

NODES = ("node-1", "node-2", "node-3")
COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
SECONDS = 90


class Cluster:
    """Three containers in a network of their own, and the address of the first."""

    def __init__(self, stack: ExitStack) -> None:
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.network import Network
        from testcontainers.core.wait_strategies import HttpWaitStrategy

        network = stack.enter_context(Network())
        self.nodes = []
        for name in NODES:
            command = f"./qdrant --uri http://{name}:6335"
            if self.nodes:
                command += f" --bootstrap http://{NODES[0]}:6335"
            container = (
                DockerContainer(IMAGE)
                .with_network(network)
                .with_network_aliases(name)
                .with_env("QDRANT__CLUSTER__ENABLED", "true")
                .with_command(command)
                .with_exposed_ports(6333)
                .waiting_for(HttpWaitStrategy(6333, "/readyz"))
            )
            self.nodes.append(stack.enter_context(container))
        first = self.nodes[0]
        self.url = f"http://{first.get_container_host_ip()}:{first.get_exposed_port(6333)}"
        wait_until(lambda: len(httpx.get(f"{self.url}/cluster").json()["result"]["peers"]) == len(NODES))

    def active_replicas(self, collection: str) -> int:
        """How many replicas the first node knows to be in service."""
        found = httpx.get(f"{self.url}/collections/{collection}/cluster").json()["result"]
        return sum(shard["state"] == "Active" for shard in found["local_shards"] + found["remote_shards"])


def wait_until(holds) -> None:
    """Ask again until it holds; fail after a while."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "the cluster did not settle"
        time.sleep(0.2)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if reason := why_no_docker():
        pytest.skip(f"a cluster {reason}")
    with ExitStack() as stack:
        yield Cluster(stack)


class StoppingGrader(LabelGrader):
    """A teacher during whose work a node goes down."""

    def __init__(self, node) -> None:
        super().__init__()
        self.node = node
        self.stopped = False

    def grade(self, query, nodes):
        if not self.stopped:
            self.node.get_wrapped_container().stop(timeout=0)
            self.stopped = True
        return super().grade(query, nodes)


def filled(cluster: Cluster, replicas: int) -> QdrantClient:
    client = QdrantClient(url=cluster.url, timeout=30)
    client.create_collection("c", COSINE, shard_number=6, replication_factor=replicas)
    client.upsert("c", points(), wait=True)
    wait_until(lambda: cluster.active_replicas("c") == 6 * replicas)
    return client


def test_replicas_carry_the_second_search_when_a_node_goes_down(cluster):
    grader = StoppingGrader(cluster.nodes[2])
    refined = RefinedRetriever.from_collection(
        filled(cluster, replicas=2), "c", "meta.abstract", grader=grader, on_error="raise"
    )
    refinement = refined.refine(question(0))
    assert grader.stopped
    assert refinement.refined
    assert len(refinement.nodes) == 10


async def test_the_same_without_blocking_and_with_consistency(cluster):
    filled(cluster, replicas=3).close()
    client = AsyncQdrantClient(url=cluster.url, timeout=30)
    grader = StoppingGrader(cluster.nodes[2])
    refined = RefinedRetriever.from_collection(
        client,
        "c",
        "meta.abstract",
        grader=grader,
        on_error="raise",
        vector_store_kwargs={"consistency": "majority", "timeout": 30},
    )
    assert (await refined.arefine(question(0))).refined
    assert grader.stopped


def test_without_replicas_the_first_search_stands(cluster):
    grader = StoppingGrader(cluster.nodes[2])
    client = filled(cluster, replicas=1)
    refined = RefinedRetriever.from_collection(client, "c", "meta.abstract", grader=grader)
    refinement = refined.refine(question(0))
    assert grader.stopped
    assert not refinement.refined
    assert refinement.nodes == refinement.nodes_before


def test_a_shard_key_keeps_to_its_tenant(cluster):
    client = QdrantClient(url=cluster.url, timeout=30)
    client.create_collection("c", COSINE, sharding_method=models.ShardingMethod.CUSTOM, replication_factor=2)
    for tenant in "ab":
        client.create_shard_key("c", tenant)
        own = [point for point in points() if point.payload["tenant"] == tenant]
        client.upsert("c", own, wait=True, shard_key_selector=tenant)
    options = {"shard_key_selector": "a"}
    refined = RefinedRetriever.from_collection(
        client, "c", "meta.abstract", grader=LabelGrader(), vector_store_kwargs=options, on_error="raise"
    )
    refinement = refined.refine(question(0))
    assert refinement.refined
    for part in (refinement.nodes_before, refinement.graded_nodes, refinement.nodes):
        assert {entry.node.metadata["tenant"] for entry in part} == {"a"}
