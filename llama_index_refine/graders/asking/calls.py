"""How a teacher calls its LLM for many nodes: limited, retried, on time, within budget, and never fatal by accident."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, TypedDict

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.asking.answer import Unreadable
from llama_index_refine.graders.asking.failures import Failure, Remedy, judge
from llama_index_refine.graders.asking.pace import Circuit, Pace
from llama_index_refine.graders.asking.question import Question
from llama_index_refine.graders.base import GraderError, at_least

OnError = Literal["ignore", "raise"]
_Grades = Sequence[float | None]

_LONGEST_WAIT = 20.0
# Quotas are counted by the minute: what servers ask for is waited for that long.
_LONGEST_ASKED_WAIT = 60.0
_FAILURES_TO_OPEN = 5

logger = logging.getLogger(__name__)


class _NotCalled(Exception):
    """The call was not made: the budget is spent, the question needless, or the circuit open."""


class _Failed(Exception):
    """The call failed. `crowded`: other questions may have kept the server from it. `silent`: it said nothing since."""

    def __init__(self, failure: Failure, crowded: bool = False, silent: bool = False) -> None:
        super().__init__(failure.advice)
        self.failure = failure
        self.crowded = crowded
        self.silent = silent


class CallOptions(TypedDict, total=False):
    """How a teacher asks its LLM; keyword arguments of every teacher that asks one.

    :param concurrency: the most questions that wait for an answer at the same time, over all queries that share the
        teacher, at least 1; default 16. There are fewer at first, and while answers take long.
    :param timeout: seconds that one question may take, above 0; default 30. If a server answers nothing for so long,
        all who wait for it stop.
    :param retries: how often a rate limit, a server error, a timeout or a broken connection is tried again, at least 0;
        default 2.
    :param cooldown: seconds for which the LLM is not asked after it answered nothing, or after five questions in a row
        failed, at least 0; default 30.
    :param on_error: "ignore" (the default) logs each kind of failure once and leaves the node without a grade; "raise"
        raises `GraderError` if you have to change something: credentials, model, address, request.
    """

    concurrency: int
    timeout: float
    retries: int
    cooldown: float
    on_error: OnError


@dataclass
class Calls:
    """The gate that all LLM calls of one teacher go through, whatever query they come from. Used in one event loop.

    The arguments are those of `CallOptions`.

    :raises ValueError: a number out of its range, or another word for on_error.
    """

    concurrency: int = 16
    timeout: float = 30.0
    retries: int = 2
    cooldown: float = 30.0
    on_error: OnError = "ignore"

    def __post_init__(self) -> None:
        at_least(1, concurrency=self.concurrency)
        at_least(0, retries=self.retries, cooldown=self.cooldown)
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds; got {self.timeout}")
        if self.on_error not in ("ignore", "raise"):
            raise ValueError(f'on_error must be "ignore" or "raise"; got {self.on_error!r}')
        self._pace = Pace(self.concurrency, self.timeout)
        self._circuit = Circuit(_FAILURES_TO_OPEN, self.cooldown)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard = 0.0
        self._silences = 0
        self._stopped: str | None = None
        self._answered = False
        self._told: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Calls, astuple(self)

    async def gather(self, questions: Sequence[Question], account: Account) -> list[_Grades | None]:
        """Ask all questions and wait for the answers, at most until the account's deadline.

        :param questions: the questions, asked in this order as far as the limit allows.
        :param account: the bill of the query they belong to.
        :return: the grades of each, None where it failed, was not asked or had not answered by the deadline.
        :raises GraderError: the user has to change something, and on_error is "raise".
        """
        if self._loop is not asyncio.get_running_loop():
            # A forked process begins anew: whoever held a place is gone.
            self._loop = asyncio.get_running_loop()
            self._pace = Pace(self.concurrency, self.timeout)
        refused, begun = list[str](), time.monotonic()
        tasks = [asyncio.create_task(self._call(question, account, refused, begun)) for question in questions]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=account.seconds_left(), return_when=asyncio.FIRST_EXCEPTION)
        finally:
            late = [task for task in tasks if not task.done()]
            for task in late:
                task.cancel()
            # Looks at how they end: an error may have come at the same moment.
            asyncio.gather(*late, return_exceptions=True)
        done = [task for task in tasks if task.done() and not task.cancelled()]
        errors = [error for task in done if (error := task.exception())]
        if errors:
            raise errors[0]
        if late:
            if self._heard < begun:
                self._circuit.failed()
            self.tell(f"not every answer had come by the deadline of {account.budget.seconds:g} s", account)
        for reason in refused:
            # Where the LLM answers other questions, it is this text that it refuses, and nothing that the user set.
            (self.tell if self._answered else self.fail)(reason, account)
        return [task.result() if task in done else None for task in tasks]

    def fail(self, reason: str, account: Account) -> None:
        """Say why grades are missing where the user has to change something.

        :param reason: what went wrong and what to do, without secrets.
        :param account: the bill of the query it went wrong for.
        :raises GraderError: on_error is "raise".
        """
        if self.on_error == "raise":
            raise GraderError(reason) from None
        self.tell(reason, account)

    def tell(self, reason: str, account: Account) -> None:
        """Say why grades are missing, without secrets and text of documents: in the account, and in the log once."""
        account.note(reason)
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("Some nodes got no grade: %s", reason)

    async def _call(self, question: Question, account: Account, refused: list[str], since: float) -> _Grades | None:
        try:
            return await self._answer(question, account, since)
        except (Unreadable, _NotCalled) as error:
            (self.fail if str(error) == self._stopped else self.tell)(str(error), account)
        except _Failed as failed:
            failure = failed.failure
            self._circuit.failed(int(failure.servers))
            if failure.remedy is Remedy.ADAPT:
                refused.append(failure.advice)
                return None
            stops = failure.remedy is Remedy.STOP
            self._stopped = failure.advice if stops else self._stopped
            (self.fail if stops else self.tell)(failure.advice, account)
        return None

    async def _answer(self, question: Question, account: Account, since: float) -> _Grades:
        retries, patience = self.retries, self.concurrency.bit_length()
        while True:
            try:
                return await self._once(question, account, since)
            except Unreadable as error:
                if not question.adapt(error):
                    raise
            except _Failed as failed:
                failure, asked = failed.failure, failed.failure.said.wait
                if failed.crowded and patience:
                    patience -= 1
                elif failure.remedy is Remedy.WAIT:
                    if failed.silent or not retries or (asked or 0.0) > _LONGEST_ASKED_WAIT:
                        raise
                    longest = min(_LONGEST_WAIT, 0.5 * 2 ** (self.retries - retries))
                    retries -= 1
                    await asyncio.sleep(random.uniform(0, longest) if asked is None else asked)
                elif failure.remedy is Remedy.STOP or not question.adapt(failure):
                    raise

    async def _once(self, question: Question, account: Account, since: float) -> _Grades:
        async with self._pace:
            if not self._circuit.allows():
                alone = f"the LLM failed repeatedly, so it is not asked for {self.cooldown:g} s"
                raise _NotCalled(self._stopped or alone)
            if needless := question.needless():
                raise _NotCalled(needless)
            tokens = question.tokens() if account.budget.tokens is not None else 0
            if not account.open_call(tokens):
                raise _NotCalled(account.exhausted(tokens) or "the budget is used up")
            begun = time.monotonic()
            try:
                result = await asyncio.wait_for(question.ask(), self.timeout)
            except Unreadable:
                self._hear(begun)
                raise
            except Exception as error:
                raise self._failed(judge(error, question.sent()), begun, since) from error
            finally:
                account.release(tokens)
            self._hear(begun)
            self._answered, self._stopped = True, None
            return result

    def _hear(self, begun: float) -> None:
        self._heard, self._silences = time.monotonic(), 0
        self._pace.answered(begun)
        self._circuit.succeeded()

    def _failed(self, failure: Failure, begun: float, since: float) -> _Failed:
        """Take note of a failure: of one that takes a place, and of a server that says nothing any more."""
        if failure.said.status is not None:
            self._heard, self._silences = time.monotonic(), 0
            if not failure.servers:
                self._circuit.succeeded()
        if failure.kind == "busy":
            self._pace.slower(begun)
        if failure.kind != "late" or failure.said.status is not None:
            return _Failed(failure)
        crowded, silent = self._pace.slower(begun), self._heard < begun
        self._silences += silent
        # One text may take for ever where others were answered; a server that is silent has answered none of several.
        if silent and (self._silences > 1 or self._heard < since):
            self._circuit.failed(_FAILURES_TO_OPEN)
        return _Failed(failure, crowded and not silent, silent)
