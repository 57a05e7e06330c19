"""What servers on loopback are asked, and what goes wrong with it on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.strict_mode import StrictMode


@dataclass
class Fault:
    """What goes wrong with a call: a status, no answer, half an answer, or something done to the collection before.

    `status` is HTTP's or gRPC's, `headers` are HTTP's or gRPC's trailing metadata, `said` is Qdrant's own text and
    `raw` a whole body instead.
    """

    status: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    said: str = "a fault"
    raw: bytes | None = None
    silent: bool = False
    half: bool = False
    reset: bool = False
    before: Callable[[], Any] | None = None


class Calls:
    """Calls by kind. `faults` maps the n-th of a kind, counted from 1, to what goes wrong with it; 0 is every call.

    `strict` is what collections allow, None for everything.
    """

    def __init__(self) -> None:
        self.strict: StrictMode | None = None
        self.faults: dict[tuple[str, int], Fault] = {}
        self.calls: list[tuple[str, Any]] = []

    def count(self, kind: str) -> int:
        return sum(called == kind for called, _ in self.calls)

    def fault(self, kind: str, body: Any) -> Fault:
        """Take note of a call, and do what comes before its answer."""
        self.calls.append((kind, body))
        fault = self.faults.get((kind, self.count(kind))) or self.faults.get((kind, 0)) or Fault()
        if fault.before:
            fault.before()
        return fault

    def keep_to_limits(self, queries: Sequence[Any], timeout: int | None) -> None:
        """Refuse what strict mode refuses.

        :raises BlockingIOError: there were too many searches in this minute.
        :raises ValueError: something else is not allowed.
        """
        if self.strict is None:
            return
        if said := self.strict.refusal(queries, timeout):
            raise ValueError(said)
        if said := self.strict.wait(len(queries)):
            raise BlockingIOError(said)
