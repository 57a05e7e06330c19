"""Retrievers on pictures: queries that are images, collections of images, and what travels."""

from __future__ import annotations

import json
import logging
import uuid
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.indices.multi_modal.base import MultiModalVectorStoreIndex
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import ImageNode, MediaResource, Node, QueryBundle, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.llms.openai import OpenAI
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index_refine import FeedbackGrader, RefinedRetriever, RefinementMemory
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.graders.openai import OpenAIGrader
from llama_index_refine.stores import open_store
from tests.chat_server import Reply
from tests.images.pictures import base64_of, save
from tests.images.small_pictures import (
    PICTURES,
    PixelEmbedding,
    draw,
    image_nodes,
    name_of,
    same_square,
    squares,
    vector_of,
)
from tests.small_index import QUERY, SubjectGrader, WordEmbedding, make_index, make_nodes

EVERY = len(PICTURES) // 6


class SquareGrader(BaseGrader):
    """Knows the label."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def grade(self, query, nodes):
        self.seen += nodes
        return [0.95 if node.metadata["square"] == "red" else 0.05 for node in nodes]


def write(client: Any, name: str = "pictures", **fields: Any) -> QdrantVectorStore:
    """The pictures in LlamaIndex's own payloads."""
    store = QdrantVectorStore(name, client=client)
    nodes = image_nodes(**fields)
    for node, picture in zip(nodes, PICTURES, strict=True):
        node.embedding = vector_of(draw(*picture))
    store.add(nodes)
    return store


@pytest.fixture(scope="module")
def store() -> QdrantVectorStore:
    return write(QdrantClient(":memory:"))


@pytest.fixture
def red(tmp_path) -> str:
    """A picture to search with: its ground is blue, and what is meant is the red square on it."""
    return str(save(tmp_path, "query.png", draw("red", "blue", 12)))


@pytest.fixture
def retriever(store, chat_server) -> RefinedRetriever:
    chat_server.reply = same_square
    grader = OpenAIGrader("m", chat_server.url, "key", retries=0)
    options = {"similarity_top_k": EVERY, "feedback_top_k": 20, "trust": 1.0, "early_stop": False}
    return RefinedRetriever(store, PixelEmbedding(), grader, **options)


def test_an_image_finds_what_a_teacher_that_sees_takes_for_like_it(retriever, red, chat_server):
    refinement = retriever.refine(QueryBundle("", image_path=red))
    assert refinement.refined
    assert refinement.image_path == red
    assert not refinement.ungraded
    before, after = (squares(nodes).count("red") for nodes in (refinement.nodes_before, refinement.nodes))
    assert after >= before + 3
    assert all(len(question.images) == 2 for question in chat_server.questions)
    assert len(chat_server.questions) == 20


async def test_asynchronously_and_in_batches_too(retriever, red, tmp_path):
    bundle = QueryBundle("", image_path=red)
    one = retriever.retrieve(bundle)
    assert [entry.node_id for entry in await retriever.aretrieve(bundle)] == [entry.node_id for entry in one]
    other = QueryBundle("", image_path=str(save(tmp_path, "green.png", draw("green", "yellow"))))
    (first, second) = await retriever.aretrieve_batch([bundle, other])
    assert [entry.node_id for entry in first] == [entry.node_id for entry in one]
    assert squares(second).count("green") > squares(first).count("green")


def test_words_beside_the_image_are_for_the_teacher(retriever, red, chat_server):
    refinement = retriever.refine(QueryBundle("the same square", image_path=red))
    assert refinement.query.tolist() == pytest.approx(vector_of(Path(red).read_bytes()), abs=1e-6)
    assert "Query: the same square " in chat_server.questions[0].prompt


def test_what_is_to_be_embedded_may_be_said(retriever, red):
    refinement = retriever.refine(QueryBundle("a", image_path=red, custom_embedding_strs=["green"]))
    assert refinement.query.tolist() == pytest.approx(vector_of(draw("green", "green")), abs=1e-6)


