"""`RefinedRetriever.from_index` beside the index's own retriever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llama_index.core import SummaryIndex, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.schema import ImageNode, IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index_refine import RefinedRetriever
from tests.llama_index.conftest import subjects
from tests.small_index import QUERY, BrokenGrader, SubjectGrader, WordEmbedding, make_index, node_id


def fields(node: Any) -> dict[str, Any]:
    return {name: getattr(node, name) for name in type(node).model_fields}


def assert_alike(ours: list[NodeWithScore], theirs: list[NodeWithScore]) -> None:
    assert [entry.node_id for entry in ours] == [entry.node_id for entry in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert type(mine.node) is type(other.node)
        assert fields(mine.node) == fields(other.node)
        assert mine.score == pytest.approx(other.score, abs=1e-6)


def test_nodes_are_field_by_field_those_of_the_index(index, retriever):
    refinement = retriever.refine(QUERY)
    theirs = index.as_retriever(similarity_top_k=60).retrieve(
        QueryBundle(QUERY, embedding=np.asarray(refinement.vector).tolist())
    )
    by_id = {entry.node_id: entry for entry in theirs}
    assert refinement.refined
    for entry in refinement.nodes:
        own = by_id[entry.node_id]
        assert type(entry.node) is type(own.node)
        assert fields(entry.node) == fields(own.node)
        assert entry.node.relationships == own.node.relationships
        for mode in MetadataMode:
            assert entry.node.get_content(mode) == own.node.get_content(mode)
        if entry.node_id not in refinement.grade_of:
            assert entry.score == pytest.approx(own.score, abs=1e-5)
    assert_alike(list(refinement.nodes_before), index.as_retriever(similarity_top_k=4).retrieve(QUERY))


def test_finds_what_the_index_alone_does_not(index, retriever):
    assert subjects(index.as_retriever(similarity_top_k=4).retrieve(QUERY)).count("owls") == 1
    assert subjects(retriever.retrieve(QUERY)) == ["owls"] * 4


@pytest.mark.parametrize("arguments", [{}, {"similarity_top_k": 7}, {"doc_ids": ["document-cats"]}])
def test_falls_back_to_what_the_index_would_return(index, arguments):
    retriever = RefinedRetriever.from_index(index, grader=BrokenGrader(), **arguments)
    theirs = index.as_retriever(**{"similarity_top_k": 10, **arguments})
    assert_alike(retriever.retrieve(QUERY), theirs.retrieve(QUERY))


def test_filters_are_those_of_llama_index(index):
    filters = MetadataFilters(filters=[MetadataFilter(key="page", value=3)])
    retriever = RefinedRetriever.from_index(index, grader=BrokenGrader(), filters=filters)
    assert_alike(retriever.retrieve(QUERY), index.as_retriever(similarity_top_k=10, filters=filters).retrieve(QUERY))


async def test_asynchronous_like_blocking(index):
    # A retriever learns from each query how far its teacher is to be trusted, and its background is drawn at random.
    ours, theirs = (
        RefinedRetriever.from_index(index, grader=SubjectGrader(), similarity_top_k=4, background_size=0)
        for _ in range(2)
    )
    assert_alike(await ours.aretrieve(QUERY), theirs.retrieve(QUERY))


def test_similarity_top_k_may_be_changed(index, retriever):
    assert retriever.similarity_top_k == 4
    retriever.similarity_top_k = 2
    assert len(retriever.retrieve(QUERY)) == 2
    with pytest.raises(ValueError, match="similarity_top_k must be at least 1, got 0"):
        retriever.similarity_top_k = 0


def test_takes_over_model_callbacks_and_store():
    debug = LlamaDebugHandler(print_trace_on_end=False)
    index = make_index(callback_manager=CallbackManager([debug]))
    retriever = RefinedRetriever.from_index(index, grader=SubjectGrader())
    assert isinstance(retriever.embed_model, WordEmbedding)
    retriever.retrieve(QUERY)
    assert len(debug.get_event_pairs(CBEventType.RETRIEVE)) == 1


def test_what_is_given_replaces_what_is_taken_over(index):
    class Other(WordEmbedding):
        pass

    assert isinstance(RefinedRetriever.from_index(index, embed_model=Other()).embed_model, Other)


def test_nodes_that_are_not_text_come_whole_from_the_docstore():
    inner = TextNode(text="the owl with wings would sleep at night, in full", id_="inner")
    nodes = [
        IndexNode(id_=node_id("one"), text="the owl with feather would sleep at night", index_id="inner", obj=inner),
        ImageNode(id_=node_id("two"), text="the owl with perch would sleep", image="aGk=", image_path="owl.png"),
        IndexNode(id_=node_id("three"), text="the cat with fur would sleep at night", index_id="elsewhere"),
        IndexNode(id_=node_id("four"), text="the star with orbit would stay awake", index_id="elsewhere"),
    ]
    index = make_index(nodes)
    refined = RefinedRetriever.from_index(index, grader=SubjectGrader(), similarity_top_k=3, background_size=0)
    broken = RefinedRetriever.from_index(index, grader=BrokenGrader(), similarity_top_k=3)
    theirs = index.as_retriever(similarity_top_k=3).retrieve(QUERY)
    assert_alike(broken.retrieve(QUERY), theirs)
    refinement = refined.refine(QUERY)
    stored = {node.node_id: fields(node) for node in index.docstore.docs.values()}
    assert refinement.refined
    for entry in [*refinement.nodes, *refinement.nodes_before, *refinement.graded_nodes]:
        assert fields(entry.node) == stored[entry.node_id]
    assert refinement.nodes[0].node_id in (node_id("one"), node_id("two"))


async def test_the_docstore_is_asked_asynchronously_too():
    nodes = [IndexNode(id_=node_id(str(n)), text=f"the owl number {n} would sleep", index_id="x") for n in range(4)]
    index = make_index(nodes)
    for node in index.docstore.docs.values():
        index.docstore.add_documents([IndexNode(**{**node.model_dump(), "text": node.text + ", as stored"})])
    found = await RefinedRetriever.from_index(index, grader=SubjectGrader()).aretrieve(QUERY)
    assert len(found) == 4
    assert all(entry.text.endswith(", as stored") for entry in found)


@pytest.mark.parametrize("failure", [NotImplementedError, ConnectionError])
async def test_a_docstore_without_an_asynchronous_half_or_without_its_server_loses_no_answer(failure):
    class Store(SimpleKVStore):
        async def aget(self, *args, **kwargs):
            raise failure

        aget_all = aget

    nodes = [IndexNode(id_=node_id(str(n)), text=f"the owl number {n} would sleep", index_id="x") for n in range(4)]
    index, store = make_index(nodes), Store()
    docstore = SimpleDocumentStore(store)
    docstore.add_documents([IndexNode(**{**node.model_dump(), "text": node.text + ", as stored"}) for node in nodes])
    refined = RefinedRetriever.from_index(index, grader=SubjectGrader(), docstore=docstore)
    whole = failure is NotImplementedError
    for found in (await refined.aretrieve(QUERY), *await refined.aretrieve_batch([QUERY, "owl"])):
        assert [entry.text.endswith(", as stored") for entry in found] == [whole] * 4
    refined.on_error = "raise"
    if not whole:
        with pytest.raises(ConnectionError):
            await refined.aretrieve(QUERY)

    def unreachable(*args, **kwargs):
        raise ConnectionError

    refined.on_error, store.get = "fallback", unreachable
    assert len(refined.retrieve(QUERY)) == 4


def test_another_vector_store_is_refused_with_what_to_do():
    index = VectorStoreIndex([TextNode(text="a cat")], embed_model=WordEmbedding())
    with pytest.raises(ValueError, match=r"SimpleVectorStore, and refining needs Qdrant: build the index with"):
        RefinedRetriever.from_index(index)


def test_another_kind_of_index_is_refused():
    with pytest.raises(ValueError, match="VectorStoreIndex over a QdrantVectorStore, got SummaryIndex"):
        RefinedRetriever.from_index(SummaryIndex([]))


def test_node_metadata_tells_grade_and_rank_and_stays_out_of_prompts(index):
    plain = RefinedRetriever.from_index(index, grader=SubjectGrader(), similarity_top_k=4)
    noting = RefinedRetriever.from_index(index, grader=SubjectGrader(), similarity_top_k=4, node_metadata=True)
    refinement = plain.refine(QUERY)
    assert not any("refine_grade" in entry.node.metadata for entry in refinement.nodes)
    noted = noting.retrieve(QUERY)
    for entry, bare in zip(noted, refinement.nodes, strict=True):
        grade, rank = (entry.node.metadata[key] for key in ("refine_grade", "refine_rank_before"))
        assert grade == refinement.grade_of.get(entry.node_id)
        assert rank == refinement.rank_before.get(entry.node_id)
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert entry.node.get_content(mode) == bare.node.get_content(mode)
        assert entry.node.relationships == bare.node.relationships
    assert noted[0].node.metadata["refine_grade"] == pytest.approx(0.95)
    assert {entry.node.metadata["refine_rank_before"] for entry in noted} > {None}


def test_node_metadata_leaves_stored_nodes_alone():
    nodes = [IndexNode(id_=node_id(str(n)), text=f"the owl number {n} would sleep", index_id="x") for n in range(4)]
    index = make_index(nodes)
    noting = RefinedRetriever.from_index(index, grader=SubjectGrader(), node_metadata=True)
    assert all("refine_grade" in entry.node.metadata for entry in noting.retrieve(QUERY))
    assert all("refine_grade" not in node.metadata for node in index.docstore.docs.values())
    assert all(node.excluded_llm_metadata_keys == [] for node in index.docstore.docs.values())
    assert all("refine_grade" not in entry.node.metadata for entry in index.as_retriever().retrieve(QUERY))


def test_an_index_of_several_kinds_of_nodes_is_searched_as_its_own_retriever_does():
    """Built, LlamaIndex restricts it to the nodes that are not text alone; opened again, it does not."""
    nodes = [IndexNode(text="an owl sleeps at night", index_id="i"), *(TextNode(text=text) for text in ("owl", "cat"))]
    built = make_index(nodes)
    opened = VectorStoreIndex.from_vector_store(built.vector_store, embed_model=WordEmbedding())
    counts = []
    for index in (built, opened):
        own = index.as_retriever(similarity_top_k=10).retrieve(QUERY)
        ours = RefinedRetriever.from_index(index, grader=SubjectGrader("owls")).retrieve(QUERY)
        assert {entry.node_id for entry in ours} == {entry.node_id for entry in own}
        counts.append(len(ours))
    assert counts == [1, 3]
