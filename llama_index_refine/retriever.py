"""The LlamaIndex retriever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from llama_index.core import Settings
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.collection import QdrantCollection, SearchOptions
from llama_index_refine.graders.account import Budget
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.loop import FeedbackLoop
from llama_index_refine.operations import Embedding, Grading, Refining
from llama_index_refine.refinement import Refinement
from llama_index_refine.refiner import QueryRefiner
from llama_index_refine.steps import Outcome, arun, run


class RefinedRetriever(BaseRetriever):
    """Searches a Qdrant collection, has the first nodes graded, refines the query vector and searches again.

    :param vector_store: the collection, as LlamaIndex sees it.
    :param embed_model: embeds the query; None for `Settings.embed_model`.
    :param grader: the teacher; None for an `LLMGrader` on `Settings.llm`.
    :param similarity_top_k: the most nodes to return.
    :param feedback_top_k: the most nodes that may be graded for one query, over all rounds; at least 2.
    :param filters: metadata filters, for both searches and the background.
    :param rounds: how many times the teacher is asked. More rounds choose better what is graded; each costs the time of
        one more wave of LLM calls and one more search.
    :param background_size: background vectors to refine against, 0 for none.
    :param budget: the most that grading one query may cost.
    :param refiner: how the query moves; None for a `QueryRefiner` in the collection's distance.
    :param on_error: "fallback" returns the first search's nodes when anything after it fails, "raise" raises.
    :param node_ids: search these nodes only.
    :param doc_ids: search the nodes of these documents only.
    :param qdrant_filter: a raw Qdrant filter, instead of filters, node_ids and doc_ids.
    :param search_params: Qdrant's search parameters: hnsw_ef, exact, quantization.
    :param score_threshold: drop nodes that score worse.
    :param callback_manager: LlamaIndex's callbacks.
    :param object_map: objects behind `IndexNode`s, by index id.
    :param objects: the same as a list.
    :param verbose: tell what recursive retrieval enters.
    :raises ValueError: an argument outside its range.
    """

    def __init__(
        self,
        vector_store: QdrantVectorStore,
        embed_model: BaseEmbedding | None = None,
        grader: BaseGrader | None = None,
        similarity_top_k: int = 10,
        feedback_top_k: int = 20,
        filters: MetadataFilters | None = None,
        *,
        rounds: int = 2,
        background_size: int = 30,
        budget: Budget | None = None,
        refiner: QueryRefiner | None = None,
        on_error: Literal["fallback", "raise"] = "fallback",
        node_ids: Sequence[str] | None = None,
        doc_ids: Sequence[str] | None = None,
        qdrant_filter: models.Filter | None = None,
        search_params: models.SearchParams | None = None,
        score_threshold: float | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        for name, value, least in (
            ("similarity_top_k", similarity_top_k, 1),
            ("feedback_top_k", feedback_top_k, 2),
            ("rounds", rounds, 1),
            ("background_size", background_size, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if on_error not in ("fallback", "raise"):
            raise ValueError(f"on_error must be 'fallback' or 'raise', got {on_error!r}")
        if not isinstance(vector_store, QdrantVectorStore):
            raise ValueError(f"vector_store must be a QdrantVectorStore, got {type(vector_store).__name__}")
        self.similarity_top_k = similarity_top_k
        self.feedback_top_k = feedback_top_k
        self.rounds = rounds
        self.budget = budget or Budget()
        self.on_error: Literal["fallback", "raise"] = on_error
        self._embed_model = embed_model
        self._grader = grader
        options = SearchOptions(filters, qdrant_filter, node_ids, doc_ids, score_threshold, search_params)
        self._collection = QdrantCollection(vector_store, options, background_size)
        self._embedding = Embedding(lambda: self.embed_model)
        self._grading = Grading(lambda: self.grader)
        self._refining = Refining(refiner)
        super().__init__(callback_manager, object_map, objects, verbose)

    @property
    def grader(self) -> BaseGrader:
        """The teacher."""
        if self._grader is None:
            from llama_index_refine.graders.llm import LLMGrader

            self._grader = LLMGrader()
        return self._grader

    @property
    def embed_model(self) -> BaseEmbedding:
        """The model that embeds queries."""
        return self._embed_model or Settings.embed_model

    def refine(self, query: QueryType) -> Refinement:
        """Retrieve, and tell how.

        :param query: the query; a bundle that brings its embedding is not embedded again.
        :return: the refinement, with the nodes that `retrieve` would return.
        :raises Exception: the embedding or the first search failed; with on_error="raise", anything that failed.
        """
        return _result(run([self._loop().steps(_bundle(query))])[0])

    async def arefine(self, query: QueryType) -> Refinement:
        """Retrieve, and tell how, without blocking the event loop. See `refine`."""
        (outcome,) = await arun([self._loop().steps(_bundle(query))])
        return _result(outcome)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self.refine(query_bundle).nodes)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list((await self.arefine(query_bundle)).nodes)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"grader": self.grader}

    def _loop(self) -> FeedbackLoop:
        return FeedbackLoop(
            self._collection,
            self._embedding,
            self._grading,
            self._refining,
            self.similarity_top_k,
            self.feedback_top_k,
            self.rounds,
            self.budget,
            self.on_error,
        )


def _bundle(query: QueryType) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query


def _result(outcome: Outcome) -> Refinement:
    if isinstance(outcome.result, Exception):
        raise outcome.result
    refinement: Refinement = replace(outcome.result, timings=outcome.seconds)
    return refinement
