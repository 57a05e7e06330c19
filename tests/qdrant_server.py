"""Qdrant's REST interface on loopback, in front of qdrant-client's local mode, with faults on demand.

Requests and answers go over real sockets in Qdrant's own format, so that the real client meets them.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic_core import to_json
from qdrant_client import QdrantClient, models

from tests.faults import Calls, Fault

CALLS = {
    "describe": r"GET /collections/([^/]+)",
    "exists": r"GET /collections/([^/]+)/exists",
    "query": r"POST /collections/([^/]+)/points/query/batch",
    "single": r"POST /collections/([^/]+)/points/query",
    "count": r"POST /collections/([^/]+)/points/count",
    "retrieve": r"POST /collections/([^/]+)/points",
}


class QdrantServer(Calls):
    """A server whose collections are those of `storage`. `encodings` has each request's Accept-Encoding."""

    def __init__(self) -> None:
        super().__init__()
        self.encodings: list[str] = []
        self.consistencies: list[tuple[str, str | None]] = []
        self.storage = QdrantClient(":memory:")
        self._lock = threading.RLock()
        self._closing = threading.Event()
        handler = type("Handler", (_Handler,), {"app": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> QdrantServer:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def stop_listening(self) -> None:
        """Take no more connections; from within an answer, so the server's own thread is not waited for."""
        self._http.socket.close()

    def answer(self, kind: str, collection: str, body: bytes, timeout: int | None) -> tuple[int, bytes, Fault]:
        with self._lock:
            fault = self.fault(kind, json.loads(body) if body else None)
            if fault.status:
                told = json.dumps({"status": {"error": fault.said}, "time": 0}).encode()
                return fault.status, told if fault.raw is None else fault.raw, fault
            try:
                result = self._result(kind, collection, body, timeout)
            except BlockingIOError as error:
                told = json.dumps({"status": {"error": str(error)}, "time": 0}).encode()
                return 429, told, Fault(headers={"Retry-After": str(self.strict.retry_after if self.strict else 1)})
            except ValueError as error:
                status = 404 if str(error).startswith("Collection") else 400
                return status, json.dumps({"status": {"error": str(error)}, "time": 0}).encode(), fault
            return 200, to_json({"result": result, "status": "ok", "time": 0.001}), fault

    def wait_silently(self) -> None:
        self._closing.wait(30)

    def _result(self, kind: str, name: str, body: bytes, timeout: int | None) -> Any:
        if kind == "exists":
            return {"exists": self.storage.collection_exists(name)}
        if kind == "describe":
            info = self.storage.get_collection(name)
            return self.strict.described(info) if self.strict else info
        if kind == "query":
            batch = models.QueryRequestBatch.model_validate_json(body)
            self.keep_to_limits(batch.searches, timeout)
            return self.storage.query_batch_points(name, batch.searches)
        if kind == "single":
            query = models.QueryRequest.model_validate_json(body)
            return self.storage.query_batch_points(name, [query])[0]
        if kind == "retrieve":
            points = models.PointRequest.model_validate_json(body)
            return self.storage.retrieve(name, points.ids, bool(points.with_payload), points.with_vector or False)
        self.keep_to_limits([], timeout)
        wanted = models.CountRequest.model_validate_json(body)
        return {"count": self.storage.count(name, wanted.filter, exact=bool(wanted.exact)).count}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    app: QdrantServer

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.app.encodings.append(self.headers.get("Accept-Encoding", ""))
        address = urlsplit(self.path)
        line = f"{self.command} {address.path}"
        timeout = [int(seconds) for seconds in parse_qs(address.query).get("timeout", [])]
        for kind, pattern in CALLS.items():
            match = re.fullmatch(pattern, line)
            if match:
                self.app.consistencies.append((kind, *(parse_qs(address.query).get("consistency") or [None])))
                status, content, fault = self.app.answer(kind, match[1], body, *timeout or [None])
                break
        else:
            status, content, fault = 404, b'{"status": {"error": "unknown call"}}', Fault()
        if fault.silent:
            self.app.wait_silently()
            self.close_connection = True
            return
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault.half else content)
        if fault.half:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass
