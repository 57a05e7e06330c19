"""How a teacher calls its LLM for many nodes: limited, retried, on time, within budget, and never fatal by accident."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.asking.failures import Failure, Remedy, judge
from llama_index_refine.graders.asking.limits import Circuit
from llama_index_refine.graders.asking.pace import Pace
from llama_index_refine.graders.base import GraderError
from llama_index_refine.locks import Lock

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

OnError = Literal["ignore", "raise"]

_LONGEST_WAIT = 20.0
# Quotas are counted by the minute: what servers ask for is waited for that long.
_LONGEST_ASKED_WAIT = 60.0
_FAILURES_TO_OPEN = 5

logger = logging.getLogger(__name__)


class Unreadable(Exception):
    """The LLM answered, but not the question."""


class CutShort(Unreadable):
    """The LLM ran into `max_tokens` before it answered the question."""


class NoText(Unreadable):
    """The LLM answered with nothing."""


class _NotCalled(Exception):
    """The call was not made: the budget is spent, or the circuit is open."""


class _LeftAlone(_NotCalled):
    """The circuit is open."""


class _CrowdedOut(Exception):
    """Other questions kept the server from this one until its time was over; its cause is the timeout."""


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One question to an LLM.

    :param make: makes one attempt.
    :param tokens: about how many tokens one attempt will use; asked only where the budget limits them.
    :param adapt: told of an error that will not pass by itself, and of what it means where it is the client's; returns
        whether to try again at once, because the next attempt will ask in another way.
    :param needless: says why the question need not be asked any more, None where it must.
    """

    make: Callable[[], Awaitable[T_co]]
    tokens: Callable[[], int] = lambda: 0
    adapt: Callable[[Exception, Failure | None], bool] = lambda error, failure: False
    needless: Callable[[], str | None] = lambda: None


class CallOptions(TypedDict, total=False):
    """How a teacher asks its LLM; keyword arguments of every teacher that asks one.

    :param concurrency: the most questions out at the same time, over all queries that share the teacher, at least 1;
        default 16. Fewer are out at first, and for good where answers come so slowly that questions must be queueing.
    :param timeout: seconds one question may take, above 0; default 30.
    :param retries: how often a rate limit, a server error, a timeout or a broken connection is tried again, at least 0;
        default 2.
    :param cooldown: seconds the LLM is left alone after five questions in a row have failed, at least 0; default 30.
    :param on_error: "ignore" (the default) logs each kind of failure once and leaves the node without a grade; "raise"
        raises `GraderError` where the user has to change something: credentials, model, address, request.
    """

    concurrency: int
    timeout: float
    retries: int
    cooldown: float
    on_error: OnError