def test_examples_judgements_and_the_memory_reach_pictures(store, red):
    """The search for them brings no payload, as it holds the pictures; what is looked up by its id brings its own."""
    bundle, teacher = QueryBundle("", image_path=red), SquareGrader()
    options = {"grader": teacher, "feedback_top_k": 6, "early_stop": False}
    every = RefinedRetriever(store, PixelEmbedding(), similarity_top_k=len(PICTURES), trust=0.0, **options)
    far = [entry.node for entry in every.retrieve(bundle) if entry.node.metadata["square"] == "red"][-1].node_id
    kept = RefinedRetriever(
        store, PixelEmbedding(), memory=RefinementMemory(SimpleKVStore()), similarity_top_k=5, **options
    )
    (first, again) = kept.refine(bundle), kept.refine(bundle)
    assert far not in first.grade_of
    assert again.remembered == len(first.grades)
    assert again.grade_of == first.grade_of
    assert far in kept.refine(bundle, like=[far]).grade_of
    options["grader"] = FeedbackGrader(lambda query: {far: 0.5}, teacher)
    found = RefinedRetriever(store, PixelEmbedding(), similarity_top_k=5, **options).refine(bundle)
    assert found.grade_of[far] == 0.5
    assert all(entry.node.image for entry in [*again.graded_nodes, *found.graded_nodes])


def test_words_alone_find_images(retriever, chat_server):
    refinement = retriever.refine("red")
    assert refinement.query.tolist() == pytest.approx(vector_of(draw("red", "red")), abs=1e-6)
    assert all(len(question.images) == 1 for question in chat_server.questions)


async def test_a_model_of_texts_embeds_the_words_and_says_what_is_missing_without(red):
    retriever = RefinedRetriever.from_index(make_index(), grader=SubjectGrader("owls"))
    with_words = retriever.refine(QueryBundle(QUERY, image_path=red))
    assert with_words.query.tolist() == retriever.refine(QUERY).query.tolist()
    with pytest.raises(ValueError, match="embed_model, a WordEmbedding, embeds texts only"):
        retriever.retrieve(QueryBundle("", image_path=red))
    with pytest.raises(ValueError, match="embed_model"):
        await retriever.aretrieve(QueryBundle("", image_path=red))
    (failed, fine) = retriever.refine_batch([QueryBundle("", image_path=red), QUERY], return_exceptions=True)
    assert isinstance(failed, ValueError)
    assert fine.refined


def test_a_query_of_nothing_is_still_empty(retriever, chat_server):
    assert retriever.refine(QueryBundle("", image_path="")).reason == "the query is empty"
    assert chat_server.calls == 0


def test_an_image_without_words_is_not_encoded_sparsely(red):
    client = QdrantClient(":memory:")
    client.create_collection(
        "both",
        {"dense": models.VectorParams(size=192, distance=models.Distance.COSINE)},
        sparse_vectors_config={"words": models.SparseVectorParams()},
    )
    points = [
        models.PointStruct(
            id=at,
            vector={"dense": vector_of(draw(*picture)), "words": models.SparseVector(indices=[at], values=[1.0])},
            payload={"square": picture[0], "image": base64_of(draw(*picture))},
        )
        for at, picture in enumerate(PICTURES)
    ]
    client.upsert("both", points)

    def encode(texts):
        raise AssertionError("there are no words")

    retriever = RefinedRetriever.from_collection(
        client, "both", vector_name="dense", sparse_vector_name="words", sparse_query_fn=encode, image_key="image",
        embed_model=PixelEmbedding(), grader=SquareGrader(), vector_store_query_mode="hybrid",
    )  # fmt: skip
    assert retriever.refine(QueryBundle("", image_path=red)).refined


@pytest.fixture(scope="module")
def multimodal() -> MultiModalVectorStoreIndex:
    """Texts in one store, pictures in the other."""
    client = QdrantClient(":memory:")
    storage = StorageContext.from_defaults(
        vector_store=QdrantVectorStore("texts", client=client), image_store=QdrantVectorStore("images", client=client)
    )
    nodes = [*make_nodes(), *image_nodes()]
    models_ = {"embed_model": WordEmbedding(), "image_embed_model": PixelEmbedding()}
    return MultiModalVectorStoreIndex(nodes, storage_context=storage, **models_)


def test_each_half_of_a_multimodal_index_is_searched_by_its_own_model(multimodal, red):
    images = RefinedRetriever.from_index(multimodal, modality="image", grader=SquareGrader(), trust=1.0)
    refinement = images.refine(QueryBundle("", image_path=red))
    assert refinement.refined
    theirs = multimodal.as_retriever(image_similarity_top_k=10).image_to_image_retrieve(red)
    assert [entry.node_id for entry in refinement.nodes_before] == [entry.node_id for entry in theirs]
    assert all(isinstance(entry.node, ImageNode) and entry.node.image for entry in refinement.nodes)
    texts = RefinedRetriever.from_index(multimodal, modality="text", grader=SubjectGrader("owls"), trust=1.0)
    assert not any(isinstance(entry.node, ImageNode) for entry in texts.retrieve(QUERY))
    assert texts.refine(QUERY).refined


