"""A server of chat completions and rerankers on loopback, with log-probabilities and every bad habit of real ones.

As a fixture (`chat_server` in conftest) it runs in a thread; `python -m tests.chat_server --help` runs it as a process.
By default it grades: a document that shares a word of four letters with the query gets yes with 0.9, else 0.1. Set
`server.reply` to a function of a `Question` to answer otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

_DOCUMENT = re.compile(r"<(document[^>\n]*)>\n(.*?)\n</\1>", re.DOTALL)
_QUERY = re.compile(r"^Query: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """A request: its JSON body, the whole prompt, and the query and documents that stand in it; where it came to."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    path: str = ""

    @property
    def parts(self) -> list[Mapping[str, Any]]:
        """The content parts of all messages; a text is one."""
        messages = self.body.get("messages") or [{"content": self.body.get("prompt")}]
        contents = [message["content"] for message in messages]
        return [
            part
            for content in contents
            for part in ([{"type": "text", "text": content}] if isinstance(content, str) else content or [])
        ]

    @property
    def prompt(self) -> str:
        """All text, with [image] where an image stands."""
        return "\n".join(part["text"] if part["type"] == "text" else "[image]" for part in self.parts)

    @property
    def images(self) -> list[str]:
        """The URLs of all images, which may be data URLs."""
        return [part["image_url"]["url"] for part in self.parts if part["type"] == "image_url"]

    @property
    def query(self) -> str:
        found = _QUERY.search(self.prompt)
        return found[1] if found else ""

    @property
    def documents(self) -> list[str]:
        return [text for _, text in _DOCUMENT.findall(self.prompt)]

    @property
    def document(self) -> str:
        return self.documents[0] if self.documents else ""


@dataclass(frozen=True)
class Reply:
    """What the server does with a request.

    `tokens` are the probabilities of the tokens at each position, sent where the request asks for them. `arguments` are
    those of a call of the request's first tool, or the content where there is none. `body` replaces the whole response.
    `reset` breaks the connection before the response, `trickle` sends it a byte at a time with so many seconds between.
    """

    text: str | None = ""
    tokens: Sequence[Mapping[str, float]] | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    finish_reason: str = "stop"
    arguments: Mapping[str, Any] | None = None
    usage: bool = True
    reset: bool = False
    trickle: float | None = None


