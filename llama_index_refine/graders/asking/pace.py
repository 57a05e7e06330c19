"""How many questions a server is asked at a time: as many as it answers in good time."""

from __future__ import annotations

import math
import time
from collections import deque

from llama_index_refine.graders.asking.limits import ConcurrencyLimit
from llama_index_refine.locks import Lock

_FIRST = 4
# What is a good time, and what is too long, as shares of the time that a question may take.
_SOON = 0.25
_LATE = 0.5
# Answers that take so much longer than the quickest have stood in a queue.
_QUEUED = 1.5
_REMEMBERED = 64
# So many refusals and answers tell a server with too few places from one that fails now and then.
_TELLING = 16


class Pace:
    """Additive increase, multiplicative decrease of the questions that are out at the same time.

    It begins with a few. While answers come in a quarter of the time allowed it asks more, at once as many as would be
    answered in that time one after another, then twice as many after each round. Where answers show that they queue, in
    more than half of the time, or where most questions are refused, it asks half as many, and after some time one more
    a round. Answers that take long without a queue do not slow it down, and neither do single ones or refusals now and
    then. A round is as many answers as may be out.

    :param most: never more than this, at least 1.
    :param allowed: the seconds that a question may take, above 0.
    """

    def __init__(self, most: int, allowed: float) -> None:
        self.places = ConcurrencyLimit(min(_FIRST, most))
        self._most = most
        self._allowed = allowed
        self._lock = Lock()
        self._took: deque[float] = deque(maxlen=_REMEMBERED)
        self._round: list[float] = []
        self._taken, self._refused = 0, 0
        self._changed = -math.inf
        self._served = 1
        self._waits = 0
        self._slow_start = True
        self._last_answer = -math.inf
        self._last_queue = -math.inf

    def answered(self, begun: float) -> None:
        """Take note of an answer.

        :param begun: when its question was asked, by `time.monotonic`.
        """
        with self._lock:
            self._last_answer = time.monotonic()
            took = self._last_answer - begun
            self._took.append(took)
            self._waits -= 1
            if begun < self._changed:
                return
            if len(self._took) == 1 and took * self.places.size < self._allowed * _SOON:
                self._set(int(self._allowed * _SOON / max(took, 1e-3)))
                return
            self._round.append(took)
            self._taken += 1
            if not self._weigh_refusals():
                self._end_round()

    def refused(self, begun: float) -> None:
        """Take note that a server was too busy to take a question.

        :param begun: when it was asked.
        """
        with self._lock:
            if begun >= self._changed:
                self._refused += 1
                self._weigh_refusals()

    def is_crowded(self, begun: float) -> bool:
        """Take note that a question got no answer in time.

        :param begun: when it was asked.
        :return: whether it was other questions that kept the server from it; fewer are out from then on.
        """
        with self._lock:
            too_many = self.places.size > self._served or self._last_queue > begun
            crowded = self.places.size > 1 and self._last_answer > begun and too_many
            if crowded and begun >= self._changed:
                self._slow_down()
            # For a while after too many were out, the server may be at work on those that were given up.
            return crowded or begun < self._changed + self._allowed

    def silent_since(self, begun: float) -> bool:
        """Whether nobody has had an answer since then."""
        with self._lock:
            return self._last_answer < begun

    def _weigh_refusals(self) -> bool:
        """Ask fewer questions where most are refused. :return: whether that was done."""
        size, outcomes = self.places.size, self._taken + self._refused
        # A question that is alone is not refused for the sake of others. A server that takes none may be overrun; one
        # that takes some has to be seen for longer.
        if size == 1 or outcomes < (_TELLING if self._taken else max(size, _FIRST)):
            return False
        mostly = 2 * self._refused > outcomes or (size == 2 and 2 * self._refused == outcomes)
        self._taken, self._refused = 0, 0
        if mostly:
            self._slow_down()
        return mostly

    def _end_round(self) -> None:
        size = self.places.size
        if len(self._round) < size:
            return
        took = sorted(self._round)[len(self._round) // 2]
        queued = took > self._allowed * _SOON and took > _QUEUED * min(self._took)
        if queued:
            self._last_queue = time.monotonic()
        else:
            self._served = max(self._served, size)
        if queued and took > self._allowed * _LATE:
            self._slow_down()
        elif queued or self._waits > 0:
            self._set(size)
        else:
            self._set(2 * size if self._slow_start and took <= self._allowed * _SOON else size + 1)

    def _slow_down(self) -> None:
        self._slow_start = False
        self._waits = _REMEMBERED
        self._changed = time.monotonic()
        self._served = min(self._served, max(1, self.places.size // 2))
        self._set(self.places.size // 2)

    def _set(self, size: int) -> None:
        size = max(1, min(size, self._most))
        if size != self.places.size:
            self._taken, self._refused = 0, 0
        self._round = []
        self.places.resize(size)
