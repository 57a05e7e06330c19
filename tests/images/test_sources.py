"""Where images are, in every form that LlamaIndex and plain payloads have."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.base.llms.types import DocumentBlock, ImageBlock, TextBlock
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    QueryBundle,
    TextNode,
)

from llama_index_refine.images.sources import ImageSource, Media, image_of, is_inline, locate, media_of
from tests.images.pictures import base64_of, picture

DATA = picture()
BASE64 = base64_of(DATA)
URL = "https://pictures.example/cat.png"


@pytest.mark.parametrize(
    ("node", "source"),
    [
        (ImageNode(image=BASE64), ImageSource(DATA)),
        (ImageNode(image=f"data:image/png;base64,{BASE64}"), ImageSource(DATA)),
        (ImageNode(image_path="/a/cat.png"), ImageSource(path=Path("/a/cat.png"))),
        (ImageNode(image_url=URL), ImageSource(url=URL)),
        (ImageNode(image_url=f"data:image/png;base64,{BASE64}"), ImageSource(DATA)),
        (ImageNode(image_url="file:///a/my%20cat.png"), ImageSource(path=Path("/a/my cat.png"))),
        (ImageNode(image_path="/a/cat.png", image_url=URL), ImageSource(path=Path("/a/cat.png"), url=URL)),
        (ImageNode(image="no base64!"), ImageSource(broken=True)),
        (ImageNode(), ImageSource()),
        (Node(image_resource=MediaResource(data=DATA)), ImageSource(DATA)),
        (Node(image_resource=MediaResource(path=Path("/a/cat.png"))), ImageSource(path=Path("/a/cat.png"))),
        (Node(image_resource=MediaResource(url=URL)), ImageSource(url=URL)),
        (Node(image_resource=MediaResource(mimetype="image/png")), ImageSource()),
        (ImageDocument(image=BASE64), ImageSource(DATA)),
    ],
)
def test_an_image_is_found_in_every_kind_of_node(node, source):
    assert media_of(node) == Media((source,))
    assert is_inline(node) == (source.data is not None or source.broken)


@pytest.mark.parametrize("node", [TextNode(text="a"), Document(text="a"), IndexNode(text="a", index_id="b")])
def test_texts_hold_nothing_else(node):
    assert media_of(node) == Media()
    assert not is_inline(node)


@pytest.mark.parametrize(
    ("node", "others"),
    [
        (Node(audio_resource=MediaResource(data=b"sound")), ("audio",)),
        (Node(video_resource=MediaResource(path=Path("film.mp4"))), ("video",)),
        (Node(image_resource=MediaResource(data=b"%PDF-1.7", mimetype="application/pdf")), ("document",)),
        (ImageNode(image_path="paper.pdf"), ("document",)),
        (ImageNode(image=BASE64, image_mimetype="video/mp4"), ("video",)),
    ],
)
def test_what_is_no_image_is_named(node, others):
    assert media_of(node) == Media(others=others)


class Slide(TextNode):
    """A node with blocks of its own."""

    def get_content_blocks(self, *args: object, **kwargs: object) -> list:
        return [TextBlock(text=self.text), ImageBlock(image=DATA), ImageBlock(url=URL), DocumentBlock(data=b"%PDF")]


def test_blocks_of_other_classes_are_looked_at():
    assert media_of(Slide(text="a")) == Media((ImageSource(DATA), ImageSource(url=URL)), ("document",))


class Broken(TextNode):
    """A node that cannot say what it holds."""

    def get_content_blocks(self, *args: object, **kwargs: object) -> list:
        raise OSError


def test_a_class_that_fails_holds_what_cannot_be_read():
    assert media_of(Broken(text="a")) == Media(others=("content that cannot be read",))


def test_the_query_has_one_image_or_none():
    assert image_of(QueryBundle("a")) is None
    assert image_of(QueryBundle("a", image_path="b.png")) == ImageSource(path=Path("b.png"))
    assert image_of(QueryBundle("", image_path=URL)) == ImageSource(url=URL)


@pytest.mark.parametrize(
    ("value", "source"),
    [
        (BASE64, ImageSource(DATA)),
        (f"data:image/png;base64,{BASE64}", ImageSource(DATA)),
        ("data:image/svg+xml,%3Csvg%2F%3E", ImageSource(b"<svg/>")),
        ("data:image/png", ImageSource(broken=True)),
        ("cats/1.png", ImageSource(path=Path("cats/1.png"))),
        ("C:\\cats\\1.png", ImageSource(path=Path("C:\\cats\\1.png"))),
        ("http://[::1", ImageSource(url="http://[::1")),
        ("a" * 64, ImageSource(path=Path("a" * 64))),
    ],
)
def test_one_string_may_stand_for_an_image_in_four_ways(value, source):
    assert locate(value) == source


@given(st.text(max_size=200))
def test_any_string_stands_for_something(text):
    found = locate(text)
    assert sum((found.data is not None, found.path is not None, found.url is not None, found.broken)) == 1


@given(st.binary(min_size=1, max_size=200))
def test_bytes_come_back_from_base64(data):
    assert media_of(ImageNode(image=base64.b64encode(data).decode())).images[0].data == data


LONG = picture(size=(40, 40))


@pytest.mark.parametrize(
    "written",
    [
        base64.b64encode(LONG).decode().rstrip("="),
        base64.urlsafe_b64encode(LONG).decode(),
        base64.urlsafe_b64encode(LONG).decode().rstrip("="),
        "\n".join(base64.encodebytes(LONG).decode().split()),
        quote(base64.b64encode(LONG).decode(), safe=""),
    ],
    ids=["no padding", "for URLs", "for URLs, no padding", "lines", "percent-encoded"],
)
def test_base64_is_read_as_it_is_found(written):
    source = ImageSource(LONG)
    assert locate(f"data:image/png;base64,{written}") == source
    assert media_of(ImageNode(image=written)).images == (source,)
    assert media_of(ImageNode(image_url=f"data:image/png;base64,{written}")).images == (source,)


@pytest.mark.parametrize("broken", ["????", "a", "data:image/png;base64,%zz"])
def test_what_is_no_base64_is_broken(broken):
    (source,) = media_of(ImageNode(image=broken)).images
    assert source.broken
