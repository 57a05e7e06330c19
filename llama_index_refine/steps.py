"""A retrieval as a sequence of steps that wait for something outside, so that one description serves all four ways to
run it: alone or many at once, blocking or asynchronously.

A step names an operation and what it is to work on. Whoever runs the steps decides whether to block; several
retrievals run side by side hand the same operation all their items in one call.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from llama_index_refine.events import stage_span

T = TypeVar("T")


class Operation(Protocol):
    """Work on several items at once. What goes wrong with one item is returned in its place."""

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return one result, or the exception, for each item."""

    async def arun(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the same without blocking the event loop."""


@dataclass(frozen=True)
class Step:
    """Do `operation` on `item`; the time is booked under `stage`."""

    stage: str
    operation: Operation
    item: Any


Steps = Generator[Step, Any, T]


@dataclass
class _Run:
    """One sequence of steps on its way."""

    steps: Steps[Any]
    step: Step | None = None
    result: Any = None
    seconds: dict[str, float] = field(default_factory=dict)

    def advance(self, outcome: Any = None) -> None:
        try:
            self.step = self.steps.throw(outcome) if isinstance(outcome, BaseException) else self.steps.send(outcome)
        except StopIteration as end:
            self.step, self.result = None, end.value
        except Exception as error:
            self.step, self.result = None, error


@dataclass(frozen=True)
class Outcome:
    """What came of one sequence of steps.

    :param result: what it returned, or the exception that ended it.
    :param seconds: time spent waiting for each stage's operations; one that served several sequences counts in full
        for each.
    """

    result: Any
    seconds: dict[str, float]


def run(sequences: Sequence[Steps[Any]]) -> list[Outcome]:
    """Run the sequences side by side, blocking.

    :param sequences: the steps to run.
    :return: one outcome for each.
    """
    runs = _started(sequences)
    while waves := _waves(runs):
        for (stage, operation), members in waves:
            began = time.perf_counter()
            try:
                perform = stage_span(stage, operation.run)
                results = perform([member.step.item for member in members if member.step])
            except Exception as error:
                results = [error] * len(members)
            _continue(members, stage, results, time.perf_counter() - began)
    return [Outcome(one.result, one.seconds) for one in runs]


async def arun(sequences: Sequence[Steps[Any]]) -> list[Outcome]:
    """Run the sequences side by side without blocking the event loop.

    :param sequences: the steps to run.
    :return: one outcome for each.
    """
    runs = _started(sequences)
    while waves := _waves(runs):
        for (stage, operation), members in waves:
            began = time.perf_counter()
            try:
                perform = stage_span(stage, operation.arun)
                results = await perform([member.step.item for member in members if member.step])
            except Exception as error:
                results = [error] * len(members)
            _continue(members, stage, results, time.perf_counter() - began)
    return [Outcome(one.result, one.seconds) for one in runs]


def _started(sequences: Sequence[Steps[Any]]) -> list[_Run]:
    runs = [_Run(steps) for steps in sequences]
    for one in runs:
        one.advance()
    return runs


def _waves(runs: Sequence[_Run]) -> list[tuple[tuple[str, Operation], list[_Run]]]:
    """Group the runs that wait by what they wait for."""
    waves: dict[tuple[str, Operation], list[_Run]] = {}
    for one in runs:
        if one.step is not None:
            waves.setdefault((one.step.stage, one.step.operation), []).append(one)
    return list(waves.items())


def _continue(members: Sequence[_Run], stage: str, results: Sequence[Any], seconds: float) -> None:
    for member, result in zip(members, results, strict=True):
        member.seconds[stage] = member.seconds.get(stage, 0.0) + seconds
        member.advance(result)