def yes(probability: float) -> Reply:
    """Answer yes with this probability, over several spellings."""
    text = "Yes" if probability >= 0.5 else "No"
    tokens = {"Yes": 0.9 * probability, " yes": 0.1 * probability, "No": 0.8 * (1 - probability)}
    return Reply(text, [{**tokens, "▁no": 0.2 * (1 - probability)}])


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """Answer with an error as OpenAI words it."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, body=body, headers=named)


def overlap(question: Question) -> Reply:
    """Grade by shared words."""
    return yes(_overlap(question.query, question.document))


def _overlap(query: str, document: str) -> float:
    words = set(re.findall(r"\w{4,}", query.casefold()))
    return 0.9 if words & set(re.findall(r"\w{4,}", document.casefold())) else 0.1


def rerank(body: Mapping[str, Any], score: Callable[[str, str], float] = _overlap) -> bytes:
    """Score documents, the best one first: as text-embeddings-inference does, or as all others do."""
    texts = body["texts"] if "texts" in body else body["documents"]
    name = "score" if "texts" in body else "relevance_score"
    results = [{"index": at, name: score(body["query"], text)} for at, text in enumerate(texts)]
    results.sort(key=lambda result: -result[name])
    return json.dumps(results if "texts" in body else {"model": body["model"], "results": results}).encode()


class ChatServer:
    """The server. `calls` counts requests, `most_at_once` those open together, `questions` are the last thousand.

    It answers under a path of its own, which is a part of `url`. Who asks an earlier server that had this port gets 404
    and is not counted.
    """

    def __init__(self, reply: Callable[[Question], Reply] = overlap) -> None:
        self.reply = reply
        self.calls = 0
        self.most_at_once = 0
        self.questions: list[Question] = []
        self.port = 0
        self._path = f"/{secrets.token_hex(8)}/v1"
        self._open = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self._path}"

    @property
    def open_now(self) -> int:
        """Requests being answered at this moment."""
        return self._open

    def start(self) -> ChatServer:
        self._thread.start()
        self._ready.wait(10)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _listen(self, port: int = 0) -> web.AppRunner:
        app = web.Application(client_max_size=2**26)
        app.router.add_post(f"{self._path}/chat/completions", self._answer)
        app.router.add_post(f"{self._path}/completions", self._answer)
        app.router.add_post(f"{self._path}/rerank", self._answer)
        app.router.add_post(f"{self._path.removesuffix('/v1')}/rerank", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=4096)
        await site.start()
        self.port = runner.addresses[0][1]
        return runner

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self._open += 1
        try:
            self.calls += 1
            self.most_at_once = max(self.most_at_once, self._open)
            path = request.path.removeprefix(self._path.removesuffix("/v1"))
            question = Question(await request.json(), dict(request.headers), path)
            self.questions = [*self.questions[-999:], question] if self.calls <= 1000 else self.questions
            reply = self.reply(question)
            if reply.delay:
                await asyncio.sleep(reply.delay)
            return await self._send(request, question, reply)
        finally:
            self._open -= 1

    async def _send(self, request: web.Request, question: Question, reply: Reply) -> web.StreamResponse:
        if reply.reset and request.transport:
            request.transport.abort()
        body = completion(question.body, reply) if reply.body is None else reply.body
        headers = {"Content-Type": "application/json", **reply.headers}
        if reply.trickle is None:
            return web.Response(body=body, status=reply.status, headers=headers)
        response = web.StreamResponse(status=reply.status, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        for byte in body:
            await response.write(bytes([byte]))
            await asyncio.sleep(reply.trickle)
        return response


def text_completion(body: Mapping[str, Any], reply: Reply) -> bytes:
    """Word a reply as a text completion, whose log-probabilities are asked for by number."""
    choice: dict[str, Any] = {"index": 0, "text": reply.text, "finish_reason": reply.finish_reason}
    if body.get("logprobs") and reply.tokens is not None:
        likely = [dict(sorted(one.items(), key=lambda item: -item[1])[: body["logprobs"]]) for one in reply.tokens]
        tops = [{token: math.log(p) for token, p in one.items()} for one in likely]
        choice["logprobs"] = {"tokens": [next(iter(one)) for one in tops], "top_logprobs": tops}
    return json.dumps({"id": "c1", "object": "text_completion", "model": body["model"], "choices": [choice]}).encode()


def completion(body: Mapping[str, Any], reply: Reply) -> bytes:
    """Word a reply as a chat completion, or as a text completion where the request has a prompt."""
    if "prompt" in body:
        return text_completion(body, reply)
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.arguments is not None and "tools" not in body:
        message["content"] = json.dumps(reply.arguments)
    elif reply.arguments is not None:
        name = body["tools"][0]["function"]["name"]
        call = {"name": name, "arguments": json.dumps(reply.arguments)}
        message = {**message, "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": call}]}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    if body.get("logprobs") and reply.tokens is not None:
        top = int(body.get("top_logprobs") or 0)
        choice["logprobs"] = {"content": [_position(tokens, top) for tokens in reply.tokens]}
    response = {"id": "c1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
    if reply.usage:
        prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
        answer = len((reply.text or "").split())
        response["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        }
    return json.dumps(response).encode()


def _position(tokens: Mapping[str, float], top: int) -> dict[str, Any]:
    entries = [
        {"token": token, "logprob": math.log(p) if p else -9999.0, "bytes": list(token.encode())}
        for token, p in sorted(tokens.items(), key=lambda item: -item[1])
    ]
    return {**entries[0], "top_logprobs": entries[:top]}


def unreliable(delay: float, failing: float, seed: int = 0) -> Callable[[Question], Reply]:
    """Grade by shared words after a delay; a share of the answers are server errors, at random."""
    chance = random.Random(seed)

    def reply(question: Question) -> Reply:
        if chance.random() < failing:
            return replace(error(503), delay=delay)
        return replace(overlap(question), delay=delay)

    return reply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds until each answer")
    parser.add_argument("--failing", type=float, default=0.0, help="share of answers that are server errors")
    arguments = parser.parse_args()
    server = ChatServer(unreliable(arguments.delay, arguments.failing))

    async def forever() -> None:
        await server._listen(arguments.port)
        print(server.url, flush=True)  # noqa: T201
        await asyncio.Event().wait()

    asyncio.run(forever())


if __name__ == "__main__":
    main()
