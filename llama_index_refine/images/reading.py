"""Images are opened here: only where they may be, only as large as they may be, and made ready to be sent."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from llama_index.core.bridge.pydantic import AnyUrl

from llama_index_refine.images.sources import ImageSource

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats whose decoders read pixels and nothing else: no programs, no links to other files.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
# What models take as it is.
_SENDABLE = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
_LOSSLESS = ("PNG", "GIF", "BMP", "TIFF")
_MOST_BYTES = 2**26
_MOST_PIXELS = 50_000_000
# Providers refuse images above 5 MB, and base64 makes four bytes of three.
_MOST_BYTES_SENT = 3_500_000
_JPEG_QUALITY = 90
_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


class ImageError(Exception):
    """An image cannot be used. The message says why and what to do, without its name or content."""


@dataclass(frozen=True)
class Picture:
    """An image that is ready to be sent.

    :param data: the file's bytes.
    :param mimetype: their format.
    :param width: in pixels, as it is looked at.
    :param height: in pixels.
    """

    data: bytes
    mimetype: str
    width: int
    height: int


class ImageReader:
    """Opens images, within limits.

    :param max_image_pixels: larger images are scaled down to so many pixels, at least 1.
    :param image_folders: files are read in these folders and below, and nowhere else.
    :param anew: write each image anew, so that nothing of its file is left but pixels.
    :raises ValueError: a limit out of its range, or a folder that is none.
    """

    def __init__(self, max_image_pixels: int, image_folders: Sequence[str | Path] = (), anew: bool = False) -> None:
        if max_image_pixels < 1:
            raise ValueError(f"max_image_pixels must be at least 1; got {max_image_pixels}")
        if isinstance(image_folders, (str, Path)):
            raise ValueError(f"image_folders must be a list of folders; got {str(image_folders)!r}")
        self.max_image_pixels = max_image_pixels
        self._anew = anew
        self.image_folders = tuple(Path(folder).resolve() for folder in image_folders)
        for folder in self.image_folders:
            if not folder.is_dir():
                raise ValueError(f"image_folders must name folders that exist; got {str(folder)!r}")

    def read(self, source: ImageSource, anywhere: bool = False) -> Picture | str:
        """Open an image.

        :param source: where it is. Relative paths are looked for in the working directory and in the allowed folders.
        :param anywhere: read its file wherever it is, because the application itself has named it.
        :return: the image, or its URL where it is known by that alone. Nothing is fetched.
        :raises ImageError: it cannot be used.
        """
        if source.data is not None:
            return fitted(source.data, self.max_image_pixels, self._anew)
        if source.path is not None:
            try:
                return fitted(self._file(source.path, anywhere), self.max_image_pixels, self._anew)
            except ImageError:
                if source.url is None:
                    raise
        if source.url is not None:
            return _address(source.url)
        if source.broken:
            raise ImageError("an image is damaged: it is not valid base64")
        raise ImageError(
            "an image was not stored with its node: LlamaIndex stores a Node's image only by its path or URL; an "
            "ImageNode's is stored whole"
        )

    def _file(self, path: Path, anywhere: bool) -> bytes:
        found = self._allowed(path, anywhere)
        try:
            status = found.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("an image's path is not that of a file")
            if status.st_size > _MOST_BYTES:
                raise ImageError(f"an image's file is larger than {_MOST_BYTES // 2**20} MiB")
            # What is a file now may be a pipe in a moment.
            handle = os.open(found, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            with open(handle, "rb") as file:
                return file.read(_MOST_BYTES)
        except FileNotFoundError:
            raise ImageError("an image's file does not exist") from None
        except OSError as error:
            raise ImageError(f"an image's file cannot be read ({type(error).__name__})") from None

    def _allowed(self, path: Path, anywhere: bool) -> Path:
        """Follow a path, links and all, to where it may be read."""
        if not (self.image_folders or anywhere):
            raise ImageError("an image is in a file: name the folders that may be read in the grader's image_folders")
        try:
            if anywhere:
                return path.resolve()
            candidates = [(folder / path).resolve() for folder in (Path.cwd(), *self.image_folders)]
        except (OSError, ValueError, RuntimeError):
            raise ImageError("an image's path is not valid") from None
        inside = [found for found in candidates if any(map(found.is_relative_to, self.image_folders))]
        if not inside:
            raise ImageError("an image's file is outside the folders that the grader's image_folders allow")
        return next((found for found in inside if found.exists()), inside[0])


def _address(url: str) -> str:
    if not url.lower().startswith(("https://", "http://")):
        raise ImageError("an image's address is neither http nor https, and was not sent")
    try:
        return str(AnyUrl(url))
    except ValueError:
        raise ImageError("an image's address is not valid, and was not sent") from None


def pixels_of(data: bytes) -> int:
    """Return how many pixels an image has that has been made ready to be sent."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        return math.prod(image.size)


