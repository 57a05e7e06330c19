"""Small pictures, and nodes of every kind that holds one."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

RED, BLUE, GREEN = (200, 30, 30), (30, 60, 200), (30, 160, 60)


def picture(
    colour: tuple[int, ...] = RED, size: tuple[int, int] = (8, 8), kind: str = "PNG", **options: object
) -> bytes:
    """The bytes of a picture of one colour."""
    written = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(written, kind, **options)
    return written.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def save(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    return path
