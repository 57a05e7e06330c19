"""Where the images of nodes and queries are: in the node itself, in a file or behind a URL.

LlamaIndex's own `get_content_blocks` and `resolve_image` of an `ImageNode` fetch its URL. Nothing here does, and
nothing here opens a file.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes
from urllib.request import url2pathname

from llama_index.core.schema import BaseNode, ImageNode, MetadataMode, Node, QueryBundle, TextNode

# Shorter than any image, and longer than most names of files, which may look like base64.
_SHORTEST_BASE64 = 64
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_OF_URLS = str.maketrans("-_", "+/")
# One letter before a colon is a drive.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{1,19})://|(data):", re.IGNORECASE)


@dataclass(frozen=True)
class ImageSource:
    """Where one image is. Where several are known, the first of them counts that can be used.

    :param data: the image's bytes.
    :param path: the file.
    :param url: the address.
    :param broken: whether the bytes could not be decoded.
    """

    data: bytes | None = None
    path: Path | None = None
    url: str | None = None
    broken: bool = False

    @property
    def lost(self) -> bool:
        """Whether nothing says where it is, as with a `Node` whose image's bytes LlamaIndex did not store."""
        return self.data is None and self.path is None and self.url is None


@dataclass(frozen=True)
class Media:
    """What a node holds beside text.

    :param images: where its images are.
    :param others: the kinds of its other parts: "audio", "video", "document" and whatever else is no text.
    """

    images: tuple[ImageSource, ...] = ()
    others: tuple[str, ...] = ()


def media_of(node: BaseNode) -> Media:
    """Say what a node holds beside text.

    :param node: any node; of a class with content blocks of its own, those are looked at.
    :return: its images and other parts; what such a class fails at is a part of its own.
    """
    blocks = getattr(type(node), "get_content_blocks", None)
    if isinstance(node, ImageNode) and blocks is getattr(ImageNode, "get_content_blocks", None):
        return _of_image_node(node)
    if isinstance(node, Node) and blocks is getattr(Node, "get_content_blocks", None):
        return _of_resources(node)
    if isinstance(node, TextNode) and blocks is getattr(TextNode, "get_content_blocks", None):
        return Media()
    try:
        return _of_blocks(node.get_content_blocks(MetadataMode.NONE)) if blocks else Media()
    except Exception:
        return Media(others=("content that cannot be read",))


def is_inline(node: BaseNode) -> bool:
    """Say whether an image is in the node itself, without decoding it."""
    if isinstance(node, ImageNode):
        return bool(node.image) or (node.image_url or "").startswith("data:")
    return isinstance(node, Node) and node.image_resource is not None and bool(node.image_resource.data)


def image_of(query: QueryBundle) -> ImageSource | None:
    """Say where a query's image is, None where it has none."""
    return locate(query.image_path) if query.image_path else None


def locate(value: str | Path) -> ImageSource:
    """Read what stands for an image in one string: base64, a data URL, a URL or a path.

    :param value: the string.
    :return: where the image is.
    """
    text = str(value).strip()
    match = _SCHEME.match(text)
    if match is None:
        data = _decoded(text) if len(text) >= _SHORTEST_BASE64 else None
        return ImageSource(data=data) if data is not None and data.startswith(_MAGIC) else ImageSource(path=Path(text))
    if match[2]:
        return _of_data_url(text)
    if match[1].lower() == "file":
        return ImageSource(path=Path(url2pathname(f"/{text[match.end() :].partition('/')[2]}")))
    return ImageSource(url=text)


def _of_image_node(node: ImageNode) -> Media:
    if node.image_mimetype and not node.image_mimetype.startswith("image/"):
        return Media(others=(_kind(node.image_mimetype),))
    image = _in_base64(node.image) if node.image else ImageSource()
    path = locate(node.image_path) if node.image_path else ImageSource()
    url = locate(node.image_url) if node.image_url else ImageSource()
    return Media((_first_of(image, path, url),))


def _of_resources(node: Node) -> Media:
    others = [kind for kind in ("audio", "video") if getattr(node, f"{kind}_resource", None) is not None]
    resource = node.image_resource
    if resource is None:
        return Media(others=tuple(others))
    if resource.mimetype and not resource.mimetype.startswith("image/"):
        return Media(others=(_kind(resource.mimetype), *others))
    return Media((_source(resource.data, resource.path, resource.url),), tuple(others))


def _of_blocks(blocks: Sequence[Any]) -> Media:
    kinds = [getattr(block, "block_type", type(block).__name__) for block in blocks]
    images = tuple(
        _source(block.image, block.path, block.url)
        for block, kind in zip(blocks, kinds, strict=True)
        if kind == "image"
    )
    return Media(images, tuple(kind for kind in dict.fromkeys(kinds) if kind not in ("text", "image")))


def _source(data: Any, path: Path | None, url: Any) -> ImageSource:
    """Read the three fields that LlamaIndex's resources and blocks have; it keeps their bytes in base64."""
    if data is not None and not isinstance(data, bytes):
        data.seek(0)
        data = base64.b64encode(data.read())
    image = _in_base64(data.decode("ascii", "replace")) if data else ImageSource()
    return _first_of(image, ImageSource(path=path), locate(str(url)) if url is not None else ImageSource())


def _first_of(*sources: ImageSource) -> ImageSource:
    return ImageSource(
        next((source.data for source in sources if source.data is not None), None),
        next((source.path for source in sources if source.path is not None), None),
        next((source.url for source in sources if source.url is not None), None),
        any(source.broken for source in sources),
    )


def _in_base64(text: str) -> ImageSource:
    if text[:5].lower() == "data:":
        return _of_data_url(text)
    data = _decoded(text)
    return ImageSource(data=data, broken=data is None)


def _of_data_url(url: str) -> ImageSource:
    head, comma, body = url.partition(",")
    if not comma:
        return ImageSource(broken=True)
    data = _decoded(body) if head.lower().endswith(";base64") else unquote_to_bytes(body)
    return ImageSource(data=data, broken=data is None)


def _decoded(text: str) -> bytes | None:
    """Decode base64 as it is found: with line breaks, for URLs, percent-encoded, without its padding."""
    written = "".join(unquote(text).split()).translate(_OF_URLS).rstrip("=")
    try:
        return base64.b64decode(written + "=" * (-len(written) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _kind(mimetype: str) -> str:
    """Name what is not an image after its media type: `application/pdf` is a document."""
    kind = mimetype.partition("/")[0].lower()
    return kind if kind in ("audio", "video") else "document"
