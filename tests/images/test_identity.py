"""Nodes and queries are told apart by what they show, and not by what stands around it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from llama_index.core.schema import ImageNode, MediaResource, Node, QueryBundle, TextNode

from llama_index_refine.evaluation.cache import Answers, ReplayingGrader
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.images.identity import identity_of
from tests.images.pictures import BLUE, RED, base64_of, picture, save

QUERY = QueryBundle("red things")
URL = "https://pictures.example/{}.png"


class Counting(BaseGrader):
    """Gives each node that it is asked about another grade."""

    def __init__(self) -> None:
        self.asked = 0

    def grade(self, query, nodes):
        self.asked += len(nodes)
        return [(self.asked - at) / 100 for at in range(len(nodes))]


def nodes(first: bytes, second: bytes, folder: Path) -> dict[str, list]:
    """Two nodes with equal metadata and without text, in every way to keep an image."""
    paths = [save(folder, name, data) for name, data in (("1.png", first), ("2.png", second))]
    return {
        "base64": [ImageNode(image=base64_of(data)) for data in (first, second)],
        "path": [ImageNode(image_path=str(path)) for path in paths],
        "url": [ImageNode(image_url=URL.format(name)) for name in "ab"],
        "resource": [Node(image_resource=MediaResource(data=data)) for data in (first, second)],
        "resource path": [Node(image_resource=MediaResource(path=path)) for path in paths],
        "audio": [Node(audio_resource=MediaResource(data=name.encode() * 9)) for name in "ab"],
        "lost": [Node(image_resource=MediaResource(mimetype="image/png")) for _ in "ab"],
        "broken": [ImageNode(image="no base64!") for _ in "ab"],
        "metadata": [Node(image_resource=MediaResource(data=first), metadata={"page": page}) for page in (1, 2)],
    }


KINDS = ["base64", "path", "url", "resource", "resource path", "audio", "lost", "broken", "metadata"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_images_with_equal_metadata_have_grades_of_their_own(kind, tmp_path):
    pair = nodes(picture(RED), picture(BLUE), tmp_path)[kind]
    teacher = Counting()
    cached = CachedGrader(teacher)
    first, second = cached.grade(QUERY, pair)
    assert first != second
    assert cached.grade(QUERY, pair) == [first, second]
    assert teacher.asked == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_benchmark_keeps_them_apart_too(kind, tmp_path):
    pair = nodes(picture(RED), picture(BLUE), tmp_path)[kind]
    teacher = Counting()
    replaying = ReplayingGrader(teacher, Answers(tmp_path / "answers.sqlite"))
    first, second = replaying.grade(QUERY, pair)
    assert first != second
    assert replaying.grade(QUERY, pair) == [first, second]


def test_the_same_image_is_asked_about_once_wherever_it_is_kept(tmp_path):
    data = picture(RED)
    path = save(tmp_path, "red.png", data)
    teacher = Counting()
    kept = [
        ImageNode(image=base64_of(data)),
        ImageNode(image_path=str(path)),
        Node(image_resource=MediaResource(data=data)),
    ]
    assert len(set(CachedGrader(teacher).grade(QUERY, kept))) == 1
    assert teacher.asked == 1


async def test_another_picture_under_the_same_name_is_another_image(tmp_path):
    path = save(tmp_path, "it.png", picture(RED))
    cached = CachedGrader(Counting())
    (first,) = await cached.agrade(QUERY, [ImageNode(image_path=str(path))])
    before = path.stat()
    save(tmp_path, "it.png", picture(BLUE))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (second,) = await cached.agrade(QUERY, [ImageNode(image_path=str(path))])
    assert first != second


def test_the_querys_image_and_text_count(tmp_path):
    red, blue = (str(save(tmp_path, name, picture(colour))) for name, colour in (("r.png", RED), ("b.png", BLUE)))
    teacher = Counting()
    cached = CachedGrader(teacher)
    queries = [
        QueryBundle("shoes"),
        QueryBundle("shoes", image_path=red),
        QueryBundle("shoes", image_path=blue),
        QueryBundle("", image_path=red),
        QueryBundle("", image_path=blue),
    ]
    grades = [cached.grade(query, [TextNode(text="a shoe")])[0] for query in queries * 2]
    assert len(set(grades)) == teacher.asked == 5


def test_a_caption_counts():
    image = base64_of(picture())
    assert identity_of(QUERY, ImageNode(image=image, text="a")) != identity_of(QUERY, ImageNode(image=image, text="b"))


def test_texts_are_told_by_text_and_metadata_alone():
    node = TextNode(text="a", metadata={"page": 1})
    assert identity_of(QUERY, node) == ["red things", "page: 1\n\na"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "", "nothing.png", "nul\0l"):
        node = ImageNode(image=None, image_url=str(tmp_path / name))
        assert identity_of(QUERY, node)[-1].startswith("path ")


def test_large_files_are_told_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr("llama_index_refine.images.identity._LARGEST_READ", 10)
    path = save(tmp_path, "large.png", picture())
    first = identity_of(QUERY, ImageNode(image_path=str(path)))
    os.utime(path, ns=(1, 1))
    assert identity_of(QUERY, ImageNode(image_path=str(path))) != first


def test_people_judge_queries_with_images_one_by_one(tmp_path):
    red, blue = (str(save(tmp_path, name, picture(colour))) for name, colour in (("r.png", RED), ("b.png", BLUE)))
    grader = FeedbackGrader({"shoes": {"1": 0.5}})
    grader.judge(QueryBundle("", image_path=red), "1", 1.0)
    grader.judge(QueryBundle("", image_path=blue), "1", 0.0)
    node = TextNode(id_="1", text="a")
    queries = [QueryBundle("", image_path=red), QueryBundle("", image_path=blue), QueryBundle("Shoes"), QueryBundle("")]
    assert [grader.grade(query, [node])[0] for query in queries] == [1.0, 0.0, 0.5, None]
    assert grader.judged(queries[0]) == ["1"]
