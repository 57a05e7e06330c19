"""Performs the steps of retrievals: alone or many side by side, blocking or asynchronously."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index_refine.steps import Operation, Step, Steps, at_once
from llama_index_refine.tracing import stage_span

Perform = Callable[[str, Operation, Sequence[Any]], Awaitable[Sequence[Any]]]


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

    async def perform(stage: str, operation: Operation, items: Sequence[Any]) -> Sequence[Any]:
        return stage_span(stage, operation.run)(items)

    return at_once(_run(sequences, perform))


async def arun(sequences: Sequence[Steps[Any]]) -> list[Outcome]:
    """Run the sequences side by side without blocking the event loop.

    :param sequences: the steps to run.
    :return: one outcome for each.
    """

    async def perform(stage: str, operation: Operation, items: Sequence[Any]) -> Sequence[Any]:
        return await stage_span(stage, operation.arun)(items)

    return await _run(sequences, perform)


async def _run(sequences: Sequence[Steps[Any]], perform: Perform) -> list[Outcome]:
    runs = [_Run(steps) for steps in sequences]
    for one in runs:
        one.advance()
    while waves := _waves(runs):
        for (stage, operation), members in waves:
            began = time.perf_counter()
            try:
                results = await perform(stage, operation, [member.step.item for member in members if member.step])
            except Exception as error:
                results = [error] * len(members)
            seconds = time.perf_counter() - began
            for member, result in zip(members, results, strict=True):
                member.seconds[stage] = member.seconds.get(stage, 0.0) + seconds
                member.advance(result)
    return [Outcome(one.result, one.seconds) for one in runs]


def _waves(runs: Sequence[_Run]) -> list[tuple[tuple[str, Operation], list[_Run]]]:
    """Group the runs that wait by what they wait for."""
    waves: dict[tuple[str, Operation], list[_Run]] = {}
    for one in runs:
        if one.step is not None:
            waves.setdefault((one.step.stage, one.step.operation), []).append(one)
    return list(waves.items())
