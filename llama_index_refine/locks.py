"""What of a process must not reach into another: locks, places in a queue, event loops."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any
from weakref import WeakSet


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()

    def after_fork(self) -> None:
        """See `OfOneProcess.after_fork`."""
        self._lock = threading.Lock()


def _after_fork() -> None:
    for each in list(_all):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