class Calls:
    """The gate that all LLM calls of one teacher go through, whatever query, thread or event loop they come from.

    The arguments are those of `CallOptions`.

    :raises ValueError: a number out of its range, or another word for on_error.
    """

    def __init__(
        self,
        concurrency: int = 16,
        timeout: float = 30.0,
        retries: int = 2,
        cooldown: float = 30.0,
        on_error: OnError = "ignore",
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1; got {concurrency}")
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds; got {timeout}")
        if retries < 0:
            raise ValueError(f"retries must be at least 0; got {retries}")
        if not cooldown >= 0:
            raise ValueError(f"cooldown must be at least 0 seconds; got {cooldown}")
        if on_error not in ("ignore", "raise"):
            raise ValueError(f'on_error must be "ignore" or "raise"; got {on_error!r}')
        self._timeout = timeout
        self._patience = concurrency.bit_length()
        self._retries = retries
        self._cooldown = cooldown
        self._on_error = on_error
        self._pace = Pace(concurrency, timeout)
        self._circuit = Circuit(_FAILURES_TO_OPEN, cooldown)
        self._stopped: str | None = None
        self._answered = False
        self._told: set[str] = set()
        self._told_lock = Lock()

    async def gather(self, calls: Sequence[Call[T]], account: Account) -> list[T | None]:
        """Make all calls and wait for them, at most until the account's deadline.

        :param calls: the calls, made in this order as far as the limit allows.
        :param account: the bill of the query they belong to.
        :return: one result a call, None where it failed, was not made or was still out at the deadline.
        :raises GraderError: the user has to change something, and on_error is "raise".
        """
        refused: list[str] = []
        tasks = [asyncio.create_task(self._call(call, account, refused)) for call in calls]
        begun = time.monotonic()
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=account.seconds_left(), return_when=asyncio.FIRST_EXCEPTION)
        finally:
            late = [task for task in tasks if not task.done()]
            for task in late:
                task.cancel()
                task.add_done_callback(_let_be)
        done = [task for task in tasks if task.done() and not task.cancelled()]
        errors = [error for task in done if (error := task.exception())]
        if errors:
            raise errors[0]
        if late:
            if not done and self._pace.silent_since(begun):
                self._circuit.failed()
            self.tell(f"answers were still out at the deadline of {account.budget.seconds:g} s", account)
        for reason in refused:
            # Where the LLM answers other questions, it is this text that it refuses, and nothing that the user set.
            if self._answered:
                self.tell(reason, account)
            else:
                self.fail(reason, account)
        return [task.result() if task in done else None for task in tasks]

    def fail(self, reason: str, account: Account) -> None:
        """Say why grades are missing where the user has to change something.

        :param reason: what went wrong and what to do, without secrets.
        :param account: the bill of the query it went wrong for.
        :raises GraderError: on_error is "raise".
        """
        if self._on_error == "raise":
            raise GraderError(reason) from None
        self.tell(reason, account)

    async def _call(self, call: Call[T], account: Account, refused: list[str]) -> T | None:
        try:
            return await self._attempt(call, account)
        except _LeftAlone as error:
            if self._stopped:
                self.fail(self._stopped, account)
            else:
                self.tell(str(error), account)
        except (Unreadable, _NotCalled) as error:
            self.tell(str(error), account)
        except Exception as error:
            self._failed(judge(error), account, refused)
        return None

    def _failed(self, failure: Failure, account: Account, refused: list[str]) -> None:
        if failure.servers:
            self._circuit.failed()
        elif failure.said.status is not None:
            self._circuit.succeeded()
        if failure.remedy is Remedy.STOP or failure.options:
            self._stopped = failure.advice
            self.fail(failure.advice, account)
        elif failure.remedy is Remedy.ADAPT:
            refused.append(failure.advice)
        else:
            self.tell(failure.advice, account)

    async def _attempt(self, call: Call[T], account: Account) -> T:
        while True:
            try:
                return await self._with_retries(call, account)
            except _NotCalled:
                raise
            except Unreadable as error:
                if not call.adapt(error, None):
                    raise
            except Exception as error:
                failure = judge(error)
                if failure.remedy not in (Remedy.ADAPT, Remedy.OURS) or not call.adapt(error, failure):
                    raise

    async def _with_retries(self, call: Call[T], account: Account) -> T:
        retrying = AsyncRetrying(
            reraise=True,
            stop=stop_after_attempt(self._retries + 1),
            wait=_backoff,
            retry=retry_if_exception(_may_pass),
        )
        return await retrying(self._patiently, call, account)

    async def _patiently(self, call: Call[T], account: Account) -> T:
        for _ in range(self._patience):
            try:
                return await self._once(call, account)
            except _CrowdedOut:
                pass
        try:
            return await self._once(call, account)
        except _CrowdedOut as error:
            raise error.__cause__ or error from None

    async def _once(self, call: Call[T], account: Account) -> T:
        async with self._pace.places:
            if not self._circuit.allows():
                raise _LeftAlone(f"the LLM has failed repeatedly and is left alone for {self._cooldown:g} s")
            if needless := call.needless():
                raise _NotCalled(needless)
            tokens = call.tokens() if account.budget.tokens is not None else 0
            if not account.open_call(tokens):
                raise _NotCalled(account.exhausted(tokens) or "the budget is used up")
            begun = time.monotonic()
            try:
                result = await asyncio.wait_for(call.make(), self._timeout)
            except Unreadable:
                self._pace.answered(begun)
                self._circuit.succeeded()
                raise
            except Exception as error:
                failure = judge(error)
                if failure.kind == "busy":
                    self._pace.refused(begun)
                if failure.kind == "late" and self._pace.is_crowded(begun):
                    raise _CrowdedOut from error
                raise
            finally:
                account.release(tokens)
            self._pace.answered(begun)
            self._circuit.succeeded()
            self._answered, self._stopped = True, None
            return result

    def tell(self, reason: str, account: Account) -> None:
        """Say why grades are missing: in the query's account, and in the log once.

        :param reason: what went wrong, without secrets and text of documents.
        :param account: the bill of the query it went wrong for.
        """
        account.note(reason)
        with self._told_lock:
            if reason in self._told:
                return
            self._told.add(reason)
        logger.warning("Some nodes got no grade: %s", reason)


def _let_be(task: asyncio.Task[Any]) -> None:
    """Look at how a cancelled task ended: with an answer or an error that came at the same moment, it may be."""
    if not task.cancelled():
        task.exception()


_exponential = wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, (Unreadable, _NotCalled)):
        return False
    failure = judge(error)
    return failure.remedy is Remedy.WAIT and (failure.wait or 0.0) <= _LONGEST_ASKED_WAIT


def _backoff(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = judge(error).wait if error else None
    return _exponential(state) if asked is None else asked
