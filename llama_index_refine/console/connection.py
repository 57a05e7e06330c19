"""The user's Qdrant, with errors that say what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse


def connect(url: str, api_key: str | None, path: Path | None, collection: str) -> QdrantClient:
    """Connect, and see that the collection is there.

    :param url: the server's address.
    :param api_key: its key.
    :param path: a folder of a local Qdrant, instead of a server.
    :param collection: the collection.
    :return: the client.
    :raises ValueError: there is no such folder or collection.
    :raises ConnectionError: the server cannot be reached, or refused the key.
    """
    if path is not None:
        if not path.is_dir():
            raise ValueError(f"--path {path} is no folder; `demo --path {path}` would make one with a sample")
        client = QdrantClient(path=str(path))
    else:
        client = QdrantClient(url=url, api_key=api_key, check_compatibility=False)
    with plain_qdrant_errors(url):
        there = sorted(each.name for each in client.get_collections().collections)
    if collection not in there:
        raise ValueError(f"there is no collection {collection!r}; there are {', '.join(map(repr, there)) or 'none'}")
    return client


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
