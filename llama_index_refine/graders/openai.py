"""Yes or no from any server that speaks OpenAI's protocol, without a LlamaIndex LLM."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import BasePromptTemplate
from typing_extensions import Unpack

from llama_index_refine.graders.asking.answer import Answer, reply_of
from llama_index_refine.graders.asking.errors import get
from llama_index_refine.graders.asking.grader import AskingOptions
from llama_index_refine.graders.asking.prompts import YES_NO
from llama_index_refine.graders.base import digest
from llama_index_refine.graders.chat import Chat, NoModelError
from llama_index_refine.graders.llm import PointwiseGrader

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# The arguments of a call that are not part of its body, by the names that the openai client's requests have for them.
_OF_THE_REQUEST = {"extra_headers": "headers", "extra_query": "params", "timeout": "timeout"}


class OpenAIGrader(PointwiseGrader):
    """`LLMGrader` on the openai client: for OpenAI, vLLM, LiteLLM, Ollama and llama.cpp servers.

    Calls are asynchronous, from synchronous code too, so a deadline cancels those that have no answer yet.

    :param model: the model's name on the server.
    :param base_url: the server's address, which ends in /v1; None for OPENAI_BASE_URL or OpenAI.
    :param api_key: the key; None for OPENAI_API_KEY, or for no key if you give a base_url.
    :param instruction: what the search is for, in a sentence; None for none.
    :param prompt: a prompt of your own with the variables query, document and instruction.
    :param asking: how documents are shown, and how its questions are asked: see `AskingOptions`. Of `llm_kwargs`,
        "extra_body", "extra_headers", "extra_query" and "timeout" go where the openai client puts them.
    :raises ImportError: the openai client is missing.
    :raises ValueError: an argument out of its range.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        instruction: str | None = None,
        prompt: BasePromptTemplate | None = None,
        **asking: Unpack[AskingOptions],
    ) -> None:
        if find_spec("openai") is None:
            raise ImportError('OpenAIGrader needs the openai client: pip install "llama-index-refine[openai]"')
        if not model:
            raise ValueError("model must be the name of a model on the server; got none")
        chat = _OpenAIChat(model, base_url, api_key)
        super().__init__(chat, prompt or YES_NO, instruction, ("Yes", "No"), {"temperature": 0.0}, **asking)


class _OpenAIChat(Chat):
    """One client for the event loop in which it is asked, whose connections belong to that loop."""

    def __init__(self, model: str, base_url: str | None, api_key: str | None) -> None:
        self._model = model
        self._base_url = base_url
        self._api_key = api_key

    def check(self) -> None:
        """See `Chat.check`."""
        if not (self._key() or self._base_url or os.environ.get("OPENAI_BASE_URL")):
            raise NoModelError("there is no key for OpenAI: pass api_key or set OPENAI_API_KEY, or pass a base_url")

    async def ask(self, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> Answer:
        """See `Chat.ask`."""
        asked = [{"role": message.role.value, "content": _content(message)} for message in messages]
        body = {"model": self._model, "messages": asked}
        body |= {name: value for name, value in options.items() if name not in _OF_THE_REQUEST and name != "extra_body"}
        body |= options.get("extra_body") or {}
        request: Any = {_OF_THE_REQUEST[name]: value for name, value in options.items() if name in _OF_THE_REQUEST}
        # `chat.completions.create` does the same, and doubles the processor time of a call by what it does with types.
        client = self._of_this_loop(self._key(), self._client)
        response = await client.post("/chat/completions", cast_to=object, body=body, options=request)
        usage = get(response, "usage")
        return reply_of(response).counted(get(usage, "prompt_tokens"), get(usage, "completion_tokens"))

    def fingerprint(self) -> str:
        """See `Chat.fingerprint`. Whose key it is decides nothing, and an address may hold a password."""
        return f"openai {self._model} {digest(self._base_url or os.environ.get('OPENAI_BASE_URL'))}"

    def _key(self) -> str | None:
        """The key that was given for this server: OPENAI_API_KEY is OpenAI's, or OPENAI_BASE_URL's."""
        own = self._base_url in (None, "", os.environ.get("OPENAI_BASE_URL")) or _is_openais(str(self._base_url))
        return self._api_key or (os.environ.get("OPENAI_API_KEY") if own else None)

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        # openai's own HTTP client closes itself on whatever loop runs when it is collected, and fails at that. How long
        # a question may take, connecting included, is the teacher's to say.
        http_client, key = DefaultAsyncHttpxClient(timeout=None), self._key()
        client = AsyncOpenAI(base_url=self._base_url, api_key=key or "none", max_retries=0, http_client=http_client)
        if not key:
            client.organization = client.project = None
        return client


def _is_openais(url: str) -> bool:
    address = urlsplit(url)
    return address.scheme == "https" and f".{address.hostname}".endswith(".api.openai.com")


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