def fitted(data: bytes, max_pixels: int, anew: bool = False) -> Picture:
    """Make an image ready to be sent.

    :param data: the file's bytes: PNG, JPEG, GIF, BMP, TIFF or WebP.
    :param max_pixels: larger ones are scaled down to so many pixels, at least 1.
    :param anew: write it anew also where it fits.
    :return: the image as it is where it fits, stands upright and does not move; else a PNG or JPEG of its first frame.
    :raises ImageError: it cannot be opened, or is too large to be.
    """
    from PIL import Image

    if len(data) > _MOST_BYTES:
        raise ImageError(f"an image is larger than {_MOST_BYTES // 2**20} MiB")
    data = _without_notes(data)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if math.prod(image.size) > _MOST_PIXELS:
                raise ImageError(f"an image has more than {_MOST_PIXELS // 10**6} megapixels")
            if not anew and _is_ready(image, len(data), max_pixels):
                image.load()
                return Picture(data, _SENDABLE[str(image.format)], *image.size)
            return _encoded(_scaled(image, max_pixels), image.format in _LOSSLESS)
    except ImageError:
        raise
    except Exception as error:
        # Decoders raise whatever they like at what hostile files hold.
        name = type(error).__name__
        raise ImageError(f"an image cannot be opened as PNG, JPEG, GIF, BMP, TIFF or WebP ({name})") from None


def _without_notes(data: bytes) -> bytes:
    """Leave out of a PNG what is no pixels and may be of any length: texts and colour profiles."""
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        after = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _NOTES:
            kept.append(data[at:after])
        at = after
    return b"".join(kept)


def _is_ready(image: Image, size: int, max_pixels: int) -> bool:
    return (
        math.prod(image.size) <= max_pixels
        and size <= _MOST_BYTES_SENT
        and image.format in _SENDABLE
        and not getattr(image, "is_animated", False)
        and image.getexif().get(0x0112, 1) == 1
    )


def _scaled(image: Image, max_pixels: int) -> Image:
    from PIL.Image import Resampling
    from PIL.ImageOps import exif_transpose

    image = image if image.mode in ("L", "RGB", "RGBA") else _in_colours(image)
    width, height = size_within(*image.size, max_pixels)
    if (width, height) != image.size:
        # A JPEG is decoded at a smaller scale at once.
        image.draft(None, (width, height))
        scaled = image.resize((width, height), Resampling.LANCZOS, reducing_gap=2.0)
        # Take along which way is up.
        scaled.getexif()[0x0112] = image.getexif().get(0x0112, 1)
        image = scaled
    return exif_transpose(image)


def _in_colours(image: Image) -> Image:
    from PIL import Image as images

    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        top = float(values.max(initial=1.0)) if image.mode == "F" else 65535.0
        return images.fromarray((255 * np.nan_to_num(values / max(top, 1e-12)).clip(0, 1)).astype(np.uint8))
    transparent = "A" in image.mode or "transparency" in image.info
    return image.convert("RGBA" if transparent else "L" if image.mode == "1" else "RGB")


def size_within(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Scale a size down, in proportion, to at most so many pixels; at least one each way."""
    if width * height <= max_pixels:
        return width, height
    factor = math.sqrt(max_pixels / (width * height))
    short = max(1, int(min(width, height) * factor))
    long = max(1, min(int(max(width, height) * factor), max_pixels // short))
    return (short, long) if width <= height else (long, short)


def _encoded(image: Image, lossless: bool) -> Picture:
    if lossless or image.mode == "RGBA":
        data = _written(image, "PNG")
        if len(data) <= _MOST_BYTES_SENT:
            return Picture(data, "image/png", *image.size)
    return Picture(_written(_on_white(image), "JPEG"), "image/jpeg", *image.size)


def _on_white(image: Image) -> Image:
    from PIL import Image as images

    if image.mode != "RGBA":
        return image
    paper = images.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return paper.convert("RGB")


def _written(image: Image, kind: str) -> bytes:
    written = io.BytesIO()
    # Only the pixels: no place where it was taken, and no profile.
    bare = image.copy()
    bare.info = {}
    bare.save(written, kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {}))
    return written.getvalue()
