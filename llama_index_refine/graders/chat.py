"""One question to a chat model and what came back, for any LlamaIndex LLM."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, cast

from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ThinkingBlock
from llama_index.core.callbacks.token_counting import get_tokens_from_response
from llama_index.core.llms import LLM
from llama_index.core.llms.custom import CustomLLM
from pydantic import ValidationError

from llama_index_refine.graders.asking.answer import Answer, Unreadable, ended, probabilities, reply_of
from llama_index_refine.graders.asking.errors import ServerError, chain, get
from llama_index_refine.graders.asking.loop import in_thread
from llama_index_refine.graders.base import digest

# The most log-probabilities that the protocol of text completions knows.
_COMPLETION_LOGPROBS = 5
_COMPLETION_TOKENS = 16
# The seconds that a coroutine may take without a turn of the event loop.
_HELD_UP = 0.05


class NoModelError(Exception):
    """There is no model to ask; the message says how to give one."""


class Chat(ABC):
    """A chat model that a teacher asks."""

    _made: tuple[Any, Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    @abstractmethod
    async def ask(self, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> Answer:
        """Ask one question, once, in the event loop that the package owns.

        :param messages: the question.
        :param options: arguments of the call, by the names of the chat completions protocol.
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

    def _of_this_loop(self, key: object, make: Callable[[], Any]) -> Any:
        """Make once for an event loop, and for a key, what holds connections, which belong to the loop."""
        loop = asyncio.get_running_loop()
        if self._made is None or self._made[:2] != (loop, key):
            self._made = loop, key, make()
        return self._made[2]


class LlamaIndexChat(Chat):
    """Asks a LlamaIndex LLM: its `achat`, or its `chat` in a thread where it has no coroutine that waits.

    Its own retries are turned off where it lets them be (`max_retries`), on a copy: every call is then counted, and
    stops at the deadline. The copy has connections of its own, because those of an asynchronous client belong to the
    event loop that opened them; where it cannot have, and the LLM is in use in another loop, it is called in threads.

    :param llm: the LLM; None is `Settings.llm`, looked up at each question.
    """

    def __init__(self, llm: LLM | None = None) -> None:
        self._given = llm
        self._blocking: type[LLM] | None = None

    @property
    def llm(self) -> LLM:
        """The LLM. :raises NoModelError: none is given, and `Settings.llm` has none."""
        try:
            return self._given if self._given is not None else Settings.llm
        except (ImportError, ValueError) as error:
            raise NoModelError("there is no LLM to ask: pass the grader an llm, or set Settings.llm") from error

    def check(self) -> None:
        """See `Chat.check`."""
        llm = self.llm
        try:
            _ = llm.metadata
        except Exception as error:
            raise NoModelError(
                f"LlamaIndex's {type(llm).__name__} class does not know the model {getattr(llm, 'model', '')!r}: use "
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

    def fingerprint(self) -> str:
        """See `Chat.fingerprint`."""
        llm = self.llm
        return f"{llm.class_name()} {digest(llm)}"

    async def ask(self, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> Answer:
        """See `Chat.ask`."""
        given = self.llm
        # Beside its copy, so that its id stays its own.
        _, llm = self._of_this_loop(id(given), lambda: (given, _copied(given)))
        try:
            return _answer(await self._call(llm, messages, _given(llm, options)))
        except ValidationError as error:
            return _in_parts(error)

    async def _call(self, llm: LLM, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> ChatResponse:
        if type(llm) is not self._blocking and type(llm).achat is not CustomLLM.achat:
            turned = asyncio.Event()
            asyncio.get_running_loop().call_soon(turned.set)
            begun = time.monotonic()
            try:
                response = await llm.achat(messages, **options)
            except NotImplementedError:
                self._blocking = type(llm)
            except Exception as error:
                if not _of_another_loop(error):
                    raise
            else:
                # A coroutine that works and never waits holds up all questions: the next ones go into threads.
                if not turned.is_set() and time.monotonic() - begun > _HELD_UP:
                    self._blocking = type(llm)
                return response
        return await in_thread(lambda: llm.chat(messages, **options))


def _of_another_loop(error: BaseException) -> bool:
    """Whether a client tripped over connections that another event loop had opened."""
    said = (str(link).casefold() for link in chain(error) if isinstance(link, RuntimeError))
    return any("event loop is closed" in text or "different loop" in text for text in said)


def _copied(llm: LLM) -> LLM:
    """Copy an LLM, without retries and, where it is on the openai client, with connections of its own.

    They do not close themselves when they are collected. The client that openai makes by itself does, and its sockets
    are closed before it: it then takes the numbers that they had from the event loop, and from whoever has them now.
    """
    retries = {"max_retries": 0} if isinstance(getattr(llm, "max_retries", None), int) else None
    client: Any = getattr(llm, "_aclient", None)
    # One that the user gave keeps its proxies and the like.
    openais = type(getattr(client, "_client", None)).__name__ == "AsyncHttpxClientWrapper"
    unmade = hasattr(llm, "_aclient") and getattr(llm, "_async_http_client", llm) is None
    if not (retries or openais or unmade):
        return llm
    copy: Any = llm.model_copy(update=retries)
    if openais or unmade:
        fresh = import_module("openai").DefaultAsyncHttpxClient()
        copy._async_http_client = fresh
        copy._aclient = client.copy(http_client=fresh, max_retries=0) if openais else client
    return cast("LLM", copy)


def _given(llm: LLM, options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out options that are None: on the openai client also where LlamaIndex would put its own value."""
    if not hasattr(llm, "_aclient"):
        return {name: value for name, value in options.items() if value is not None}
    omitted = import_module("openai").NOT_GIVEN
    return {name: omitted if value is None else value for name, value in options.items()}


def _answer(response: ChatResponse) -> Answer:
    answer = _reply(response)
    if not answer.tokens and response.logprobs:
        answer = replace(
            answer, tokens=[probabilities((item.token, item.logprob) for item in top) for top in response.logprobs]
        )
    try:
        return answer.counted(*get_tokens_from_response(response))
    except (AttributeError, TypeError, ValueError):
        return answer


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


def _in_parts(error: ValidationError) -> Answer:
    """Read a message in parts, which LlamaIndex's blocks refuse, from what they say that they refuse."""
    content = next((found["input"] for found in error.errors() if found["loc"] == ("text",)), None)
    if not isinstance(content, list):
        raise error
    return reply_of({"choices": [{"message": {"content": content}}]})
