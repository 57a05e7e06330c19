"""The events that LlamaIndex's instrumentation is told of, with the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_index.core.instrumentation.events import BaseEvent

if TYPE_CHECKING:
    from llama_index_refine.refinement import Refinement


class RefineEvent(BaseEvent):
    """What this package tells of."""

    @classmethod
    def class_name(cls) -> str:
        """The event's name."""
        return cls.__name__


class GradingEvent(RefineEvent):
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


class RefiningEvent(RefineEvent):
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


class RefinementEvent(RefineEvent):
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
