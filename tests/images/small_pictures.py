"""A small collection of pictures: a square of one colour on a ground of another, embedded by their pixels.

A picture's neighbours have its ground, which is larger; only the teacher knows that the square is meant.
"""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.schema import ImageNode
from PIL import Image

from tests.chat_server import Question, Reply, yes
from tests.images.pictures import base64_of
from tests.small_index import node_id

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 70, 210),
    "yellow": (230, 210, 50),
    "purple": (140, 50, 160),
    "grey": (120, 120, 120),
}
SIZE = 8
PICTURES = [(square, ground, shade) for square, ground in product(COLOURS, COLOURS) for shade in (0, 25)]


def draw(square: str, ground: str, shade: int = 0) -> bytes:
    pixels = np.full((SIZE, SIZE, 3), COLOURS[ground], np.int16)
    pixels[3:6, 3:6] = COLOURS[square]
    written = io.BytesIO()
    Image.fromarray((pixels - shade).clip(0, 255).astype(np.uint8)).save(written, "PNG")
    return written.getvalue()


def name_of(square: str, ground: str, shade: int) -> str:
    return node_id(f"{square} on {ground} {shade}")


def image_nodes(text: str = "", **fields: Any) -> list[ImageNode]:
    """The pictures as LlamaIndex keeps them; the label is for tests, and no teacher sees it."""
    return [
        ImageNode(
            id_=name_of(*picture),
            image=base64_of(draw(*picture)),
            text=text,
            metadata={"square": picture[0], "shelf": 1},
            excluded_llm_metadata_keys=["square"],
            **fields,
        )
        for picture in PICTURES
    ]


def squares(nodes: Any) -> list[str]:
    return [entry.node.metadata["square"] for entry in nodes]


def vector_of(data: bytes) -> list[float]:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64)
    return (pixels / 255 - 0.5).ravel().tolist()


class PixelEmbedding(MultiModalEmbedding):
    """An image's pixels; of a text, a ground of the colour that it names."""

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        data = img_file_path.read() if hasattr(img_file_path, "read") else Path(img_file_path).read_bytes()
        return vector_of(data)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)

    def _get_text_embedding(self, text: str) -> list[float]:
        named = next((colour for colour in COLOURS if colour in text), "grey")
        return vector_of(draw(named, named))

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def square_of(url: str) -> tuple[int, ...]:
    """What a model sees in a data URL: the colour in the middle."""
    import base64

    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    return image.getpixel((image.width // 2, image.height // 2))


def same_square(question: Question) -> Reply:
    """A vision model: yes where the last picture's square is like the first's."""
    wanted, shown = (np.array(square_of(url), dtype=int) for url in (question.images[0], question.images[-1]))
    return yes(0.95 if np.abs(wanted - shown).max() < 40 else 0.05)
