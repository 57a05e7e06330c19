"""What the documentation's code talks to instead of the internet: chat, embeddings and a reranker.

Chat and reranker are those of `tests.chat_server`. Embeddings are made from the texts' words, so that related texts are
near each other.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.chat_server import Question, completion, overlap, rerank
from tests.small_index import WordEmbedding

_EMBED = WordEmbedding()


class Handler(BaseHTTPRequestHandler):
    """Answers `/v1/chat/completions`, `/v1/embeddings` and `/v1/rerank`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/chat/completions"):
            self._send(completion(body, overlap(Question(body, dict(self.headers)))))
        elif self.path.endswith("/rerank"):
            self._send(rerank(body))
        elif self.path.endswith("/embeddings"):
            self._send(json.dumps(_embeddings(body)).encode())
        else:
            self.send_error(404)

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [
        {"object": "embedding", "index": at, "embedding": _EMBED.get_text_embedding(text)}
        for at, text in enumerate(texts)
    ]
    return {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 1, "total_tokens": 1}}


class DocsServer:
    """The server, in a thread. `url` ends in /v1."""

    def __enter__(self) -> DocsServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
