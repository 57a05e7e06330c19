"""Retrievals as coroutines, of which one or many run side by side, blocking or asynchronously.

What a retrieval waits for has one form: `await perform(stage, operation, item)`. The scheduler collects what all of
them wait for, hands items for the same operation over in one call, and goes on with each when its result is there.
Whoever runs them decides whether an operation may block.

LlamaIndex's instrumentation is told of what happens, in spans for stages and in events, through the dispatcher
`llama_index_refine`, a child of LlamaIndex's root: handlers added to the root get it with the rest, handlers added to
this one get nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import coroutine
from typing import Any, Generic, Protocol, TypeVar, cast

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import NullEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR, Dispatcher

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])
Work = Coroutine[Any, Any, T]

dispatcher = get_dispatcher("llama_index_refine")
llama_index = get_dispatcher()


class Operation(Protocol):
    """Work on several items at once. What goes wrong with one item is returned in its place."""

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return one result, or the exception, for each item."""

    async def arun(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the same without blocking the event loop."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of one coroutine.

    :param result: what it returned, or the exception that ended it.
    :param seconds: time spent waiting for each stage's operations; one that served several counts in full for each.
    """

    result: T | Exception
    seconds: dict[str, float]

    def get(self) -> T:
        """Return the result. :raises Exception: what ended the coroutine."""
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@dataclass(frozen=True)
class _Call:
    stage: str
    operation: Operation
    item: Any


@dataclass(frozen=True)
class _Several:
    stage: str
    works: Sequence[Work[Any]]


@coroutine
def perform(stage: str, operation: Operation, item: Any) -> Generator[Any, Any, Any]:
    """Have an operation work on an item, together with others that wait for the same.

    :param stage: what the time is booked under.
    :param operation: does the work.
    :param item: what it works on.
    :return: the item's result.
    :raises Exception: what went wrong with the item.
    """
    return (yield _Call(stage, operation, item))


@coroutine
def gather(stage: str, works: Sequence[Work[T]]) -> Generator[Any, Any, list[Outcome[T]]]:
    """Run coroutines side by side, beside all others that the scheduler runs.

    :param stage: what the time is booked under.
    :param works: the coroutines.
    :return: what came of each.
    """
    outcomes: list[Outcome[T]] = yield _Several(stage, works)
    return outcomes


async def side_by_side(
    items: Sequence[Any], work: Callable[[Any], Awaitable[Any]], blocking: Callable[[Sequence[Any]], Sequence[Any]]
) -> list[Any]:
    """Work on all items at once, for coroutines.

    Some models and stores have the blocking half only: what they lack is done by it in a worker thread.

    :param items: the items.
    :param work: works on one.
    :param blocking: works on some, and returns one result, or the exception, for each.
    :return: one result, or the exception, for each item.
    """

    async def one(item: Any) -> Any:
        try:
            return await work(item)
        except NotImplementedError:
            return (await asyncio.to_thread(blocking, [item]))[0]

    return await asyncio.gather(*map(one, items), return_exceptions=True)


async def each(items: Sequence[Any], work: Callable[[Any], Awaitable[Any]]) -> list[Any]:
    """Work on one item after the other.

    :param items: the items.
    :param work: works on one.
    :return: one result, or the exception, for each item.
    """
    results: list[Any] = []
    for item in items:
        try:
            results.append(await work(item))
        except Exception as error:
            results.append(error)
    return results


def run(works: Sequence[Work[T]]) -> list[Outcome[T]]:
    """Run coroutines side by side, blocking.

    :param works: the coroutines.
    :return: what came of each.
    """
    return at_once(_run(works, blocks=True))


async def arun(works: Sequence[Work[T]]) -> list[Outcome[T]]:
    """Run coroutines side by side without blocking the event loop.

    :param works: the coroutines.
    :return: what came of each.
    """
    return await _run(works, blocks=False)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in which nothing waits: it comes to its end in one go, without an event loop.

    :param work: the coroutine.
    :return: what it returns.
    """
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a blocking operation has waited for an event loop")


@dataclass(eq=False)
class _Task:
    """One coroutine on its way."""

    work: Work[Any]
    seconds: dict[str, float] = field(default_factory=partial(defaultdict, float))
    waits: Any = None
    result: Any = None
    # Those that it waits for, and since when.
    parts: list[_Task] = field(default_factory=list)
    began: float = 0.0

    def go_on(self, result: Any = None) -> None:
        """Run to the next thing to wait for, or to the end."""
        try:
            if isinstance(result, BaseException):
                self.waits = self.work.throw(result)
            else:
                self.waits = self.work.send(result)
        except StopIteration as end:
            self.waits, self.result = None, end.value
        except Exception as error:
            self.waits, self.result = None, error
        if isinstance(self.waits, _Several):
            self.began = time.perf_counter()
            self.parts = [_Task(work) for work in self.waits.works]
            for part in self.parts:
                part.go_on()

    def calls(self) -> list[_Task]:
        """Return the tasks in it that wait for an operation, having gone on wherever all parts are done."""
        while isinstance(self.waits, _Several):
            waiting = [task for part in self.parts for task in part.calls()]
            if waiting:
                return waiting
            self.seconds[self.waits.stage] += time.perf_counter() - self.began
            self.go_on([Outcome(part.result, part.seconds) for part in self.parts])
        return [self] if self.waits is not None else []


async def _run(works: Sequence[Work[T]], blocks: bool) -> list[Outcome[T]]:
    # What is awaited may be cancelled by whoever waits for it; what blocks, by nobody but itself.
    failures: tuple[type[BaseException], ...] = (Exception, asyncio.CancelledError) if blocks else (Exception,)
    tasks = [_Task(work) for work in works]
    for task in tasks:
        task.go_on()
    while waiting := [one for task in tasks for one in task.calls()]:
        groups: dict[tuple[str, Operation], list[_Task]] = {}
        for one in waiting:
            groups.setdefault((one.waits.stage, one.waits.operation), []).append(one)
        for (stage, operation), members in groups.items():
            items = [member.waits.item for member in members]
            began = time.perf_counter()
            work: Callable[[Sequence[Any]], Any] = operation.run if blocks else operation.arun
            try:
                if _listened():
                    work = partial(work)
                    work.__qualname__ = f"FeedbackLoop.{stage}"  # type: ignore[attr-defined]
                    work = dispatcher.span(work)
                results = work(items) if blocks else await work(items)
            except failures as error:
                results = [error] * len(members)
            seconds = time.perf_counter() - began
            for member, result in zip(members, results, strict=True):
                member.seconds[stage] += seconds
                # A client may cancel its own request: that is its failure, and nobody else's.
                cancelled = isinstance(result, asyncio.CancelledError)
                member.go_on(RuntimeError("the request was cancelled") if cancelled else result)
    return [Outcome(task.result, task.seconds) for task in tasks]


def tell(event: Callable[[], BaseEvent], to: Dispatcher = dispatcher) -> None:
    """Dispatch an event where anyone listens; elsewhere it is not even made.

    :param event: makes it.
    :param to: the dispatcher: this package's own, or `llama_index` for an event of LlamaIndex's.
    """
    if _listened():
        to.event(event())


def _listened() -> bool:
    """Say whether anyone has asked to be told of spans or events, of this package or of all of LlamaIndex."""
    at: Any = dispatcher
    while True:
        for handler in (*at.event_handlers, *at.span_handlers):
            if not isinstance(handler, (NullEventHandler, NullSpanHandler)):
                return True
        if not at.propagate:
            return False
        at = at.parent


def span(method: Method) -> Method:
    """Give a method a span, and leave its signature to type checkers as it is.

    :param method: a function, coroutine function or method.
    :return: the same, with LlamaIndex's `dispatcher.span` around it.
    """
    return cast("Method", dispatcher.span(method))


def spanned_by_base(method: Method) -> Method:
    """Leave an override without a span of its own, as the method of the base class that it calls has one.

    :param method: the override, in a class that gives spans to all overrides of methods that have one.
    :return: the same.
    """
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method
