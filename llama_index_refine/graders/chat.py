"""One question to a chat model and what came back, for any LlamaIndex LLM."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeVar, cast

from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ThinkingBlock
from llama_index.core.callbacks.token_counting import get_tokens_from_response
from llama_index.core.llms import LLM
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from pydantic import BaseModel, ValidationError

from llama_index_refine.graders.asking.answer import Answer, ended, get, probabilities, reply_of
from llama_index_refine.graders.asking.blocking import in_thread
from llama_index_refine.graders.asking.calls import Unreadable
from llama_index_refine.graders.asking.errors import ServerError, chain
from llama_index_refine.graders.asking.showing import tokens_of
from llama_index_refine.graders.asking.text import count_tokens
from llama_index_refine.locks import Lock, OfOneProcess

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

# The most log-probabilities that the protocol of text completions knows.
_COMPLETION_LOGPROBS = 5
_COMPLETION_TOKENS = 16


# What LlamaIndex's classes send unasked, and what to try where a model refuses it.
LLAMA_INDEX_ADDS: Mapping[str, Sequence[Any]] = {"temperature": (1.0, None)}


class NoModelError(Exception):
    """There is no model to ask; the message says how to give one."""


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

    def completion_options(self) -> Mapping[str, Any] | None:
        """What to ask for beside the answer where the model completes texts and has no messages; None where it has."""
        return None

    def takes_images(self) -> bool:
        """Whether images reach the model; whether it sees them is for the model to say."""
        return True

    @abstractmethod
    def fingerprint(self) -> str:
        """Say which model answers, without secrets."""


class LlamaIndexChat(Chat, OfOneProcess):
    """Asks a LlamaIndex LLM.

    Its own retries are turned off where it lets them be (`max_retries`), on a copy: every call is then counted, and
    stops at the deadline. Each event loop after the first has a copy of its own, because the connections of an
    asynchronous client belong to the loop that opened them. Where no copy can be made, and where an LLM has no
    asynchronous methods, it is called in threads.

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
            except Exception as error:
                if not _of_another_loop(error):
                    raise
        return await in_thread(blocking, llm)

    def check(self) -> None:
        """See `Chat.check`."""
        llm = self.llm
        try:
            _ = llm.metadata
        except Exception as error:
            name = type(llm).__name__
            raise NoModelError(
                f"LlamaIndex's {name} class does not know the model {_model_name(llm)!r}: use "
                "OpenAILike(model=..., api_base=..., is_chat_model=True) or OpenAIGrader for other servers"
            ) from error

    def completion_options(self) -> Mapping[str, Any] | None:
        """See `Chat.completion_options`."""
        if self.llm.metadata.is_chat_model:
            return None
        return {"logprobs": _COMPLETION_LOGPROBS, "max_tokens": _COMPLETION_TOKENS}

    def takes_images(self) -> bool:
        """See `Chat.takes_images`. Where LlamaIndex makes one text of the messages, images are dropped on the way."""
        llm = self.llm
        return llm.metadata.is_chat_model and type(llm).chat is not CustomLLM.chat

    async def ask(self, messages: Sequence[ChatMessage], options: Mapping[str, Any], blocking: bool) -> Answer:
        """See `Chat.ask`. Blocking LLMs, and all where the caller is synchronous, are called in threads."""
        try:
            response = await self._call(
                lambda llm: llm.chat(messages, **_given(llm, options)),
                lambda llm: llm.achat(messages, **_given(llm, options)),
                blocking,
            )
        except ValidationError as error:
            return _in_parts(messages, error)
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
        question, options = cast(PromptTemplate, prompt), _given(self.llm, llm_kwargs)
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
        # What the user adds to each call may hold a secret, as in extra_headers.
        added = repr(sorted((getattr(llm, "additional_kwargs", None) or {}).items()))
        digest = hashlib.sha256(added.encode(errors="replace")).hexdigest()[:16]
        return f"{llm.class_name()} {_model_name(llm)} {settings} {digest}"


def _of_another_loop(error: BaseException) -> bool:
    """Whether a client tripped over connections that another event loop had opened."""
    said = (str(link).casefold() for link in chain(error) if isinstance(link, RuntimeError))
    return any("event loop is closed" in text or "different loop" in text for text in said)


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


def _given(llm: LLM, options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out options that are None: on the openai client also where LlamaIndex would put its own value."""
    if not hasattr(llm, "_aclient"):
        return {name: value for name, value in options.items() if value is not None}
    omitted = import_module("openai").NOT_GIVEN
    return {name: omitted if value is None else value for name, value in options.items()}


def _model_name(llm: LLM) -> str:
    try:
        return llm.metadata.model_name
    except Exception:
        return str(getattr(llm, "model", ""))


def _answer(messages: Sequence[ChatMessage], response: ChatResponse) -> Answer:
    answer = _reply(response)
    if not answer.tokens and response.logprobs:
        answer = replace(
            answer, tokens=[probabilities((item.token, item.logprob) for item in top) for top in response.logprobs]
        )
    return _counted(messages, answer, *_usage(response))


def _reply(response: ChatResponse) -> Answer:
    """Read the server's own message where it has the form of OpenAI's, else what LlamaIndex made of it."""
    message = response.message
    if get(response.raw, "choices"):
        try:
            reply = reply_of(response.raw)
        except (ServerError, Unreadable):
            reply = None
        if reply is not None and (reply.text or not message.content):
            return reply
    thoughts = "".join(block.content or "" for block in message.blocks if isinstance(block, ThinkingBlock))
    return ended(message.content or "", thoughts, response.raw)


def _in_parts(messages: Sequence[ChatMessage], error: ValidationError) -> Answer:
    """Read a message in parts, which LlamaIndex's blocks refuse, from what they say that they refuse."""
    content = next((found["input"] for found in error.errors() if found["loc"] == ("text",)), None)
    if not isinstance(content, list):
        raise error
    return _counted(messages, reply_of({"choices": [{"message": {"content": content}}]}), 0, 0)


def _counted(messages: Sequence[ChatMessage], answer: Answer, prompt_tokens: int, completion_tokens: int) -> Answer:
    return replace(
        answer,
        prompt_tokens=prompt_tokens or tokens_of(messages),
        completion_tokens=completion_tokens or count_tokens(answer.text),
    )


def _usage(response: ChatResponse) -> tuple[int, int]:
    try:
        prompt_tokens, completion_tokens = get_tokens_from_response(response)
    except (AttributeError, TypeError, ValueError):
        return 0, 0
    return prompt_tokens or 0, completion_tokens or 0
