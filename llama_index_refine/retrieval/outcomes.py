"""What came of retrievals, for those who called them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llama_index_refine.graders.account import Account
from llama_index_refine.refinement import Refinement
from llama_index_refine.retrieval.events import RefinementEvent
from llama_index_refine.retrieval.running import Outcome
from llama_index_refine.tracing import tell


def result_of(outcome: Outcome) -> Refinement:
    """Return a refinement with its timings, and tell LlamaIndex's instrumentation of it.

    :param outcome: what came of a retrieval.
    :return: the refinement.
    :raises Exception: what ended the retrieval.
    """
    refinement: Refinement = finished(outcome)
    refinement.timings = outcome.seconds
    tell(lambda: RefinementEvent.of(refinement))
    return refinement


def results_of(
    outcomes: Sequence[Outcome], return_exceptions: bool, taken: Callable[[Outcome], Any] = result_of
) -> list[Any]:
    """Return what is taken of each outcome, or its exception, unless the first of those is to be raised."""
    return [
        outcome.result if return_exceptions and isinstance(outcome.result, Exception) else taken(outcome)
        for outcome in outcomes
    ]


def finished(outcome: Outcome) -> Any:
    """Return what steps returned, or raise what ended them."""
    if isinstance(outcome.result, Exception):
        raise outcome.result
    return outcome.result


def billed(refinement: Refinement, account: Account) -> Refinement:
    """Write into a refinement what was paid for it, and why grades are missing."""
    return replace(
        refinement,
        failures=tuple(account.failures),
        llm_calls=account.calls,
        prompt_tokens=account.prompt_tokens,
        completion_tokens=account.completion_tokens,
        cached_grades=account.cached,
    )
