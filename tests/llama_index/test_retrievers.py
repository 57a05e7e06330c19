"""Retrievers over refined retrievers, and objects behind index nodes."""

from __future__ import annotations

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.node_parser import HierarchicalNodeParser, get_leaf_nodes
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import AutoMergingRetriever, QueryFusionRetriever, RecursiveRetriever, RouterRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import Document, IndexNode, NodeWithScore, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import RetrieverTool

from llama_index_refine import RefinedRetriever
from tests.llama_index.conftest import subjects
from tests.small_index import QUERY, SUBJECTS, SubjectGrader, WordEmbedding, make_index, make_store, node_id


@pytest.mark.parametrize("mode", list(FUSION_MODES))
def test_query_fusion_retriever(index, retriever, llm, mode):
    model = llm("how does the owl sleep\nwhere do owls sleep")
    fusion = QueryFusionRetriever(
        [retriever, index.as_retriever(similarity_top_k=4)],
        llm=model, mode=mode, num_queries=3, similarity_top_k=6, use_async=False,
    )  # fmt: skip
    found = fusion.retrieve(QUERY)
    assert len(found) == 6
    assert subjects(found).count("owls") >= 3
    assert len({entry.node_id for entry in found}) == 6


def test_query_fusion_retriever_asynchronously(retriever, llm):
    fusion = QueryFusionRetriever([retriever], llm=llm("x"), num_queries=1, similarity_top_k=4, use_async=True)
    assert subjects(fusion.retrieve(QUERY)) == ["owls"] * 4


async def test_router_retriever(index, llm):
    tools = [
        RetrieverTool.from_defaults(
            RefinedRetriever.from_index(index, grader=SubjectGrader(subject), similarity_top_k=3),
            description=f"knows {subject}",
        )
        for subject in ("owls", "hotels")
    ]
    choice = '[{{"choice": {}, "reason": "it knows"}}]'
    model = llm(choice.format(2), choice.format(1))
    router = RouterRetriever(selector=LLMSingleSelector.from_defaults(llm=model), retriever_tools=tools, llm=model)
    assert subjects(router.retrieve(QUERY)) == ["hotels"] * 3
    assert subjects(await router.aretrieve(QUERY)) == ["owls"] * 3


@pytest.fixture
def overview() -> VectorStoreIndex:
    """One index node for each subject, which stands for a retriever of its own."""
    return make_index(
        [IndexNode(id_=node_id(name), text=f"the {words} at night", index_id=name) for name, words in SUBJECTS.items()]
    )


def test_recursive_retriever(index, retriever, overview):
    root = RefinedRetriever.from_index(overview, grader=SubjectGrader("owls"), similarity_top_k=1)
    recursive = RecursiveRetriever("root", retriever_dict={"root": root, **dict.fromkeys(SUBJECTS, retriever)})
    assert subjects(recursive.retrieve(QUERY)) == ["owls"] * 4


async def test_objects_behind_index_nodes(index, retriever, overview, llm):
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm("Owls do not."))
    for behind, expected in (
        (retriever, ["the owl with"] * 4),
        (engine, ["Owls do not."]),
        (TextNode(text="one owl"), ["one owl"]),
    ):
        objects = dict.fromkeys(SUBJECTS, behind)
        root = RefinedRetriever.from_index(
            overview, grader=SubjectGrader("owls"), similarity_top_k=1, object_map=objects
        )
        for found in (root.retrieve(QUERY), await root.aretrieve(QUERY), root.retrieve_batch([QUERY])[0]):
            assert [entry.text[: len(want)] for entry, want in zip(found, expected, strict=True)] == expected


async def test_an_object_that_fails_fails_its_own_query_of_a_batch(overview):
    class Broken(BaseRetriever):
        def _retrieve(self, query_bundle):
            if "broken" in query_bundle.query_str:
                raise RuntimeError("the object is broken")
            return [NodeWithScore(node=TextNode(text="one owl"))]

    root = RefinedRetriever.from_index(
        overview, grader=SubjectGrader("owls"), similarity_top_k=1, object_map=dict.fromkeys(SUBJECTS, Broken())
    )
    queries = [QUERY, f"{QUERY} broken"]
    for found in (
        root.retrieve_batch(queries, return_exceptions=True),
        await root.aretrieve_batch(queries, return_exceptions=True),
    ):
        assert [entry.text for entry in found[0]] == ["one owl"]
        assert str(found[1]) == "the object is broken"
    with pytest.raises(RuntimeError, match="the object is broken"):
        root.retrieve_batch(queries)


def test_objects_of_an_index(index, retriever):
    nodes = [
        IndexNode(id_=node_id(name), text=f"the {words} at night", index_id=name, obj=retriever)
        for name, words in SUBJECTS.items()
    ]
    outer = VectorStoreIndex(
        objects=nodes,
        storage_context=StorageContext.from_defaults(vector_store=make_store("outer")),
        embed_model=WordEmbedding(),
    )
    root = RefinedRetriever.from_index(outer, grader=SubjectGrader("owls"), similarity_top_k=1)
    assert subjects(root.retrieve(QUERY)) == ["owls"] * 4
    assert subjects(outer.as_retriever(similarity_top_k=1).retrieve(QUERY)) == ["owls"] * 4


def test_auto_merging_retriever():
    texts = {
        subject: " ".join(f"The {word} would {doing}." for word in words.split() for doing in ("sleep at night", "eat"))
        for subject, words in SUBJECTS.items()
    }
    documents = [Document(text=text, id_=subject, metadata={"subject": subject}) for subject, text in texts.items()]
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[128, 24], chunk_overlap=0)
    nodes = parser.get_nodes_from_documents(documents)
    storage = StorageContext.from_defaults(vector_store=make_store("tree"))
    storage.docstore.add_documents(nodes)
    index = VectorStoreIndex(get_leaf_nodes(nodes), storage_context=storage, embed_model=WordEmbedding())
    leaves = RefinedRetriever.from_index(index, grader=SubjectGrader("owls"), similarity_top_k=8)
    found = AutoMergingRetriever(leaves, storage).retrieve("The owl would sleep at night")
    parents = {node.node_id for node in nodes if node.child_nodes}
    assert found[0].node.metadata["subject"] == "owls"
    assert found[0].node_id in parents
