"""Three Qdrant nodes with shards and replicas, one of which goes down while the teacher grades.

Started as Qdrant's documentation has it: the first node with its own URI, the others told to join it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index_refine import RefinedRetriever
from tests.places import IMAGE, SIZE, LabelGrader, points, question, why_no_docker
from tests.qdrant_process import BINARY, QdrantProcess, wait_until

NODES = ("node-1", "node-2", "node-3")
COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)


class Cluster:
    """Three nodes: the address of the first, and what takes the last down.

    :param url: where the first answers.
    :param kill_last: takes the last down at once.
    """

    def __init__(self, url: str, kill_last: Callable[[], object]) -> None:
        self.url = url
        self.kill_last = kill_last
        wait_until(lambda: len(httpx.get(f"{self.url}/cluster").json()["result"]["peers"]) == len(NODES))

    def active_replicas(self, collection: str) -> int:
        """How many replicas the first node knows to be in service."""
        found = httpx.get(f"{self.url}/collections/{collection}/cluster").json()["result"]
        return sum(shard["state"] == "Active" for shard in found["local_shards"] + found["remote_shards"])


def of_processes(stack: ExitStack, folder: Path) -> Cluster:
    """Three processes of the executable that QDRANT_BINARY names."""
    nodes: list[QdrantProcess] = []
    for name in NODES:
        nodes.append(QdrantProcess(folder / name, cluster=True, first=nodes[0] if nodes else None))
        stack.callback(nodes[-1].stop)
    return Cluster(nodes[0].url, nodes[-1].kill)


def of_containers(stack: ExitStack) -> Cluster:
    """Three containers in a network of their own."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network
    from testcontainers.core.wait_strategies import HttpWaitStrategy

    network = stack.enter_context(Network())
    nodes = []
    for name in NODES:
        command = f"./qdrant --uri http://{name}:6335"
        if nodes:
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
        nodes.append(stack.enter_context(container))
    url = f"http://{nodes[0].get_container_host_ip()}:{nodes[0].get_exposed_port(6333)}"
    return Cluster(url, lambda: nodes[-1].get_wrapped_container().stop(timeout=0))


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    if not BINARY and (reason := why_no_docker()):
        pytest.skip(f"a cluster {reason}; QDRANT_BINARY may name an executable")
    with ExitStack() as stack:
        yield of_processes(stack, tmp_path) if BINARY else of_containers(stack)


class StoppingGrader(LabelGrader):
    """A teacher during whose work a node goes down."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.stopped = False

    def grade(self, query, nodes):
        if not self.stopped:
            self.cluster.kill_last()
            self.stopped = True
        return super().grade(query, nodes)


def filled(cluster: Cluster, replicas: int) -> QdrantClient:
    client = QdrantClient(url=cluster.url, timeout=30)
    client.create_collection("c", COSINE, shard_number=6, replication_factor=replicas)
    client.upsert("c", points(), wait=True)
    wait_until(lambda: cluster.active_replicas("c") == 6 * replicas)
    return client


def test_replicas_carry_the_second_search_when_a_node_goes_down(cluster):
    grader = StoppingGrader(cluster)
    refined = RefinedRetriever.from_collection(
        filled(cluster, replicas=2), "c", "meta.abstract", grader=grader, on_error="raise"
    )
    refinement = refined.refine(question(0))
    assert grader.stopped
    assert refinement.refined
    assert len(refinement.nodes) == 10


@pytest.mark.parametrize("consistency", ["quorum", 2, "majority", "all"])
async def test_of_the_words_for_consistency_those_that_ask_every_replica_need_every_node(cluster, consistency):
    filled(cluster, replicas=3).close()
    client = AsyncQdrantClient(url=cluster.url, timeout=30)
    grader = StoppingGrader(cluster)
    options = {"consistency": consistency, "timeout": 30}
    refined = RefinedRetriever.from_collection(client, "c", "meta.abstract", grader=grader, vector_store_kwargs=options)
    refinement = await refined.arefine(question(0))
    assert grader.stopped
    assert len(refinement.nodes) == 10
    assert refinement.refined == (consistency in ("quorum", 2))
    assert refinement.refined or "read operations failed" in refinement.reason


def test_without_replicas_the_first_search_stands(cluster):
    grader = StoppingGrader(cluster)
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
