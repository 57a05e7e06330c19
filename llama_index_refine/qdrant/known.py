"""What is known about collections, shared by all retrievers on one client: a retriever may then be made for each
request or tenant and finds what others have learnt.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from llama_index_refine.locks import Lock
from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.limits import Limits
from llama_index_refine.qdrant.space import Space

# One entry for each filter; at 30 background vectors of 1024 dimensions, 30 MB in all.
ENTRIES = 256


@dataclass
class Known:
    """What is known about one collection under one filter. Each field is set at once, so threads may share it.

    :param space: the vector space, None while it is not known.
    :param described: when it was read.
    :param background: the sample, None while there is none.
    :param counted: when its population was last compared with the collection's.
    :param points: about how many points there are without the filter.
    :param limits: what strict mode allows.
    :param told: what has been given up to keep to it, each of which is told once.
    :param doubted: when the scores last contradicted a description that turned out to hold.
    :param turn: which part of the background is to be looked at next.
    :param inline: whether payloads hold images, so that they are fetched of those points only that are wanted; None
        while no node has been looked at.
    """

    space: Space | None = None
    described: float = 0.0
    background: Background | None = None
    counted: float = 0.0
    points: int = 0
    limits: Limits = field(default_factory=Limits)
    told: set[str] = field(default_factory=set)
    doubted: float = -math.inf
    turn: int = 0
    inline: bool | None = None

    def learn(self, space: Space, points: int = 0, limits: Limits | None = None) -> None:
        """Take in a description. A background from another space is dropped."""
        if space != self.space:
            self.background = None
        self.limits = limits or Limits()
        self.space, self.points, self.described = space, points, time.monotonic()

    def forget(self) -> None:
        """Ask for everything again when it is next needed."""
        self.space, self.background = None, None


class Shelf:
    """The latest few hundred things known, by client."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._of_client: WeakKeyDictionary[Any, OrderedDict[Hashable, Known]] = WeakKeyDictionary()

    def entry(self, client: Any, key: Hashable) -> Known:
        """Return what is known about a collection; a new entry where nothing is.

        :param client: the client that reaches it.
        :param key: what sets it apart for this client: the collection's name, vector, filter, shard key, sample size.
        :return: the entry, which its users fill.
        """
        with self._lock:
            entries = self._of_client.get(client)
            if entries is None:
                entries = self._of_client[client] = OrderedDict()
            known = entries.get(key)
            if known is None:
                known = entries[key] = Known()
            entries.move_to_end(key)
            if len(entries) > ENTRIES:
                entries.popitem(last=False)
            return known


shelf = Shelf()
