"""Qdrant's own server as a process on loopback, where QDRANT_BINARY names its executable."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import httpx

BINARY = os.environ.get("QDRANT_BINARY")
SECONDS = 90


class QdrantProcess:
    """A server with a folder and ports of its own, alone or a node of a cluster.

    :param folder: an empty folder, where it keeps everything.
    :param first: the node to join, None for the first of a cluster.
    :param cluster: whether it is a node of a cluster.
    :param own: more of its settings, as environment variables.
    """

    def __init__(
        self,
        folder: Path,
        cluster: bool = False,
        first: QdrantProcess | None = None,
        own: dict[str, str] | None = None,
    ) -> None:
        assert BINARY is not None
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.grpc_port, p2p = free_ports(3)
        self.url, self.uri = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{p2p}"
        settings = {
            "RUN_MODE": "production",
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__HTTP_PORT": str(self.port),
            "QDRANT__SERVICE__GRPC_PORT": str(self.grpc_port),
            "QDRANT__TELEMETRY_DISABLED": "true",
            "QDRANT__STORAGE__STORAGE_PATH": "./storage",
            "QDRANT__STORAGE__SNAPSHOTS_PATH": "./snapshots",
        }
        settings |= own or {}
        command = [BINARY]
        if cluster:
            settings |= {"QDRANT__CLUSTER__ENABLED": "true", "QDRANT__CLUSTER__P2P__PORT": str(p2p)}
            command += ["--uri", self.uri, *(["--bootstrap", first.uri] if first else [])]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log)
        wait_until(self._ready)

    def _ready(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/readyz").is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Take it down as a crash does."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until(holds) -> None:
    """Ask again until it holds; fail after a while."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "the server did not settle"
        time.sleep(0.2)
