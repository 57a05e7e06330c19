"""The user's Qdrant, with errors that say what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse


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
        return QdrantClient(url=url, api_key=api_key, check_compatibility=False)
    if not path.is_dir():
        raise ValueError(f"--path {path} is no folder; `llama-index-refine demo --path {path}` makes one with a sample")
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
        raise ConnectionError(f"{url} answered {error.status_code} {error.reason_phrase}: {advice}") from error
    except ApiException as error:
        raise ConnectionError(f"no Qdrant server answers at {url}: start it, or set --url") from error