def test_the_choice_of_a_half_is_asked_for(multimodal):
    with pytest.raises(ValueError, match="modality='text' or modality='image'"):
        RefinedRetriever.from_index(multimodal)
    with pytest.raises(ValueError, match="modality must be"):
        RefinedRetriever.from_index(multimodal, modality="audio")
    with pytest.raises(ValueError, match="leave modality out"):
        RefinedRetriever.from_index(make_index(), modality="image")
    assert RefinedRetriever.from_index(make_index(), modality="text").similarity_top_k == 10


def test_images_in_another_store_are_refused(multimodal):
    index = MultiModalVectorStoreIndex.from_vector_store(
        multimodal.vector_store, WordEmbedding(), image_embed_model=PixelEmbedding()
    )
    with pytest.raises(ValueError, match=r"image_store=QdrantVectorStore"):
        RefinedRetriever.from_index(index, modality="image")
    assert RefinedRetriever.from_index(index, modality="text", grader=SubjectGrader("owls")).retrieve(QUERY)


def test_images_that_are_searched_by_their_texts_use_the_model_of_texts(multimodal):
    index = MultiModalVectorStoreIndex.from_vector_store(
        multimodal.vector_store,
        WordEmbedding(),
        image_vector_store=multimodal.image_vector_store,
        image_embed_model=PixelEmbedding(),
        is_image_to_text=True,
    )
    assert isinstance(RefinedRetriever.from_index(index, modality="image").embed_model, WordEmbedding)


def test_an_index_of_nodes_with_image_resources(tmp_path, red, chat_server):
    """What LlamaIndex's payloads keep of a `Node` is the image's path."""
    nodes = []
    for picture in PICTURES:
        path = save(tmp_path / "pictures", f"{name_of(*picture)}.png", draw(*picture))
        nodes.append(
            Node(
                id_=name_of(*picture),
                image_resource=MediaResource(path=path),
                embedding=vector_of(draw(*picture)),
                metadata={"square": picture[0]},
                excluded_llm_metadata_keys=["square"],
            )
        )
    store = QdrantVectorStore("resources", client=QdrantClient(":memory:"))
    store.add(nodes)
    index = VectorStoreIndex.from_vector_store(store, embed_model=PixelEmbedding())
    chat_server.reply = same_square
    grader = OpenAIGrader("m", chat_server.url, "key", image_folders=[tmp_path / "pictures"])
    retriever = RefinedRetriever.from_index(index, grader=grader, similarity_top_k=EVERY, trust=1.0)
    refinement = retriever.refine(QueryBundle("", image_path=red))
    assert refinement.refined
    assert not refinement.ungraded
    assert squares(refinement.nodes).count("red") > squares(refinement.nodes_before).count("red")
    lost = Node(image_resource=MediaResource(data=draw("red", "red")), embedding=vector_of(draw("red", "red")))
    store.add([lost])
    refinement = retriever.refine(QueryBundle("", embedding=vector_of(draw("red", "red")), image_path=red))
    assert any("not stored with its node" in failure for failure in refinement.failures)


def plain(client: Any, image: Any, name: str = "plain", key: str = "image", **more: Any) -> str:
    """Pictures in payloads that LlamaIndex did not write; `image` makes the field of one."""
    client.create_collection(name, models.VectorParams(size=192, distance=models.Distance.COSINE))
    points = []
    for at, picture in enumerate(PICTURES):
        payload = {"square": picture[0], **more}
        *parents, last = key.split(".")
        inner = payload
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = image(picture)
        points.append(models.PointStruct(id=at, vector=vector_of(draw(*picture)), payload=payload))
    client.upsert(name, points)
    return name


@pytest.mark.parametrize("kind", ["base64", "data", "path", "file", "relative"])
@pytest.mark.parametrize("key", ["image", "media.thumb"])
def test_plain_payloads_with_an_image(tmp_path, red, chat_server, kind, key):
    folder = tmp_path / "pictures"

    def image(picture):
        data = draw(*picture)
        path = save(folder, f"{name_of(*picture)}.png", data)
        return {
            "base64": base64_of(data),
            "data": f"data:image/png;base64,{base64_of(data)}",
            "path": str(path),
            "file": path.as_uri(),
            "relative": path.name,
        }[kind]

    client = QdrantClient(":memory:")
    name = plain(client, image, key=key)
    chat_server.reply = same_square
    folder.mkdir(exist_ok=True)
    grader = OpenAIGrader("m", chat_server.url, "key", image_folders=[folder])
    retriever = RefinedRetriever.from_collection(
        client, name, image_key=key, embed_model=PixelEmbedding(), grader=grader, similarity_top_k=EVERY, trust=1.0
    )
    refinement = retriever.refine(QueryBundle("", image_path=red))
    assert not refinement.ungraded
    assert squares(refinement.nodes).count("red") > squares(refinement.nodes_before).count("red")
    for entry in refinement.nodes:
        assert isinstance(entry.node, ImageNode)
        assert set(entry.node.metadata) == ({"square"} if key == "image" else {"square", "media"})
        assert base64_of(draw("red", "red"))[:40] not in str(entry.node.metadata)


