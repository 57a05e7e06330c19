"""What one query may spend on its teacher, and what it has spent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Budget:
    """The most that the grading of one query may cost, over all rounds. None is no limit.

    :param calls: LLM calls, at least 1.
    :param tokens: tokens, prompt and completion together, at least 1.
    :param seconds: time from the start of the query, above 0, after which no more answers are waited for.
    :raises ValueError: a limit that allows nothing.
    """

    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "seconds"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be above 0, or None for no limit; got {limit}")


@dataclass
class Account:
    """The running bill of one query. Teachers charge it; it says when to stop. Safe to share between threads.

    `failures` says in short sentences, without secrets or document text, why grades are missing. In `kept` a teacher
    may keep what it needs again for the same query. What an account of a part charges and notes, its `whole` does too,
    which says when to stop.
    """

    budget: Budget = field(default_factory=Budget)
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: int = 0
    failures: list[str] = field(default_factory=list)
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    started: float = field(default_factory=time.monotonic)
    whole: Account | None = field(default=None, repr=False, compare=False)
    _reserved: int = field(default=0, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def open_call(self, tokens: int = 0) -> bool:
        """Count one more LLM call, unless the budget forbids it.

        :param tokens: what the call is expected to use; held against the budget until `release`, so that calls in
            flight together do not overdraw it.
        :return: whether the call may be made.
        """
        with self._lock:
            allowed = self.whole.open_call(tokens) if self.whole else not self.exhausted(tokens)
            if allowed:
                self.calls += 1
                self._reserved += tokens
            return allowed

    def release(self, tokens: int) -> None:
        """Give back what `open_call` held; what the call did use is charged."""
        with self._lock:
            self._reserved -= tokens
        if self.whole:
            self.whole.release(tokens)

    def charge(self, prompt_tokens: int = 0, completion_tokens: int = 0, cached: int = 0, calls: int = 0) -> None:
        """Add tokens that a call used, grades that a cache answered, or calls that were not opened here."""
        with self._lock:
            self.calls += calls
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens
            self.cached += cached
        if self.whole:
            self.whole.charge(prompt_tokens, completion_tokens, cached, calls)

    def part(self) -> Account:
        """Return an account for a part of the query, with a bill and failures of its own."""
        return Account(self.budget, kept=self.kept, started=self.started, whole=self)

    def bill(self) -> dict[str, Any]:
        """Return what was spent, under the names that a `Refinement` and the events have for it."""
        with self._lock:
            return {
                "llm_calls": self.calls,
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "cached_grades": self.cached,
            }

    def note(self, failure: str) -> None:
        """Keep one more reason why grades are missing, each once."""
        with self._lock:
            if failure not in self.failures:
                self.failures.append(failure)
        if self.whole:
            self.whole.note(failure)

    def exhausted(self, tokens: int = 0) -> str | None:
        """Say which limit of the budget is reached, None while there is something left.

        :param tokens: what the next call is expected to use.
        """
        if self.whole:
            return self.whole.exhausted(tokens)
        if self.budget.calls is not None and self.calls >= self.budget.calls:
            return f"the budget of {self.budget.calls} calls is used up"
        spent = self.prompt_tokens + self.completion_tokens + self._reserved
        if self.budget.tokens is not None and spent + max(tokens, 1) > self.budget.tokens:
            return f"the budget of {self.budget.tokens} tokens is used up"
        if self.budget.seconds is not None and not self.seconds_left():
            return f"the deadline of {self.budget.seconds} s has passed"
        return None

    def seconds_left(self) -> float | None:
        """Seconds until the deadline, at least 0; None where there is none."""
        if self.budget.seconds is None:
            return None
        return max(0.0, self.started + self.budget.seconds - time.monotonic())

    @contextmanager
    def active(self) -> Iterator[Account]:
        """Make this the account that teachers charge, in this context and the tasks started in it."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)


_current: ContextVar[Account | None] = ContextVar("llama_index_refine_account", default=None)


def current_account() -> Account:
    """The account of the query being served; a new one without limits where a teacher is called by itself."""
    return _current.get() or Account()
