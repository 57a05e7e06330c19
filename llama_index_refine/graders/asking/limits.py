"""What all queries of one teacher share: so many calls at a time, and none while the server is down."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from llama_index_refine.locks import Lock, OfOneProcess


class ConcurrencyLimit(OfOneProcess):
    """A semaphore for coroutines of any event loop in any thread, first come first served.

    A forked process, and whoever gets it out of a pickle, finds it empty.

    :param size: how many may hold it at once, at least 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._held = 0
        self._waiting: deque[Future[None]] = deque()
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ConcurrencyLimit, (self.size,)

    def after_fork(self) -> None:
        """See `OfOneProcess.after_fork`."""
        self._held = 0
        self._waiting = deque()

    def resize(self, size: int) -> None:
        """Let another number hold it. Where that is fewer, nobody comes in until so many have left."""
        with self._lock:
            self.size = size
            turns = self._free_turns()
        for turn in turns:
            turn.set_result(None)

    async def __aenter__(self) -> None:
        with self._lock:
            if self._held < self.size:
                self._held += 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except BaseException:
            if not turn.cancel():
                self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            # A call that a fork cut off may still be unwound by the child.
            self._held = max(0, self._held - 1)
            turns = self._free_turns()
        for turn in turns:
            turn.set_result(None)

    def _free_turns(self) -> list[Future[None]]:
        turns = []
        while self._waiting and self._held < self.size:
            turn = self._waiting.popleft()
            if turn.set_running_or_notify_cancel():
                self._held += 1
                turns.append(turn)
        return turns


class Circuit:
    """Opens after failures in a row, then lets one trial through each cooldown until one succeeds.

    :param threshold: failures in a row that open it.
    :param cooldown: seconds until the next trial.
    """

    def __init__(self, threshold: int, cooldown: float) -> None:
        self._threshold = threshold
        self._cooldown = cooldown
        self._failures = 0
        self._trial_at = 0.0
        self._lock = Lock()

    def allows(self) -> bool:
        """Whether a call may be made now; where the circuit is open, a True is this cooldown's one trial."""
        with self._lock:
            if self._failures < self._threshold:
                return True
            now = time.monotonic()
            if now < self._trial_at:
                return False
            self._trial_at = now + self._cooldown
            return True

    def succeeded(self) -> None:
        """Close the circuit."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """Count a failure, and open the circuit where it is one too many."""
        with self._lock:
            self._failures += 1
            if self._failures == self._threshold:
                self._trial_at = time.monotonic() + self._cooldown
