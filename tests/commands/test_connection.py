"""Which Qdrant is asked, and what is said of one that does not answer."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from llama_index_refine.commands.connection import address, connect, plain_qdrant_errors


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://localhost:6333", "http://localhost:6333"),
        ("http://localhost", "http://localhost:6333"),
        ("localhost", "http://localhost:6333"),
        ("localhost:7000", "http://localhost:7000"),
        ("https://abc.cloud.example", "https://abc.cloud.example:6333"),
        ("https://host.example/", "https://host.example:6333/"),
        ("https://host.example/qdrant", "https://host.example:443/qdrant"),
        ("http://host.example/a/b", "http://host.example:80/a/b"),
        ("https://host.example:6333/qdrant", "https://host.example:6333/qdrant"),
        ("http://[::1]/qdrant", "http://[::1]:80/qdrant"),
    ],
)
def test_the_address_names_the_port(url: str, asked: str):
    assert address(url) == asked


def test_the_client_asks_there():
    client: QdrantClient = connect("https://host.example/qdrant", None, None)
    assert client._client.rest_uri == "https://host.example:443/qdrant"
    client.close()


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://host:99999", ""])
def test_what_is_no_address_is_told(url: str):
    with pytest.raises(ValueError, match="--url"):
        address(url)


def message(url: str) -> str:
    with closing(connect(url, None, None)) as client:
        with pytest.raises(ConnectionError) as caught, plain_qdrant_errors(url):
            client.get_collections()
        return str(caught.value)


def test_the_port_that_was_asked_is_named():
    assert "no Qdrant server answers at http://127.0.0.3:80/qdrant" in message("http://127.0.0.3/qdrant")


class Quiet(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def plain_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_without_tls_is_told_from_none(plain_server: str):
    assert f"https://{plain_server} does not speak TLS" in message(f"https://{plain_server}")
    assert f"http://{plain_server} answered 503" in message(f"http://{plain_server}")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_self_signed_certificate_says_how_to_trust_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    named = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *named], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Quiet)
    server.handle_error = lambda *args: None  # the client breaks off, as it should
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{server.server_address[1]}"
    try:
        refused = message(url)
        assert f"the certificate of {url} is not trusted (self-signed certificate)" in refused
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "answered 503" in message(url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
