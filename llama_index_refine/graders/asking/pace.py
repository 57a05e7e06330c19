"""How many questions a server is asked at a time, and whether it is asked at all."""

from __future__ import annotations

import asyncio
import time

_FIRST = 4
# Answers that take a larger share of the time allowed are no reason to ask more at a time.
_SOON = 0.5


class Pace:
    """More after a good round, half after a refusal or a timeout.

    It begins with a few. A round is as many answers as may be out, and a good one has them all in half of the time that
    a question may take. Used in one event loop, first come first served.

    :param most: never more than this, at least 1.
    :param allowed: the seconds that a question may take, above 0.
    """

    def __init__(self, most: int, allowed: float) -> None:
        self.size = min(_FIRST, most)
        self._most = most
        self._soon = allowed * _SOON
        self._places = asyncio.Condition()
        self._out = 0
        self._round: list[float] = []
        self._changed = 0.0

    async def __aenter__(self) -> None:
        async with self._places:
            await self._places.wait_for(lambda: self._out < self.size)
            self._out += 1

    async def __aexit__(self, *_: object) -> None:
        self._out -= 1
        async with self._places:
            self._places.notify_all()

    def answered(self, begun: float) -> None:
        """Take note of an answer to a question that was asked then, by `time.monotonic`."""
        self._round.append(time.monotonic() - begun)
        if len(self._round) >= self.size:
            if max(self._round) <= self._soon:
                self.size = min(2 * self.size, self._most)
            self._round = []

    def slower(self, begun: float) -> bool:
        """Take note that a question was refused, or not answered in time; once for all that were out together.

        :param begun: when it was asked.
        :return: whether other questions may have kept the server from it.
        """
        crowded = self.size > 1 or begun < self._changed
        if begun >= self._changed:
            self.size = max(1, self.size // 2)
            self._round, self._changed = [], time.monotonic()
        return crowded


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

    def allows(self) -> bool:
        """Whether a call may be made now; where the circuit is open, a True is this cooldown's one trial."""
        if self._failures < self._threshold:
            return True
        now = time.monotonic()
        if now < self._trial_at:
            return False
        self._trial_at = now + self._cooldown
        return True

    def succeeded(self) -> None:
        """Close the circuit."""
        self._failures = 0

    def failed(self, weight: int = 1) -> None:
        """Count a failure for so many, and open the circuit where that is one too many."""
        self._failures += weight
        if self._failures >= self._threshold:
            self._trial_at = time.monotonic() + self._cooldown
