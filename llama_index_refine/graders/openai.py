"""Yes or no from any server that speaks OpenAI's protocol, without a LlamaIndex LLM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import MetadataMode
from typing_extensions import Unpack

from llama_index_refine.graders.asking.answer import Answer, get, reply_of
from llama_index_refine.graders.asking.calls import CallOptions, Calls
from llama_index_refine.graders.asking.prompts import YES_NO
from llama_index_refine.graders.asking.showing import MAX_IMAGE_PIXELS, Sight, tokens_of
from llama_index_refine.graders.asking.text import count_tokens
from llama_index_refine.graders.chat import Chat, NoModelError
from llama_index_refine.graders.pointwise import PointwiseGrader, yes_no_options
from llama_index_refine.graders.reading import yes_or_no

try:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient
except ImportError as error:
    raise ImportError('OpenAIGrader needs the openai client: pip install "llama-index-refine[openai]"') from error

# The arguments of a call that are not part of its body, by the names that the openai client's requests have for them.
_OF_THE_REQUEST = {"extra_headers": "headers", "extra_query": "params", "timeout": "timeout"}


class OpenAIGrader(PointwiseGrader):
    """`LLMGrader` on the openai client: for OpenAI, vLLM, LiteLLM, Ollama and llama.cpp servers.

    Calls are asynchronous from synchronous code too, so that those still out at the deadline are really cancelled.

    :param model: the model's name on the server.
    :param base_url: the server's address up to and with /v1; None for OPENAI_BASE_URL or OpenAI.
    :param api_key: the key; None for OPENAI_API_KEY, or none at all where base_url is given.
    :param instruction: see `LLMGrader`, as for all that follow.
    :param prompt: a prompt of your own with the variables query, document and instruction.
    :param max_document_tokens: longer documents are cut to this many tokens.
    :param metadata_mode: which of a node's metadata the model sees before its text.
    :param llm_kwargs: arguments for each call, such as {"temperature": 0.0, "extra_body": {...}}.
    :param max_image_pixels: larger images are scaled down to so many pixels.
    :param image_folders: images that are in files are read in these folders and below.
    :param calls: how its questions are asked: see `CallOptions`.
    :raises ValueError: an argument out of its range.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        instruction: str | None = None,
        prompt: BasePromptTemplate | None = None,
        max_document_tokens: int = 512,
        metadata_mode: MetadataMode = MetadataMode.LLM,
        llm_kwargs: Mapping[str, Any] | None = None,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        image_folders: Sequence[str | Path] = (),
        **calls: Unpack[CallOptions],
    ) -> None:
        if not model:
            raise ValueError("model must be the name of a model on the server; got none")
        super().__init__(
            chat=_OpenAIChat(model, base_url, api_key),
            prompt=prompt or YES_NO,
            instruction=instruction,
            max_document_tokens=max_document_tokens,
            metadata_mode=metadata_mode,
            calls=Calls(**calls),
            options=yes_no_options(llm_kwargs, temperature=0.0),
            sight=Sight(max_image_pixels, image_folders),
        )

    def _read(self, answer: Answer) -> float | None:
        return yes_or_no(answer)


class _OpenAIChat(Chat):
    """One client an event loop, because its connections belong to the loop that opened them."""

    def __init__(self, model: str, base_url: str | None, api_key: str | None) -> None:
        self._model = model
        self._base_url = base_url
        self._api_key = api_key
        self._clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clients": {}}

    def check(self) -> None:
        """See `Chat.check`."""
        known = self._base_url, self._api_key, os.environ.get("OPENAI_API_KEY"), os.environ.get("OPENAI_BASE_URL")
        if not any(known):
            raise NoModelError("there is no key for OpenAI: pass api_key or set OPENAI_API_KEY, or pass a base_url")

    async def ask(self, messages: Sequence[ChatMessage], options: Mapping[str, Any], blocking: bool) -> Answer:
        """See `Chat.ask`."""
        asked = [{"role": message.role.value, "content": _content(message)} for message in messages]
        body = {"model": self._model, "messages": asked}
        body |= {name: value for name, value in options.items() if name not in _OF_THE_REQUEST and name != "extra_body"}
        body |= options.get("extra_body") or {}
        request: Any = {_OF_THE_REQUEST[name]: value for name, value in options.items() if name in _OF_THE_REQUEST}
        # `chat.completions.create` does the same, and doubles the processor time of a call by what it does with types.
        response = await self._client().post("/chat/completions", cast_to=object, body=body, options=request)
        return _counted(reply_of(response), response, messages)

    def fingerprint(self) -> str:
        """See `Chat.fingerprint`."""
        return f"openai {self._model} {self._base_url}"

    def _client(self) -> AsyncOpenAI:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            key = self._api_key or os.environ.get("OPENAI_API_KEY") or "none"
            # openai's own HTTP client closes itself on whatever loop runs when it is collected, and fails at that.
            http_client = DefaultAsyncHttpxClient()
            client = AsyncOpenAI(base_url=self._base_url, api_key=key, max_retries=0, http_client=http_client)
            alive = {known: other for known, other in self._clients.copy().items() if not known.is_closed()}
            self._clients = {**alive, loop: client}
        return client


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    """Write a message as text where it is one, because not every server takes parts."""
    if all(isinstance(block, TextBlock) for block in message.blocks):
        return message.content or ""
    return [_part(block) for block in message.blocks]


def _part(block: Any) -> dict[str, Any]:
    if isinstance(block, ImageBlock):
        return {"type": "image_url", "image_url": {"url": str(block.url) if block.url else block.inline_url()}}
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    raise ValueError(f"prompt has a block of type {block.block_type!r}; text and images can be sent")


def _counted(answer: Answer, response: Any, messages: Sequence[ChatMessage]) -> Answer:
    usage = get(response, "usage")
    prompt, completion = get(usage, "prompt_tokens"), get(usage, "completion_tokens")
    return replace(
        answer,
        prompt_tokens=prompt if isinstance(prompt, int) and prompt else tokens_of(messages),
        completion_tokens=completion if isinstance(completion, int) and completion else count_tokens(answer.text),
    )