async def test_plain_payloads_with_a_url_and_a_text(red, chat_server):
    client = AsyncQdrantClient(":memory:")
    await client.create_collection("urls", models.VectorParams(size=192, distance=models.Distance.COSINE))
    points = [
        models.PointStruct(
            id=str(uuid.UUID(int=at)),
            vector=vector_of(draw(*picture)),
            payload={"url": [f"https://a.example/{at}.png"], "caption": f"square {at}", "square": picture[0]},
        )
        for at, picture in enumerate(PICTURES)
    ]
    await client.upsert("urls", points)
    grader = OpenAIGrader("m", chat_server.url, "key")
    retriever = RefinedRetriever.from_collection(
        client, "urls", "caption", image_key="url", embed_model=PixelEmbedding(), grader=grader
    )
    nodes = await retriever.aretrieve(QueryBundle("a square", image_path=red))
    assert all(entry.node.image_url.startswith("https://a.example/") for entry in nodes)
    assert all(entry.node.text.startswith("square ") for entry in nodes)
    assert chat_server.questions[0].images[1].startswith("https://a.example/")


def test_points_may_lack_one_of_the_two_and_not_both(red, caplog):
    client = QdrantClient(":memory:")
    name = plain(client, lambda picture: base64_of(draw(*picture)) if picture[0] == "red" else None, title=None)
    store = open_store(client, name, "title", image_key="image")
    (found,) = client.query_points(name, query=vector_of(draw("red", "blue")), limit=1, with_payload=True).points
    (node,) = store.parse_to_query_result([found]).nodes
    assert isinstance(node, ImageNode)
    assert (node.text, node.metadata) == ("", {"square": "red"})
    arguments = {"embed_model": PixelEmbedding(), "grader": SquareGrader()}
    retriever = RefinedRetriever.from_collection(client, name, "title", image_key="image", **arguments)
    nodes = retriever.retrieve(QueryBundle("", image_path=red))
    assert {type(entry.node) for entry in nodes} == {ImageNode, TextNode}
    wrong = RefinedRetriever.from_collection(client, name, image_key="picture", **arguments)
    with pytest.raises(ValueError, match=r"'picture'.*'image', 'square', 'title'.*set image_key"):
        wrong.retrieve(QueryBundle("", image_path=red))
    wrong = RefinedRetriever.from_collection(client, name, "text", image_key="picture", **arguments)
    with pytest.raises(ValueError, match=r"'text' or 'picture'.*set text_key or image_key"):
        wrong.retrieve(QueryBundle("", image_path=red))


def carried(server: Any) -> list[tuple[int, int]]:
    """For each query since, how many points were asked for, and how many came with a payload."""
    asked = [search for kind, body in server.calls if kind == "query" for search in body["searches"]]
    return [(search["limit"], search["limit"] if search["with_payload"] is True else 0) for search in asked]


