"""What tells one node, or one query, from another for a teacher: their content."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any
from unicodedata import normalize

from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle

from llama_index_refine.images.sources import ImageSource, image_of, media_of

# A larger file is told by its size and time.
_LARGEST_READ = 2**26


def identity_of(query: QueryBundle, node: BaseNode) -> list[str]:
    """Say what decides how relevant a node is to a query: their texts, the node's metadata, and the images of both.

    :param query: the query.
    :param node: the node.
    :return: strings that differ where the content does. The same image counts as the same wherever it is kept; one
        behind a URL is told by the URL. Files are read to tell their content, and nothing is fetched.
    """
    media, image = media_of(node), image_of(query)
    # Over gRPC fields of a payload come in another order each time.
    node = node.model_copy(update={"metadata": _in_order(node.metadata)})
    # One text may be written in several ways.
    identity = [normalize("NFC", text) for text in (query.query_str, node.get_content(MetadataMode.ALL))]
    if not (media.images or media.others or image):
        return identity
    # A node without text says nothing of its metadata either.
    identity.append(node.get_metadata_str(MetadataMode.ALL))
    identity.append(_identity(image) if image else "")
    for source in media.images:
        unknown = source.lost or (source.broken and source.path is None and source.url is None)
        identity.append(f"node {node.node_id}" if unknown else _identity(source))
    return [*identity, *([f"other {node.hash}"] if media.others else [])]


def query_identity(query: QueryBundle) -> str:
    """Say what sets a query's image apart: empty where it has none."""
    image = image_of(query)
    return _identity(image) if image else ""


def _in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value, key=str)}
    return [_in_order(each) for each in value] if isinstance(value, list) else value


def _identity(image: ImageSource) -> str:
    if image.data is not None:
        return f"image {hashlib.sha256(image.data).hexdigest()}"
    if image.path is not None and (content := _content(image.path)):
        return f"image {content}"
    return f"path {image.path} url {image.url}"


def _content(path: Path) -> str | None:
    """Tell a file's content, None where there is no such file; pipes and devices are not touched."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > _LARGEST_READ:
            return f"{path} {status.st_size} {status.st_mtime_ns}"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None
