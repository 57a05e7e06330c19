"""Thumbnails: escaped, small, of what may be read, and loaded from nowhere."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import pytest
from llama_index.core.schema import ImageNode, MediaResource, Node, NodeWithScore, QueryBundle, TextNode
from PIL import Image

from llama_index_refine import RefinedRetriever
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.ensembles import AverageGrader
from llama_index_refine.graders.openai import OpenAIGrader
from llama_index_refine.images.thumbnails import Thumbnails
from llama_index_refine.ui import cards
from llama_index_refine.ui.comparison import Playground, Settings
from tests.display.test_display import HOSTILE, read
from tests.images.pictures import BLUE, RED, base64_of, picture, save
from tests.images.small_pictures import PICTURES, PixelEmbedding, same_square
from tests.images.test_retrieving import red, store  # noqa: F401
from tests.small_index import SubjectGrader

SOURCE = re.compile(r'<img src="data:(image/\w+);base64,([A-Za-z0-9+/=]+)"')


def pictures(html: str) -> list[Image.Image]:
    found = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in SOURCE.findall(html)]
    assert len(found) == html.count("<img")
    return found


def showing(refinement, nodes, **changes):
    entries = [NodeWithScore(node=node, score=0.5) for node in nodes]
    return replace(refinement, nodes=entries, nodes_before=entries, **changes)


def test_a_notebook_shows_the_nodes_and_the_querys_picture(refinement, tmp_path):
    nodes = [
        ImageNode(image=base64_of(picture(RED, (500, 400))), text="a caption"),
        Node(image_resource=MediaResource(data=picture(BLUE))),
        TextNode(text="a text"),
    ]
    query = str(save(tmp_path, "query.png", picture(size=(300, 300))))
    html = showing(refinement, nodes, image_path=query)._repr_html_()
    found = pictures(html)
    assert [image.size for image in found] == [(96, 96), (107, 85), (8, 8)]
    assert "a caption" in html
    # An image is a tag without an end.
    assert read(re.sub(r"<img[^>]*>", "", html)).open == []


def test_thumbnails_are_small_whatever_they_were(refinement):
    noise = Image.effect_noise((900, 900), 90).convert("RGB")
    written = io.BytesIO()
    noise.save(written, "PNG", pnginfo=None)
    html = showing(refinement, [ImageNode(image=base64_of(written.getvalue()))])._repr_html_()
    assert len(written.getvalue()) > 500_000
    assert len(html) < 60_000


def test_nothing_of_a_file_but_its_pixels_is_shown():
    hidden = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "<script>alert(1)</script>"
    Image.new("RGB", (8, 8)).save(hidden, "JPEG", exif=exif, comment=b"secret comment")
    html = Thumbnails().of_node(ImageNode(image=base64_of(hidden.getvalue())))
    (data,) = (base64.b64decode(data) for _, data in SOURCE.findall(html))
    assert b"secret" not in data
    assert b"script" not in data


@pytest.mark.parametrize(
    "node",
    [
        ImageNode(id_="node-1", image_url="https://a.example/1.png"),
        ImageNode(id_="node-1", image_url="javascript:alert(1)"),
        ImageNode(id_="node-1", image_path="/etc/hostname"),
        ImageNode(id_="node-1", image=base64_of(b"<svg onload='alert(1)'/>")),
        ImageNode(id_="node-1", image_url='"><script>alert(1)</script>'),
        ImageNode(id_="node-1", image_url=f'https://a.example/"><img src=x onerror=alert(1)>{HOSTILE}'),
    ],
)
def test_what_may_not_be_shown_is_named_and_not_loaded(refinement, node):
    html = showing(refinement, [node])._repr_html_()
    assert "<img" not in html
    assert "<script" not in html
    assert "a.example" in html or "node-1" in html
    assert not {"src", "onload", "onerror", "href"} & read(html).attributes


def test_files_are_shown_where_the_teacher_may_read_them(refinement, tmp_path):
    path = save(tmp_path / "pictures", "red.png", picture())
    nodes = [ImageNode(image_path=str(path))]
    assert pictures(showing(refinement, nodes)._repr_html_()) == []
    shown = showing(refinement, nodes, image_folders=[tmp_path / "pictures", tmp_path / "gone"])
    assert len(pictures(shown._repr_html_())) == 1


def test_a_page_has_so_many_pictures_and_no_more(refinement):
    nodes = [ImageNode(image=base64_of(picture((at, 0, 0)))) for at in range(120)]
    assert len(pictures(showing(refinement, nodes)._repr_html_())) == 100


def test_folders_go_from_the_teachers_to_the_refinement(tmp_path, chat_server, store, red):  # noqa: F811
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    teachers = [OpenAIGrader("m", chat_server.url, "key", image_folders=[folder]) for folder in folders]
    grader = CachedGrader(AverageGrader(teachers))
    assert grader.image_folders == [folder.resolve() for folder in folders]
    retriever = RefinedRetriever(store, PixelEmbedding(), grader)
    assert retriever.refine(QueryBundle("", image_path=red)).image_folders == grader.image_folders
    assert SubjectGrader().image_folders == ()


def test_the_playground_shows_each_picture_in_its_lists(chat_server, store):  # noqa: F811
    chat_server.reply = same_square
    grader = OpenAIGrader("m", chat_server.url, "key")
    retriever = RefinedRetriever(store, PixelEmbedding(), grader, similarity_top_k=5, feedback_top_k=8, rounds=1)
    found = Playground(retriever, {"sees": grader}).compare("red", Settings("sees", 8, 1, 5))
    html = cards.page(found, 8, "sees")
    assert len(pictures(html)) == 15
    assert len(PICTURES) > 15
