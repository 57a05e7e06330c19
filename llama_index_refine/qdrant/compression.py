"""Answers of servers that are near come as they are.

Qdrant compresses what it answers over REST wherever the client allows it. Vectors written in digits hardly shrink to a
third by that, and where the network is fast, packing and unpacking them takes several times as long as sending them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

headers: Callable[[dict[str, str]], AbstractContextManager[None]] | None
try:
    from qdrant_client.context_headers import headers
except ImportError:
    # Older clients' headers cannot be set for single requests.
    headers = None

# Names that resolve only where they were given: of containers, and of machines in one data centre.
_LOCAL_NAMES = (".local", ".internal", ".svc", ".localhost")


def as_it_is(client: Any) -> AbstractContextManager[None]:
    """Return a context in which a near server answers this client's requests uncompressed.

    :param client: a Qdrant client of any kind.
    """
    remote: Any = getattr(client, "_client", None)
    if headers is None or getattr(remote, "_prefer_grpc", True) or not is_near(remote.rest_uri):
        return nullcontext()
    return headers({"Accept-Encoding": "identity"})


def is_near(address: str) -> bool:
    """Say whether a server is in this machine or in the same private network.

    :param address: its URL.
    """
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_LOCAL_NAMES)
