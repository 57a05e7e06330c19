"""Where LlamaIndex's instrumentation is told of what happens: spans for stages, and events.

Everything goes through the dispatcher `llama_index_refine`, a child of LlamaIndex's root: handlers added to the root
get it with the rest, handlers added to this one get nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import NullEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR, Dispatcher

P = ParamSpec("P")
T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

dispatcher = get_dispatcher("llama_index_refine")
llama_index = get_dispatcher()


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


def stage_span(stage: str, work: Callable[P, T]) -> Callable[P, T]:
    """Give one call a span named after the stage it belongs to, where anyone listens.

    :param stage: the stage.
    :param work: a function or coroutine function.
    :return: what to call instead.
    """
    if not _listened():
        return work
    call = partial(work)
    call.__qualname__ = f"FeedbackLoop.{stage}"  # type: ignore[attr-defined]
    return dispatcher.span(call)
