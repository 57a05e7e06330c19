"""The LlamaIndex retriever."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, NoReturn

from llama_index.core import Settings
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.question_gen.types import BaseQuestionGenerator
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.storage.docstore import BaseDocumentStore
from llama_index.core.tools import FunctionTool
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQueryMode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient

from llama_index_refine.calibration import Calibration
from llama_index_refine.graders.account import Budget
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.memory.memory import RefinementMemory
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.filters import read_filter
from llama_index_refine.qdrant.options import QdrantKwargs, read_hybrid, read_multivector, read_options
from llama_index_refine.qdrant.requests import MatrixEncoder, narrowed
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.base import BaseRefiner
from llama_index_refine.refining.trust import FixedTrust, Reliability, Teacher
from llama_index_refine.retrieval.arguments import (
    Target,
    budget_of,
    check_numbers,
    check_parts,
    check_together,
    check_values,
)
from llama_index_refine.retrieval.calibrating import Judgements, calibrated
from llama_index_refine.retrieval.decomposing import questions_of, retrieve_parts
from llama_index_refine.retrieval.events import RefinementEvent
from llama_index_refine.retrieval.evidence import check, with_probabilities
from llama_index_refine.retrieval.grading import Grading, reliability_of
from llama_index_refine.retrieval.index import Docstore, Modality, read_index
from llama_index_refine.retrieval.moving import Refining
from llama_index_refine.retrieval.notes import annotated, with_parts
from llama_index_refine.retrieval.pipeline import DEPTH, Pipeline
from llama_index_refine.retrieval.queries import Embedding, in_batches, with_examples
from llama_index_refine.retrieval.ranking import withheld
from llama_index_refine.retrieval.remembering import Remembering
from llama_index_refine.retrieval.selecting import select_nodes
from llama_index_refine.scheduling import Outcome, T, Work, arun, at_once, run, span, spanned_by_base, tell
from llama_index_refine.selection import Selection
from llama_index_refine.stores import SparseEncoder, open_store


class RefinedRetriever(BaseRetriever):
    """Searches a Qdrant collection, has the first nodes graded, refines the query vector and searches again.

    :param vector_store: LlamaIndex's vector store on the collection.
    :param embed_model: embeds the query; None for `Settings.embed_model`.
    :param grader: the teacher; None for an `LLMGrader` on `Settings.llm`.
    :param similarity_top_k: the most nodes to return.
    :param feedback_top_k: the most nodes that may be graded for one query, over all rounds; at least 2.
    :param filters: metadata filters, for both searches and the background.
    :param rounds: how many times the teacher is asked, at most. More rounds choose better what is graded; each costs
        the time of one more wave of LLM calls and one more search. A teacher whose grades all lie near one half is
        asked once, from its second query on.
    :param early_stop: whether to leave out grades that would hardly change the returned nodes. That saves a quarter to
        a third of the calls. It starts with a teacher's third query, and only if at most feedback_top_k nodes are
        returned.
    :param background_size: background vectors to refine against, 0 for none.
    :param budget: a limit on what grading one query may cost; a number limits the LLM calls.
    :param refiner: moves the query; None for a `QueryRefiner` with the collection's distance.
    :param trust: how far to follow the teacher: a number in [0, 1], or a `Reliability` that learns it from the grades.
        None takes the one that all retrievers with this grader share, or 1 if the grader is `trusted`, as people are.
    :param memory: remembers the grades of past queries; None for no memory.
    :param calibration: what people's labels say of the teacher, from `calibrate`. Probabilities and selections then use
        its error rates, and selections may be `about` people. It holds for all retrievers with this grader. None for
        none.
    :param decompose: split a query that asks several things: True for a LlamaIndex question generator on
        `Settings.llm`, or a generator of your own. The parts share the budget and feedback_top_k. Each node's metadata
        says in `refine_parts` which parts it answers.
    :param on_error: "fallback" returns the first search's nodes when anything after it fails, "raise" raises.
    :param score: what a node's score is: Qdrant's "similarity", or the "probability" that the node is relevant. The
        probability costs one more request, and is None for all nodes if nothing was graded.
    :param answerable: return no nodes if the probability that any of them is relevant is lower than this, in [0, 1];
        None to return them always.
    :param node_ids: search these nodes only.
    :param doc_ids: search the nodes of these documents only.
    :param vector_store_query_mode: "default", "mmr" for nodes that differ, "sparse", or "hybrid" to search by both, and
        refine both.
    :param alpha: in hybrid mode, the weight of the dense search, in [0, 1]; None for .5 in the first search and .8 in
        the refined one.
    :param sparse_top_k: in hybrid mode, the most nodes from the sparse search; None for as many as from the dense one.
    :param hybrid_top_k: in hybrid mode, the most nodes to return; None for similarity_top_k.
    :param multivector_query_fn: turns texts into matrices, one per text, with one vector per token. The retriever then
        searches a multivector, and compares documents by MaxSim, as ColBERT does.
    :param prefetch_vector_name: a dense vector, for the multivector search: MaxSim compares only the documents nearest
        by this vector, and both queries are refined. None compares all documents.
    :param vector_store_kwargs: Qdrant's own options, for both searches and the background. See `QdrantKwargs`.
    :param docstore: LlamaIndex's docstore, if it keeps nodes that are not text, as that of a `VectorStoreIndex` does.
    :param node_metadata: add `refine_grade` and `refine_rank_before` to the metadata of each returned node, hidden from
        LLMs.
    :param callback_manager: LlamaIndex's callbacks.
    :param object_map: objects behind `IndexNode`s, by index id.
    :param objects: the same as a list.
    :param verbose: print what recursive retrieval enters.
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
        rounds: int = 3,
        early_stop: bool = True,
        background_size: int = 30,
        budget: Budget | int | None = None,
        refiner: BaseRefiner | None = None,
        trust: Reliability | float | None = None,
        memory: RefinementMemory | None = None,
        calibration: Calibration | None = None,
        decompose: bool | BaseQuestionGenerator = False,
        on_error: Literal["fallback", "raise"] = "fallback",
        score: Literal["similarity", "probability"] = "similarity",
        answerable: float | None = None,
        node_ids: Sequence[str] | None = None,
        doc_ids: Sequence[str] | None = None,
        vector_store_query_mode: VectorStoreQueryMode | str = VectorStoreQueryMode.DEFAULT,
        alpha: float | None = None,
        sparse_top_k: int | None = None,
        hybrid_top_k: int | None = None,
        multivector_query_fn: MatrixEncoder | None = None,
        prefetch_vector_name: str | None = None,
        vector_store_kwargs: QdrantKwargs | None = None,
        docstore: BaseDocumentStore | None = None,
        node_metadata: bool = False,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        check_numbers(feedback_top_k=feedback_top_k, rounds=rounds, background_size=background_size)
        check_values(trust, answerable, on_error, score)
        check_parts(vector_store, grader, memory)
        self.similarity_top_k = similarity_top_k
        self.feedback_top_k = feedback_top_k
        self.rounds = rounds
        self.early_stop = early_stop
        self.budget = budget_of(budget)
        self.on_error: Literal["fallback", "raise"] = on_error
        self.trust = trust
        self.answerable = answerable
        self.memory = memory
        self._questions = questions_of(decompose, score)
        self._hybrid_top_k = hybrid_top_k
        self._embed_model = embed_model
        self._grader = grader
        self.calibration = calibration
        mode, kwargs = VectorStoreQueryMode(vector_store_query_mode), vector_store_kwargs or {}
        hybrid = read_hybrid(vector_store, mode, alpha, sparse_top_k, hybrid_top_k, kwargs)
        depth = kwargs.get("prefetch_limit")
        multivector = read_multivector(multivector_query_fn, prefetch_vector_name, hybrid is not None, depth)
        check_together(mode, multivector, score, memory, refiner)
        self.score = score
        options = read_options(vector_store, filters, node_ids, doc_ids, hybrid, kwargs, multivector, mode)
        self._collection = QdrantCollection(vector_store, options, background_size)
        self._refining = Refining(refiner)
        self._docstore = Docstore(docstore) if docstore is not None else None
        self.node_metadata = node_metadata
        super().__init__(callback_manager, object_map, objects, verbose)

    @classmethod
    def from_index(cls, index: VectorStoreIndex, modality: Modality | None = None, **kwargs: Any) -> RefinedRetriever:
        """Retrieve from an index over Qdrant: a drop-in replacement for `index.as_retriever()`.

        The retriever takes the index's vector store, embedding model, docstore, callbacks and objects. If the index
        lists its own nodes, only those are searched, as by `index.as_retriever()`.

        :param index: a `VectorStoreIndex` over a `QdrantVectorStore`.
        :param modality: which half of a `MultiModalVectorStoreIndex` to search, "text" or "image"; None for others.
        :param kwargs: more arguments of `RefinedRetriever`; they come before what the index has.
        :return: the retriever.
        :raises ValueError: an index over another vector store, a `MultiModalVectorStoreIndex` without a modality, or an
            argument outside its range.
        """
        return cls(**{**read_index(index, modality), **kwargs})

    @classmethod
    def from_collection(
        cls,
        client: Any,
        collection_name: str,
        text_key: str | None = None,
        vector_name: str | None = None,
        *,
        aclient: AsyncQdrantClient | None = None,
        sparse_vector_name: str | None = None,
        sparse_query_fn: SparseEncoder | None = None,
        image_key: str | None = None,
        **kwargs: Any,
    ) -> RefinedRetriever:
        """Retrieve from a collection that LlamaIndex or anything else wrote.

        :param client: a `QdrantClient`, an `AsyncQdrantClient` or an `EdgeClient`.
        :param collection_name: the collection.
        :param text_key: the payload field that is the text, "a.b" for b inside a; the others become metadata. None for
            a collection that LlamaIndex wrote, and, beside image_key, for one without texts.
        :param vector_name: the vector to search, a multivector with multivector_query_fn; None for the only one.
        :param aclient: an asynchronous client beside a blocking one.
        :param sparse_vector_name: the sparse vector of hybrid mode; None for the only one there is.
        :param sparse_query_fn: turns texts into the indices and values of sparse vectors, for hybrid mode.
        :param image_key: the payload field that is the image's URL, path or base64, "a.b" for b inside a.
        :param kwargs: the arguments of `RefinedRetriever`.
        :return: the retriever.
        :raises ValueError: an argument outside its range.
        """
        sparse = sparse_vector_name, sparse_query_fn
        store = open_store(client, collection_name, text_key, vector_name, aclient, *sparse, image_key)
        return cls(store, **kwargs)

    def __copy__(self) -> RefinedRetriever:
        copied = object.__new__(type(self))
        # A teacher for the LLM of the settings is made by now, so that copies share it, and what is learnt of it.
        copied.__dict__.update(self.__dict__, _grader=self.grader)
        # A copy may get another teacher.
        copied.__dict__.pop("_grading", None)
        return copied

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a RefinedRetriever cannot be pickled, because its Qdrant client's connections belong to this process: "
            "pickle the grader if you need to, and make a client and a retriever in each process"
        )

    @property
    def similarity_top_k(self) -> int:
        """The most nodes to return."""
        return self._similarity_top_k

    @similarity_top_k.setter
    def similarity_top_k(self, similarity_top_k: int) -> None:
        check_numbers(similarity_top_k=similarity_top_k)
        self._similarity_top_k = similarity_top_k

    @property
    def calibration(self) -> Calibration | None:
        """What people's labels say of the teacher."""
        return self._calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        if calibration is not None:
            calibration.check(self.grader)
        self._calibration = calibration

    @property
    def vector_store(self) -> QdrantVectorStore:
        """The collection, as LlamaIndex sees it."""
        return self._collection.store

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

    @spanned_by_base
    def retrieve(
        self, str_or_query_bundle: QueryType, like: Sequence[str] = (), unlike: Sequence[str] = ()
    ) -> list[NodeWithScore]:
        """Retrieve nodes.

        :param str_or_query_bundle: the query; a `QueryWithExamples` brings examples of its own.
        :param like: ids of nodes that answers should be like, for this call alone.
        :param unlike: ids of nodes that answers should be unlike.
        :return: the nodes, best first.
        :raises ValueError: an example that is no id, or that is on both lists.
        :raises Exception: as for `refine`.
        """
        return super().retrieve(with_examples(str_or_query_bundle, like, unlike))

    @spanned_by_base
    async def aretrieve(
        self, str_or_query_bundle: QueryType, like: Sequence[str] = (), unlike: Sequence[str] = ()
    ) -> list[NodeWithScore]:
        """Retrieve nodes without blocking the event loop. See `retrieve`."""
        return await super().aretrieve(with_examples(str_or_query_bundle, like, unlike))

    @span
    def refine(self, query: QueryType, like: Sequence[str] = (), unlike: Sequence[str] = ()) -> Refinement:
        """Retrieve, and return how the query moved, what was graded and what it cost.

        :param query: the query; a bundle that brings its embedding is not embedded again.
        :param like: ids of nodes that answers should be like, for this call alone.
        :param unlike: ids of nodes that answers should be unlike.
        :return: the refinement, with the nodes that `retrieve` would return.
        :raises Exception: the embedding or the first search failed; with on_error="raise", anything that failed.
        """
        (outcome,) = run([self._retrieved(self._pipeline(), with_examples(query, like, unlike))])
        return _refinement(outcome)

    @span
    async def arefine(self, query: QueryType, like: Sequence[str] = (), unlike: Sequence[str] = ()) -> Refinement:
        """Refine without blocking the event loop. See `refine`."""
        (outcome,) = await arun([self._retrieved(self._pipeline(), with_examples(query, like, unlike))])
        return _refinement(outcome)

    @span
    def refine_batch(
        self, queries: Sequence[QueryType], batch_size: int = 32, return_exceptions: bool = False
    ) -> list[Any]:
        """Refine many queries, whose searches share requests to Qdrant and whose optimisations share a batch.

        :param queries: the queries; a `QueryWithExamples` brings examples of its own.
        :param batch_size: how many queries run at a time, at least 1; this limits the memory used.
        :param return_exceptions: return a failed query's exception in its place; otherwise the first one is raised
            when all queries of its batch are done.
        :return: one `Refinement` for each query.
        :raises Exception: as for `refine`.
        """
        results = []
        for batch in in_batches(queries, batch_size):
            pipeline = self._pipeline()
            outcomes = run([self._retrieved(pipeline, query) for query in batch])
            results += _each(outcomes, return_exceptions, _refinement)
        return results

    @span
    async def arefine_batch(
        self, queries: Sequence[QueryType], batch_size: int = 32, return_exceptions: bool = False
    ) -> list[Any]:
        """Refine many queries without blocking the event loop. See `refine_batch`."""
        results = []
        for batch in in_batches(queries, batch_size):
            pipeline = self._pipeline()
            outcomes = await arun([self._retrieved(pipeline, query) for query in batch])
            results += _each(outcomes, return_exceptions, _refinement)
        return results

    def retrieve_batch(
        self, queries: Sequence[QueryType], batch_size: int = 32, return_exceptions: bool = False
    ) -> list[Any]:
        """Retrieve for many queries. See `refine_batch`.

        :return: what `retrieve` returns, for each query.
        """
        self._check_callback_manager()
        results: list[Any] = []
        for batch in in_batches(queries, batch_size):
            for query, refinement in zip(batch, self.refine_batch(batch, batch_size, return_exceptions), strict=True):
                results.append(at_once(self._followed(query, refinement, return_exceptions, blocks=True)))
        return results

    async def aretrieve_batch(
        self, queries: Sequence[QueryType], batch_size: int = 32, return_exceptions: bool = False
    ) -> list[Any]:
        """Retrieve for many queries without blocking the event loop. See `retrieve_batch`."""
        self._check_callback_manager()
        results: list[Any] = []
        for batch in in_batches(queries, batch_size):
            refinements = await self.arefine_batch(batch, batch_size, return_exceptions)
            for query, refinement in zip(batch, refinements, strict=True):
                results.append(await self._followed(query, refinement, return_exceptions, blocks=False))
        return results

    @span
    def select(
        self,
        query: QueryType,
        *,
        precision: float | None = None,
        recall: float | None = None,
        confidence: float = 0.9,
        budget: int | Budget | None = None,
        about: Literal["teacher", "people"] = "teacher",
    ) -> Selection:
        """Return every node of the collection that belongs to a query, with the probability that it does.

        Without a target, the cut is where the expected F1 is highest. With one, the teacher grades documents drawn at
        random to check it, as far as the budget goes. The other of precision and recall is then as high as possible.

        :param query: the query; a `QueryWithExamples` brings examples of its own.
        :param precision: a target: at least this share of the selected nodes is relevant, in (0, 1).
        :param recall: a target: at least this share of the relevant nodes is selected, in (0, 1).
        :param confidence: the probability that a certified target holds, in (0, 1).
        :param budget: the most documents to grade, including those that refine the query, or a `Budget`. None is twice
            as many documents as refine the query, and five times as many with a target.
        :param about: who says what is relevant: the "teacher", or "people" as far as the calibration tells. A certified
            precision is then the one that people would find, and the risk includes the doubt of few labels.
        :return: the selection; its `reason` says why a target is not certified.
        :raises ValueError: a target outside (0, 1), or two; a budget that is too small; an empty collection; "people"
            without a calibration, or with recall.
        :raises Exception: as for `refine`.
        """
        target = Target(precision, recall, confidence, budget, about)
        return _selection(run(self._selections([with_examples(query)], target))[0])

    @span
    async def aselect(
        self,
        query: QueryType,
        *,
        precision: float | None = None,
        recall: float | None = None,
        confidence: float = 0.9,
        budget: int | Budget | None = None,
        about: Literal["teacher", "people"] = "teacher",
    ) -> Selection:
        """Select without blocking the event loop. See `select`."""
        target = Target(precision, recall, confidence, budget, about)
        (outcome,) = await arun(self._selections([with_examples(query)], target))
        return _selection(outcome)

    @span
    def select_batch(
        self,
        queries: Sequence[QueryType],
        *,
        precision: float | None = None,
        recall: float | None = None,
        confidence: float = 0.9,
        budget: int | Budget | None = None,
        about: Literal["teacher", "people"] = "teacher",
        batch_size: int = 32,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Select for many queries, which share requests to Qdrant. See `select`.

        :param queries: the queries.
        :param batch_size: how many queries run at a time, at least 1.
        :param return_exceptions: return a failed query's exception in its place; otherwise the first one is raised
            when all queries of its batch are done.
        :return: one `Selection` for each query. `confidence` is each one's, not that of all of them together.
        """
        target, selections = Target(precision, recall, confidence, budget, about), []
        for batch in in_batches(queries, batch_size):
            selections += _each(run(self._selections(batch, target)), return_exceptions, _selection)
        return selections

    @span
    async def aselect_batch(
        self,
        queries: Sequence[QueryType],
        *,
        precision: float | None = None,
        recall: float | None = None,
        confidence: float = 0.9,
        budget: int | Budget | None = None,
        about: Literal["teacher", "people"] = "teacher",
        batch_size: int = 32,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Select for many queries without blocking the event loop. See `select_batch`."""
        target, selections = Target(precision, recall, confidence, budget, about), []
        for batch in in_batches(queries, batch_size):
            selections += _each(await arun(self._selections(batch, target)), return_exceptions, _selection)
        return selections

    def calibrate(self, judgements: Judgements) -> Calibration:
        """Have the teacher grade what people have judged, and say how far its grades are theirs.

        It asks for one grade a label; a `CachedGrader` asks for none twice, and goes on where it was stopped.

        :param judgements: (query, node id, relevant or not), each a label; or a memory in which people have judged; or
            a JSONL or CSV file with query, id and relevant.
        :return: the calibration, for the argument of that name.
        :raises ValueError: no label, or one that is none; a grader that answers by what people have judged.
        :raises OSError: the file cannot be read.
        :raises Exception: the embedding or a search failed; with on_error="raise", the teacher.
        """
        return run([calibrated(self._pipeline(), judgements)])[0].get()

    async def acalibrate(self, judgements: Judgements) -> Calibration:
        """Calibrate without blocking the event loop. See `calibrate`."""
        (outcome,) = await arun([calibrated(self._pipeline(), judgements)])
        return outcome.get()

    def judge(self, query: QueryType, node_id: str, grade: float, user: str | None = None) -> None:
        """Keep a person's judgement in the memory, for this query and, as far as they agree, for similar ones.

        :param query: the query.
        :param node_id: the node's id.
        :param grade: its relevance in [0, 1]: 1 for a thumb up, 0 for a thumb down.
        :param user: who judges; a later judgement of the node by the same user replaces it. None for the memory's
            current user.
        :raises ValueError: no grade, no memory, or a node that this retriever's searches cannot find.
        """
        run([self._pipeline().judge(with_examples(query), node_id, grade, user)])[0].get()

    async def ajudge(self, query: QueryType, node_id: str, grade: float, user: str | None = None) -> None:
        """Keep a person's judgement without blocking the event loop. See `judge`."""
        (outcome,) = await arun([self._pipeline().judge(with_examples(query), node_id, grade, user)])
        outcome.get()

    def with_filters(self, filters: MetadataFilters) -> RefinedRetriever:
        """Return a copy that searches only what both this retriever's restrictions and these filters match.

        :param filters: metadata filters.
        :return: a copy for these, which shares everything else.
        :raises ValueError: filters that hold no condition, or one that Qdrant does not know.
        :raises NotImplementedError: an operator that the store does not know.
        """
        if filters is None:
            raise ValueError("filters is None, which would exclude nothing: use the retriever itself")
        ours, copied = self._collection, copy.copy(self)
        options = replace(ours.options, filter=narrowed(ours.options.filter, read_filter(ours.store, filters)))
        copied._collection = QdrantCollection(ours.store, options, ours.background_size)
        return copied

    def as_tools(self, prefix: str = "", about: str | None = None) -> list[FunctionTool]:
        """Offer this retriever to agents as tools: `find`, and for one dense vector `find_all` and `classify`.

        A retriever with a memory also has the tool `judge`, which writes there. The others only read. One with a boost
        lacks `find_all`.

        :param prefix: what the tools' names begin with, where an agent has several retrievers.
        :param about: what the collection holds, in a sentence for the agent.
        :return: the tools, whose answers are short texts.
        """
        from llama_index_refine.tools import Arguments, Classify, Find, FindAll, Judge, Library, tools_of

        plain, options = copy.copy(self), self._collection.options
        plain._grader, plain._questions, plain.memory, plain.score = FeedbackGrader(), None, None, "similarity"
        dense = not (options.hybrid or options.multivector or options.sparse_alone)
        kinds: list[type[Arguments]] = [Find]
        kinds += [FindAll] if dense and options.boost is None else []
        kinds += [Classify] if dense else []
        kinds += [Judge] if self.memory is not None else []
        return tools_of(Library(self, plain), kinds, prefix, about)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self.refine(query_bundle).nodes)

    @span
    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list((await self.arefine(query_bundle)).nodes)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"grader": self.grader}

    async def _followed(self, query: QueryBundle, refinement: Any, return_exceptions: bool, blocks: bool) -> Any:
        """Return a query's nodes, with what the objects among them retrieve; or the exception."""
        if isinstance(refinement, Exception):
            return refinement
        nodes = [*refinement.nodes]
        try:
            if blocks:
                return self._handle_recursive_retrieval(query, nodes)
            return await self._ahandle_recursive_retrieval(query, nodes)
        except Exception as error:
            if not return_exceptions:
                raise
            return error

    async def _admits_any(self) -> bool:
        """Say whether any document passes the filters; True where that cannot be asked, as a search then says why."""
        (counted,) = await arun([self._collection.population()])
        return isinstance(counted.result, Exception) or counted.result > 0

    async def _retrieved(self, pipeline: Pipeline, query: QueryBundle) -> Refinement:
        """Retrieve for one query: part by part, by similarity or by probability."""
        if self._questions is not None:
            refinement = await retrieve_parts(pipeline, self._questions, query)
        elif self.score == "similarity":
            refinement, _ = await pipeline.retrieve(query)
        else:
            await check(self._collection)
            refinement, feedback = await pipeline.retrieve(query)
            refinement = await with_probabilities(pipeline, refinement, feedback)
        if self.answerable is not None:
            refinement = withheld(refinement, self.answerable)
        return await self._finished(refinement)

    def _selections(self, queries: Sequence[QueryBundle], target: Target) -> list[Work[Selection]]:
        """Describe the selection for each of some queries."""
        if self._collection.options.multivector is not None:
            raise ValueError("select reads the whole ranking, which takes too long with multivector_query_fn")
        pipeline = replace(self._pipeline(), early_stop=False, helped_top_k=DEPTH)
        return [self._selected(pipeline, query, target) for query in queries]

    async def _selected(self, pipeline: Pipeline, query: QueryBundle, target: Target) -> Selection:
        selection = await select_nodes(pipeline, self.calibration, query, target)
        refinement = await self._finished(selection.refinement)
        return replace(selection, nodes=refinement.nodes, refinement=refinement, embed_model=self._embed_model)

    async def _finished(self, refinement: Refinement) -> Refinement:
        if self._docstore is not None:
            refinement = await self._docstore.complete(refinement, self.on_error)
        if refinement.parts:
            refinement = with_parts(refinement)
        return annotated(refinement) if self.node_metadata else refinement

    @cached_property
    def _grading(self) -> Grading:
        return Grading(self.grader, reliability_of(self.grader))

    def _pipeline(self) -> Pipeline:
        collection, top_k, memory = self._collection, self.feedback_top_k, self.memory
        grading, grader = self._grading, self._grading.grader
        teacher: Teacher
        if isinstance(self.trust, (int, float)):
            teacher = FixedTrust(self.trust)
        elif self.trust is not None:
            teacher = self.trust
        else:
            teacher = FixedTrust(1.0) if grader.trusted else grading.record
        if self._calibration is not None:
            teacher.rates = self._calibration.errors()
        embedding, limit = Embedding(lambda: self.embed_model), self._hybrid_top_k or self._similarity_top_k
        return Pipeline(
            collection,
            embedding,
            grading,
            teacher,
            self._refining,
            Remembering(memory, collection, grader, embedding, top_k) if memory is not None else None,
            limit,
            limit,
            top_k,
            self.rounds,
            self.early_stop,
            self.budget,
            self.on_error,
        )


def _refinement(outcome: Outcome[Refinement]) -> Refinement:
    """Return a refinement with its timings, and tell LlamaIndex's instrumentation of it."""
    refinement = outcome.get()
    refinement.timings = outcome.seconds
    tell(lambda: RefinementEvent.of(refinement))
    return refinement


def _selection(outcome: Outcome[Selection]) -> Selection:
    selection = outcome.get()
    return replace(selection, refinement=replace(selection.refinement, timings=outcome.seconds))


def _each(outcomes: Sequence[Outcome[T]], return_exceptions: bool, taken: Callable[[Outcome[T]], T]) -> list[Any]:
    """Return what is taken of each outcome, or its exception, unless the first of those is to be raised."""
    return [
        outcome.result if return_exceptions and isinstance(outcome.result, Exception) else taken(outcome)
        for outcome in outcomes
    ]
