"""The user's Qdrant, with errors that say what to change."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse


def address(url: str) -> str:
    """Say where a Qdrant server is asked.

    :param url: its address. Without a port it is that of the scheme where a path says that a proxy is in front, as in
        https://host/qdrant, and else Qdrant's own.
    :return: the address with scheme and port.
    :raises ValueError: it is none.
    """
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"--url {url} is not an address: {error}") from error
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError(f"--url {url} is not an address; write it as in http://localhost:6333 or https://host/qdrant")
    if port is None:
        port = (443 if parts.scheme == "https" else 80) if parts.path.strip("/") else 6333
    host = f"[{host}]" if ":" in host else host
    return SplitResult(parts.scheme, f"{host}:{port}", parts.path, "", "").geturl()


def connect(url: str, api_key: str | None, path: Path | None) -> QdrantClient:
    """Open a client.

    :param url: the server's address.
    :param api_key: its key.
    :param path: a folder of a local Qdrant, instead of a server.
    :return: the client.
    :raises ValueError: there is no such folder.
    :raises RuntimeError: another process has opened the folder.
    """
    if path is None:
        return QdrantClient(url=address(url), api_key=api_key, check_compatibility=False)
    if not path.is_dir():
        raise ValueError(
            f"--path {path} is not a folder; `llama-index-refine demo --path {path}` makes one with a sample"
        )
    return QdrantClient(path=str(path))


def check_collection(client: QdrantClient, collection: str) -> None:
    """See that a collection is there.

    :param client: where to look.
    :param collection: its name.
    :raises ValueError: it is not; the message lists those that are.
    """
    if not client.collection_exists(collection):
        there = sorted(each.name for each in client.get_collections().collections)
        raise ValueError(f"there is no collection {collection!r}; there are {', '.join(map(repr, there)) or 'none'}")


@contextmanager
def plain_qdrant_errors(url: str) -> Iterator[None]:
    """Turn the client's errors into one of a line.

    :param url: the server's address.
    :raises ConnectionError: instead of the client's error.
    """
    try:
        yield
    except UnexpectedResponse as error:
        advice = "set QDRANT_API_KEY" if error.status_code in (401, 403) else "is it a Qdrant server?"
        raise ConnectionError(f"{address(url)} answered {error.status_code} {error.reason_phrase}: {advice}") from error
    except ApiException as error:
        raise ConnectionError(_no_answer(address(url), error)) from error


def _no_answer(asked: str, error: BaseException) -> str:
    cause = error.source if isinstance(error, ResponseHandlingException) else error
    while cause.__cause__ is not None or cause.__context__ is not None:
        if isinstance(cause, ssl.SSLError):
            break
        cause = cause.__cause__ or cause.__context__ or cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {asked} is not trusted ({cause.verify_message}): set SSL_CERT_FILE to a file with the "
            "certificate that signed it, or with itself where it is self-signed"
        )
    if isinstance(cause, ssl.SSLError):
        return f"{asked} does not speak TLS ({cause.reason}): is it http:// or another port?"
    return f"no Qdrant server answers at {asked}: start it, or set --url with the port that it listens on"
