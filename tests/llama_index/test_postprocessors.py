"""Node postprocessors after a refined retriever."""

from __future__ import annotations

import pytest
from llama_index.core import Document
from llama_index.core.node_parser import SentenceWindowNodeParser
from llama_index.core.postprocessor import (
    LLMRerank,
    LongContextReorder,
    MetadataReplacementPostProcessor,
    PrevNextNodePostprocessor,
    SimilarityPostprocessor,
)
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.storage.docstore import SimpleDocumentStore

from llama_index_refine import RefinedRetriever
from tests.llama_index.conftest import subjects
from tests.small_index import DOINGS, QUERY, SUBJECTS, SubjectGrader, make_index, make_nodes


def test_sentence_window(llm):
    documents = [
        Document(text=" ".join(f"the {words.split()[0]} would {doing}." for doing in DOINGS), id_=subject)
        for subject, words in SUBJECTS.items()
    ]
    parser = SentenceWindowNodeParser.from_defaults(window_size=1)
    index = make_index(parser.get_nodes_from_documents(documents))
    model = llm("Owls do not.")
    engine = RetrieverQueryEngine.from_args(
        RefinedRetriever.from_index(index, grader=SubjectGrader("owls"), similarity_top_k=3),
        llm=model,
        node_postprocessors=[MetadataReplacementPostProcessor(target_metadata_key="window")],
    )
    found = engine.query("how does the animal sleep at night").source_nodes
    for entry in found:
        assert entry.text == entry.node.metadata["window"]
        assert entry.node.metadata["original_text"] in entry.text
    assert all("owl" in entry.text for entry in found)
    assert any(entry.text.count("owl") >= 2 for entry in found)


def test_similarity_cutoff_reads_the_scores(retriever):
    nodes = retriever.retrieve(QUERY)
    between = (nodes[1].score + nodes[2].score) / 2
    assert len(SimilarityPostprocessor(similarity_cutoff=between).postprocess_nodes(nodes)) == 2


def test_reordering(retriever):
    nodes = retriever.retrieve(QUERY)
    reordered = LongContextReorder().postprocess_nodes(nodes)
    assert {entry.node_id for entry in reordered} == {entry.node_id for entry in nodes}


def test_previous_node_is_found_by_relationship(retriever):
    docstore = SimpleDocumentStore()
    docstore.add_documents(make_nodes())
    before = retriever.retrieve(QUERY)
    more = PrevNextNodePostprocessor(docstore=docstore, num_nodes=1, mode="previous").postprocess_nodes(before)
    assert len(more) > len(before)
    assert set(subjects(more)) == {"owls"}


@pytest.mark.parametrize("best", [1, 3])
def test_rerank_after_refinement(retriever, llm, best):
    reranker = LLMRerank(llm=llm(f"Doc: {best}, Relevance: 9"), top_n=1, choice_batch_size=10)
    before = retriever.retrieve(QUERY)
    assert reranker.postprocess_nodes(before, query_str=QUERY)[0].node_id == before[best - 1].node_id
