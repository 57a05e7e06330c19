"""A retrieval as a sequence of steps that wait for something outside, so that one description serves all four ways to
run it: alone or many at once, blocking or asynchronously.

A step names an operation and what it is to work on. Whoever runs the steps decides whether to block; several
retrievals run side by side hand the same operation all their items in one call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

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


async def answered(calls: Generator[Any, Any, T], ask: Callable[[Any], Awaitable[Any]]) -> T:
    """Make calls one after the other, each in the light of the answers before.

    :param calls: yields the calls, and is sent their answers, or thrown the exceptions.
    :param ask: makes one.
    :return: what `calls` returns.
    """
    try:
        call = next(calls)
        while True:
            try:
                answer = await ask(call)
            except Exception as error:
                call = calls.throw(error)
            else:
                call = calls.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits nothing that waits: it comes to its end in one go, without an event loop.

    :param work: the coroutine.
    :return: what it returns.
    """
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a blocking operation has waited for an event loop")
