"""What LlamaIndex's instrumentation is told: a span for each stage, and events with the numbers.

Everything goes through the dispatcher `llama_index_refine`, a child of LlamaIndex's root: handlers added to the root
get it with the rest, handlers added to this one get nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import NullEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

if TYPE_CHECKING:
    from llama_index_refine.refinement import Refinement

P = ParamSpec("P")
T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

dispatcher = get_dispatcher("llama_index_refine")


class GradingEvent(BaseEvent):
    """The teacher has graded some nodes for one query.

    :param query_str: the query.
    :param node_ids: the nodes that got a grade.
    :param grades: their grades in [0, 1].
    :param ungraded: how many were shown and got none.
    :param llm_calls: calls that this took.
    :param prompt_tokens: tokens sent, as far as the API says.
    :param completion_tokens: tokens received, as far as the API says.
    :param cached_grades: grades that a cache answered.
    :param failures: why grades are missing, without secrets or document text.
    :param milliseconds: how long it took.
    """

    query_str: str
    node_ids: list[str]
    grades: list[float]
    ungraded: int
    llm_calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_grades: int
    failures: list[str]
    milliseconds: float

    @classmethod
    def class_name(cls) -> str:
        """The event's name."""
        return "GradingEvent"


class RefiningEvent(BaseEvent):
    """A query vector has been refined by the grades so far.

    :param query_str: the query.
    :param graded: how many documents taught it.
    :param background: how many background vectors stood against them.
    :param kl_before: KL divergence of the embedding's distribution from the target, in nats.
    :param kl_after: the same at the refined vector.
    :param tau: the similarity that counts as one nat.
    :param trust: how far the grades were believed, in [0, 1].
    :param iterations: steps of the optimisation.
    :param converged: whether it reached the optimum.
    :param milliseconds: how long it took; of a batch, the whole batch's.
    """

    query_str: str
    graded: int
    background: int
    kl_before: float
    kl_after: float
    tau: float
    trust: float
    iterations: int
    converged: bool
    milliseconds: float

    @classmethod
    def class_name(cls) -> str:
        """The event's name."""
        return "RefiningEvent"


class RefinementEvent(BaseEvent):
    """A query has been answered, from the second search or, where it says a reason, from the first.

    :param query_str: the query.
    :param refined: whether the nodes come from a second search.
    :param reason: why not, empty where they do.
    :param kl_before: KL divergence of the embedding's distribution from the target, in nats.
    :param kl_after: the same at the refined vector.
    :param node_ids: the nodes returned, best first.
    :param gained: those of them that the first search had not returned.
    :param lost: nodes that the first search had returned and that are not among them.
    :param graded: nodes that got a grade.
    :param ungraded: nodes that were shown to the teacher and got none.
    :param rounds: how many times the teacher was asked.
    :param llm_calls: calls that the teacher made.
    :param prompt_tokens: tokens sent, as far as the API says.
    :param completion_tokens: tokens received, as far as the API says.
    :param cached_grades: grades that a cache answered.
    :param remembered: grades that a memory had for this very query.
    :param borrowed: grades that a memory had for similar queries, and that took part.
    :param milliseconds: how long each stage took.
    """

    query_str: str
    refined: bool
    reason: str
    kl_before: float
    kl_after: float
    node_ids: list[str]
    gained: list[str]
    lost: list[str]
    graded: int
    ungraded: int
    rounds: int
    llm_calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_grades: int
    remembered: int
    borrowed: int
    milliseconds: dict[str, float]

    @classmethod
    def class_name(cls) -> str:
        """The event's name."""
        return "RefinementEvent"

    @classmethod
    def of(cls, refinement: Refinement) -> RefinementEvent:
        """Tell of a refinement.

        :param refinement: what a retriever returns.
        :return: the event.
        """
        return cls(
            query_str=refinement.query_str,
            refined=refinement.refined,
            reason=refinement.reason or "",
            kl_before=refinement.kl_before,
            kl_after=refinement.kl_after,
            node_ids=[entry.node_id for entry in refinement.nodes],
            gained=[entry.node_id for entry in refinement.gained],
            lost=[entry.node_id for entry in refinement.lost],
            graded=len(refinement.graded_nodes),
            ungraded=refinement.ungraded,
            rounds=refinement.rounds,
            llm_calls=refinement.llm_calls,
            prompt_tokens=refinement.prompt_tokens,
            completion_tokens=refinement.completion_tokens,
            cached_grades=refinement.cached_grades,
            remembered=refinement.remembered,
            borrowed=refinement.borrowed,
            milliseconds={stage: 1000 * seconds for stage, seconds in refinement.timings.items()},
        )


def tell(event: Callable[[], BaseEvent]) -> None:
    """Dispatch an event where anyone listens; elsewhere it is not even made.

    :param event: makes it.
    """
    if _listened():
        dispatcher.event(event())


def _listened() -> bool:
    """Say whether anyone has asked to be told of spans or events, of this package or of all of LlamaIndex."""
    return any(not isinstance(handler, (NullEventHandler, NullSpanHandler)) for handler in _handlers())


def _handlers() -> Iterator[Any]:
    at = dispatcher
    while True:
        yield from at.event_handlers
        yield from at.span_handlers
        if not at.propagate:
            return
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
