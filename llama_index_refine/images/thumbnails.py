"""Small images for pages that show nodes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from llama_index.core.schema import BaseNode

from llama_index_refine.images.reading import ImageError, ImageReader, Picture
from llama_index_refine.images.sources import ImageSource, locate, media_of

_PIXELS = 96 * 96
_STYLE = "max-width: 6em; max-height: 6em; vertical-align: top; margin: 0 0.6em 0 0; border-radius: 3px;"

# Pictures of a few pixels are drawn larger, pixel by pixel.
_SMALLEST = 32
_TINY = "width: 3em; image-rendering: pixelated;"


class Thumbnails:
    """Draws thumbnails as HTML that loads nothing: an image behind a URL has none, nor has one that cannot be opened.

    :param image_folders: images in files are read in these folders and below; what is there no more is left out.
    :param limit: the most thumbnails.
    """

    def __init__(self, image_folders: Sequence[str | Path] = (), limit: int = 100) -> None:
        folders = [folder for folder in image_folders if Path(folder).is_dir()]
        self._reader = ImageReader(_PIXELS, folders, anew=True)
        self._left = limit
        self._drawn: dict[str, str] = {}

    def of_node(self, node: BaseNode) -> str:
        """Draw a node's images, once however often it is shown; empty where it has none to show."""
        if node.node_id not in self._drawn:
            images = [self._image(source) for source in media_of(node).images]
            self._drawn[node.node_id] = "".join(images)
        return self._drawn[node.node_id]

    def of_path(self, path: str | None) -> str:
        """Draw a query's image, which is read wherever the application says it is."""
        return self._image(locate(path), anywhere=True) if path else ""

    def _image(self, source: ImageSource, anywhere: bool = False) -> str:
        if self._left < 1:
            return ""
        try:
            image = self._reader.read(source, anywhere)
        except ImageError:
            return ""
        if not isinstance(image, Picture):
            return ""
        self._left -= 1
        url = f"data:{image.mimetype};base64,{b64encode(image.data).decode()}"
        style = f"{_STYLE} {_TINY}" if max(image.width, image.height) < _SMALLEST else _STYLE
        return f'<img src="{escape(url)}" alt="" style="{style}">'
