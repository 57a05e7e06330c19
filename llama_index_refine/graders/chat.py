"""One question to a chat model and what came back, for any LlamaIndex LLM."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar, cast

from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.callbacks.token_counting import get_tokens_from_response
from llama_index.core.llms import LLM
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from pydantic import BaseModel

from llama_index_refine.graders.asking.blocking import in_thread
from llama_index_refine.graders.asking.text import count_tokens
from llama_index_refine.locks import Lock, OfOneProcess

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

# What servers with a lower limit than the protocol's 20 allow.
_FEWEST_LOGPROBS = 5


class NoModelError(Exception):
    """There is no model to ask; the message says how to give one."""


@dataclass(frozen=True)
class Answer:
    """What a chat model said.

    :param text: the message, empty where there was none.
    :param tokens: for each position of the message, the probability of the most likely tokens; empty where the model
        gave no log-probabilities.
    :param cut_short: the message ended because it was too long.
    :param prompt_tokens: tokens of the question, as the server counted them or else as LlamaIndex's tokenizer does.
    :param completion_tokens: tokens of the answer, likewise.
    """

    text: str
    tokens: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    cut_short: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chat(ABC):
    """A chat model that a teacher asks."""

    @abstractmethod
    async def ask(self, messages: Sequence[ChatMessage], options: Mapping[str, Any], blocking: bool) -> Answer:
        """Ask one question, once.

        :param messages: the question.
        :param options: arguments of the call, by the names of the chat completions protocol.
        :param blocking: the caller is synchronous code, and this coroutine runs outside its event loop.
        :return: the answer.
        :raises Exception: whatever the client raises.
        """

    def check(self) -> None:
        """Make sure that there is a model. :raises NoModelError: there is none."""
        return

    @abstractmethod
    def fingerprint(self) -> str:
        """Say which model answers, without secrets."""


class LlamaIndexChat(Chat, OfOneProcess):
    """Asks a LlamaIndex LLM.

    Its own retries are turned off where it lets them be (`max_retries`), on a copy: every call is then counted, and
    stops at the deadline. Each event loop after the first has a copy of its own, because the connections of an
    asynchronous client belong to the loop that opened them. An LLM without asynchronous methods is called in threads.

    :param llm: the LLM; None is `Settings.llm`, looked up at each question.
    """

    def __init__(self, llm: LLM | None = None) -> None:
        super().__init__()
        self._given = llm
        self._original: LLM | None = None
        self._prepared: LLM | None = None
        self._of_loop: dict[asyncio.AbstractEventLoop, LLM] = {}
        self._only_blocks = False
        self._lock = Lock()
        self._forked = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_original": None, "_prepared": None, "_of_loop": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.__dict__.update(state)

    def after_fork(self) -> None:
        """See `OfOneProcess.after_fork`."""
        self._prepared, self._of_loop, self._forked = None, {}, True

    @property
    def llm(self) -> LLM:
        """The LLM to call. :raises NoModelError: none is given, and `Settings.llm` has none."""
        try:
            llm = self._given if self._given is not None else Settings.llm
        except (ImportError, ValueError) as error:
            raise NoModelError("there is no LLM to ask: pass the grader an llm, or set Settings.llm") from error
        with self._lock:
            if llm is not self._original or self._prepared is None:
                self._original = llm
                self._prepared = _without_retries(llm)
                if self._forked:
                    self._prepared = _with_own_connections(self._prepared, _BLOCKING, _AWAITED)
                self._of_loop = {}
                self._only_blocks = type(llm).achat is CustomLLM.achat
            return self._prepared

    def _llm_of_this_loop(self) -> LLM:
        llm, loop = self.llm, asyncio.get_running_loop()
        with self._lock:
            if loop not in self._of_loop:
                alive = {known: other for known, other in self._of_loop.items() if not known.is_closed()}
                self._of_loop = {**alive, loop: _with_own_connections(llm, _AWAITED) if self._of_loop else llm}
            return self._of_loop[loop]

    async def _call(self, blocking: Callable[[LLM], T], awaiting: Callable[[LLM], Awaitable[T]], in_sync: bool) -> T:
        """Call the LLM in whichever way it can be called. :param in_sync: the caller is synchronous code."""
        llm = self.llm
        if not in_sync and not self._only_blocks:
            try:
                return await awaiting(self._llm_of_this_loop())
            except NotImplementedError:
                result = await in_thread(blocking, llm)
                self._only_blocks = True
                return result
        return await in_thread(blocking, llm)

    def check(self) -> None:
        """See `Chat.check`."""
        _ = self.llm

    async def ask(self, messages: Sequence[ChatMessage], options: Mapping[str, Any], blocking: bool) -> Answer:
        """See `Chat.ask`. Blocking LLMs, and all where the caller is synchronous, are called in threads."""
        response = await self._call(
            lambda llm: llm.chat(messages, **options), lambda llm: llm.achat(messages, **options), blocking
        )
        return _answer(messages, response)

    async def predict(
        self,
        output: type[Model],
        prompt: BasePromptTemplate,
        variables: Mapping[str, Any],
        llm_kwargs: Mapping[str, Any],
        blocking: bool,
    ) -> Model:
        """Ask for structured output, once.

        :param output: what the answer must be.
        :param prompt: the question.
        :param variables: the prompt's variables.
        :param llm_kwargs: arguments of the call.
        :param blocking: the caller is synchronous code, and this coroutine runs outside its event loop.
        :return: the answer.
        :raises Exception: whatever the client raises, and where the answer was not of this form.
        """
        question, options = cast(PromptTemplate, prompt), dict(llm_kwargs)
        answer = await self._call(
            lambda llm: llm.structured_predict(output, question, options, **variables),
            lambda llm: llm.astructured_predict(output, question, options, **variables),
            blocking,
        )
        return cast(Model, answer)

    def fingerprint(self) -> str:
        """See `Chat.fingerprint`."""
        llm = self.llm
        settings = {name: getattr(llm, name, None) for name in ("temperature", "api_base", "reasoning_effort")}
        return f"{llm.class_name()} {llm.metadata.model_name} {settings}"


def _without_retries(llm: LLM) -> LLM:
    if isinstance(getattr(llm, "max_retries", None), int):
        return llm.model_copy(update={"max_retries": 0})
    return llm


# Where LlamaIndex's LLMs keep an openai client, where an HTTP client that the user gave it, and what makes another.
_BLOCKING = ("_client", "_http_client", "DefaultHttpxClient")
_AWAITED = ("_aclient", "_async_http_client", "DefaultAsyncHttpxClient")


def _with_own_connections(llm: LLM, *clients: tuple[str, str, str]) -> LLM:
    """Copy an LLM on the openai client, with connections of its own; return any other as it is."""
    copy = llm.model_copy()
    for name, users, fresh in clients:
        client: Any = getattr(llm, name, None)
        if getattr(llm, users, None) is None and type(client).__module__.split(".")[0] == "openai":
            setattr(copy, name, client.copy(http_client=getattr(import_module("openai"), fresh)()))
    return copy if hasattr(llm, "_aclient") else llm


def _answer(messages: Sequence[ChatMessage], response: ChatResponse) -> Answer:
    text = response.message.content or ""
    prompt_tokens, completion_tokens = _usage(response)
    return Answer(
        text=text,
        tokens=[probabilities((item.token, item.logprob) for item in top) for top in response.logprobs or ()],
        cut_short=_finish_reason(response.raw) in ("length", "max_tokens", "MAX_TOKENS"),
        prompt_tokens=prompt_tokens or sum(count_tokens(message.content or "") for message in messages),
        completion_tokens=completion_tokens or count_tokens(text),
    )


def probabilities(logprobs: Any) -> dict[str, float]:
    """Turn pairs of token and log-probability into token: probability; what is not a number is left out."""
    return {
        token: math.exp(min(logprob, 0.0))
        for token, logprob in logprobs
        if isinstance(token, str) and isinstance(logprob, (int, float)) and not math.isnan(logprob)
    }


def _usage(response: ChatResponse) -> tuple[int, int]:
    try:
        prompt_tokens, completion_tokens = get_tokens_from_response(response)
    except (AttributeError, TypeError, ValueError):
        return 0, 0
    return prompt_tokens or 0, completion_tokens or 0


def _finish_reason(raw: Any) -> str | None:
    def read(owner: Any, name: str) -> Any:
        return owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)

    choices = read(raw, "choices")
    reason = read(choices[0], "finish_reason") if choices else read(raw, "stop_reason")
    return reason if isinstance(reason, str) else None


class Options:
    """The optional arguments of a call, less what the LLM has refused.

    Not every LLM takes `logprobs`, `top_logprobs` and `max_tokens`. A call that fails is asked again with fewer of
    them, and what the LLM then answers to is what it is sent from then on.

    :param optional: arguments that may be left out.
    :param required: arguments that are always sent.
    """

    def __init__(self, optional: Mapping[str, Any], required: Mapping[str, Any] | None = None) -> None:
        self._wanted = {**optional}
        self._proven: dict[str, Any] | None = None
        self.required = {**(required or {})}

    def now(self) -> dict[str, Any]:
        """The arguments to send."""
        return {**(self._wanted if self._proven is None else self._proven), **self.required}

    def worked(self, used: Mapping[str, Any]) -> None:
        """Keep to these arguments: an answer to a call with them could be read."""
        optional = self._optional(used)
        if self._proven is None or _size(optional) > _size(self._proven):
            self._proven = optional

    def fewer(self, used: Mapping[str, Any], error: Exception) -> dict[str, Any] | None:
        """Leave out what an error speaks of, or else everything optional.

        :param used: the arguments of the call that failed.
        :param error: how it failed.
        :return: the arguments to try instead; None where the arguments are not to blame.
        """
        sent = self._optional(used)
        if self._proven is not None:
            return self.now() if _size(sent) > _size(self._proven) else None
        return {**_without_refused(sent, str(error)), **self.required} if sent else None

    def _optional(self, used: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in used.items() if name in self._wanted and name not in self.required}


def _size(options: Mapping[str, Any]) -> tuple[int, int]:
    return len(options), options.get("top_logprobs", 0)


def _without_refused(sent: dict[str, Any], message: str) -> dict[str, Any]:
    if "max_tokens" in message and "max_tokens" in sent:
        return {name: value for name, value in sent.items() if name != "max_tokens"}
    if "top_logprobs" in message and sent.get("top_logprobs", 0) > _FEWEST_LOGPROBS:
        return {**sent, "top_logprobs": _FEWEST_LOGPROBS}
    if "logprobs" in message and "logprobs" in sent:
        return {name: value for name, value in sent.items() if "logprobs" not in name}
    return {}
