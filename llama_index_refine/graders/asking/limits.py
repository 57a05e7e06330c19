"""What all queries of one teacher share: so many calls at a time, and none while the server is down."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from types import TracebackType


class ConcurrencyLimit:
    """A semaphore for coroutines of any event loop in any thread, first come first served.

    :param size: how many may hold it at once, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
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
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    break
            else:
                self._free += 1
                return
        turn.set_result(None)


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
        self._lock = threading.Lock()

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