@pytest.mark.parametrize("top", [8, 40])
@pytest.mark.parametrize("form", ["llama_index", "plain"])
def test_images_do_not_travel_in_rankings(qdrant_server, red, top, form):
    """Only what is graded or returned is fetched with its payload, from the first query that has met an image on."""
    if form == "plain":
        plain(qdrant_server.storage, lambda picture: base64_of(draw(*picture)), "pictures")
    else:
        write(qdrant_server.storage)
    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    key = "image" if form == "plain" else None
    store = open_store(client, "pictures", image_key=key)
    grader = SquareGrader()
    counts = {"similarity_top_k": top, "feedback_top_k": 10, "early_stop": False}
    retriever = RefinedRetriever(store, PixelEmbedding(), grader, trust=1.0, **counts)
    bundle = QueryBundle("", image_path=red)
    first = retriever.refine(bundle)
    # With an image_key nothing is to be learnt first; else the second search knows.
    light = [asked for asked in carried(qdrant_server) if asked[0] in (top, top + 10)]
    assert light[-1][1] == 0
    if form == "plain":
        assert sum(whole for _, whole in carried(qdrant_server)) <= len(first.nodes_before) + len(first.nodes) + 10
    qdrant_server.calls.clear()
    grader.seen.clear()
    again = retriever.refine(bundle)
    assert [entry.node_id for entry in again.nodes] == [entry.node_id for entry in first.nodes]
    assert len(again.nodes) == len(again.nodes_before) == top
    for entry in [*again.nodes, *again.nodes_before, *again.graded_nodes]:
        assert isinstance(entry.node, ImageNode)
        assert entry.node.image
    handed = {entry.node_id for entry in [*again.nodes, *again.nodes_before]} | {node.node_id for node in grader.seen}
    assert sum(whole for _, whole in carried(qdrant_server)) <= len(handed) + 10


async def test_nodes_are_whole_wherever_the_collection_lives(place, red):
    name = place.create(models.VectorParams(size=192, distance=models.Distance.COSINE))
    points = [
        models.PointStruct(
            id=at,
            vector=vector_of(draw(*picture)),
            payload={"square": picture[0], "media": {"data": base64_of(draw(*picture))}},
        )
        for at, picture in enumerate(PICTURES)
    ]
    place.write(name, points)
    retriever = RefinedRetriever.from_collection(
        place.client, name, image_key="media.data", embed_model=PixelEmbedding(), grader=SquareGrader(),
        similarity_top_k=40, feedback_top_k=10, trust=1.0,
    )  # fmt: skip
    bundle = QueryBundle("", image_path=red)
    first = [entry.node_id for entry in retriever.retrieve(bundle)]
    refinement = await retriever.arefine(bundle)
    assert [entry.node_id for entry in refinement.nodes] == first
    assert all(entry.node.image for entry in [*refinement.nodes, *refinement.nodes_before])
    assert squares(refinement.nodes[:12]).count("red") >= squares(refinement.nodes_before[:12]).count("red")


def test_collections_of_texts_are_asked_as_before(qdrant_server):
    nodes = make_nodes()
    for node in nodes:
        node.embedding = WordEmbedding()._embed(node.text)
    QdrantVectorStore("texts", client=qdrant_server.storage).add(nodes)
    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    store = QdrantVectorStore("texts", client=client)
    retriever = RefinedRetriever(store, WordEmbedding(), SubjectGrader("owls"), similarity_top_k=5, feedback_top_k=10)
    retriever.refine(QUERY)
    qdrant_server.calls.clear()
    assert retriever.refine(QUERY).refined
    assert carried(qdrant_server)[-1] == (5, 5)


def test_a_query_engine_shows_the_found_images_to_its_llm(retriever, red, chat_server):
    retriever = copy(retriever)
    retriever.similarity_top_k = 3
    chat_server.reply = lambda question: (
        same_square(question) if "Is this document relevant" in question.prompt else Reply("Red squares.")
    )
    llm = OpenAI("gpt-4o-mini", api_base=chat_server.url, api_key="key", max_retries=0)
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=True)
    response = engine.query(QueryBundle("what is this?", image_path=red))
    assert str(response) == "Red squares."
    answered = chat_server.questions[-1].images
    assert [base64_of(draw(*picture)) in "".join(answered) for picture in PICTURES].count(True) == 3


def test_a_picture_that_is_gone_by_then_is_left_out(red):
    client = QdrantClient(":memory:")
    store = write(client)
    gone = name_of("red", "blue", 0)

    class Deleting(SquareGrader):
        def grade(self, query, nodes):
            grades = super().grade(query, nodes)
            client.delete("pictures", [gone])
            return [None if node.node_id == gone else grade for node, grade in zip(nodes, grades, strict=True)]

    retriever = RefinedRetriever(store, PixelEmbedding(), Deleting(), similarity_top_k=8, feedback_top_k=10)
    refinement = retriever.refine(QueryBundle("", image_path=red))
    assert refinement.refined
    assert len(refinement.nodes) == 8


def test_nothing_of_an_image_is_logged(retriever, red, caplog):
    caplog.set_level(logging.DEBUG, logger="llama_index_refine")
    refinement = retriever.refine(QueryBundle("", image_path=red))
    data = base64_of(draw("red", "blue", 0))[:60]
    assert data not in caplog.text
    assert data not in json.dumps(refinement.to_dict(texts=True))
    assert data not in repr(refinement)
