"""What of a process must not reach into another, as locks are; and what belongs to one object alone."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakSet, ref

T = TypeVar("T")


# Seconds between two looks at a lock that somebody else holds.
WAIT = 0.002


class OfOneProcess(ABC):
    """Something that begins anew in a forked process, where the threads that held it are gone."""

    def __init__(self) -> None:
        _all.add(self)

    @abstractmethod
    def after_fork(self) -> None:
        """Begin anew; called in the child, where only one thread runs."""


_all: WeakSet[OfOneProcess] = WeakSet()


class Lock(OfOneProcess):
    """A lock that is free in a forked process, and that comes out of a pickle as another, free one."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold it in asynchronous code, across what is awaited, without blocking the event loop meanwhile."""
        # Whoever holds it may be a task of this event loop, or a thread.
        while not self._lock.acquire(blocking=False):
            await asyncio.sleep(WAIT)
        try:
            yield
        finally:
            self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()

    def after_fork(self) -> None:
        """See `OfOneProcess.after_fork`."""
        self._lock = threading.Lock()


class OfEach(Generic[T]):
    """Something for each of some objects, kept as long as the object is.

    By what an object is, not by what it equals: users' classes may compare by value, or have no hash.

    :param make: makes it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = Lock()
        self._made: dict[int, tuple[ref[Any], T]] = {}

    def __len__(self) -> int:
        return len(self._made)

    def of(self, owner: Any) -> T:
        """Return what belongs to an object, made when first asked for."""
        key = id(owner)
        with self._lock:
            known = self._made.get(key)
            if known is None or known[0]() is not owner:
                known = self._made[key] = (ref(owner, lambda gone: self._forget(key, gone)), self._make())
            return known[1]

    def _forget(self, key: int, gone: ref[Any]) -> None:
        # Without the lock, which the thread that collects may hold.
        if self._made.get(key, (None, None))[0] is gone:
            self._made.pop(key, None)


def _after_fork() -> None:
    for each in list(_all):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
