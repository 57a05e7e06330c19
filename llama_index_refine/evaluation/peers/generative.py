"""Peers that ask an LLM more than for grades: HyDE and LLMRerank, both LlamaIndex's own."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import TokenCountingHandler
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms import LLM
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.schema import NodeWithScore, TextNode

from llama_index_refine.evaluation.cache import Answers
from llama_index_refine.evaluation.peers.base import Bill, Evidence, Floats, Peer, VectorPeer
from llama_index_refine.graders.llm import LLMGrader
from llama_index_refine.ids import key_of

logger = logging.getLogger(__name__)

Advance = Callable[[], None]

# Documents in one call of LLMRerank.
_BATCH = 10


class _Asking:
    """Asks an LLM once for each question, keeps the answer with what it cost, and adds up the bill."""

    def __init__(self, llm: LLM, answers: Answers, kind: str, advance: Advance) -> None:
        self.llm = llm
        self.answers = answers
        # A grader knows what of an LLM decides its answers: server, model and arguments of each call.
        self.kind = kind, LLMGrader(llm=llm).fingerprint()
        self.advance = advance
        self.bill = Bill()

    def ask(self, question: Sequence[str], answer: Callable[[], Any]) -> Any:
        key = key_of(*self.kind, *question)
        known = self.answers.get([key]).get(key)
        if known is None:
            with self._counted() as cost:
                found = answer()
            known = {"answer": found, "bill": asdict(cost)}
            self.answers.put({key: known})
        for part, amount in known["bill"].items():
            setattr(self.bill, part, getattr(self.bill, part) + amount)
        self.advance()
        return known["answer"]

    @contextmanager
    def _counted(self) -> Iterator[Bill]:
        counter, cost, started = TokenCountingHandler(), Bill(), time.perf_counter()
        self.llm.callback_manager.add_handler(counter)
        try:
            yield cost
        finally:
            self.llm.callback_manager.remove_handler(counter)
            cost.calls = len(counter.llm_token_counts)
            cost.prompt_tokens = counter.prompt_llm_token_count
            cost.completion_tokens = counter.completion_llm_token_count
            cost.seconds = time.perf_counter() - started


class HyDE(VectorPeer):
    """The mean of the query's vector and that of a document the LLM invents for it (`HyDEQueryTransform`)."""

    name = "hyde"
    uses_grades = False
    needs_llm = True

    def __init__(self, llm: LLM, answers: Answers, embed_model: BaseEmbedding, advance: Advance) -> None:
        """Set up. See `Peer.needs_llm`."""
        self._transform = HyDEQueryTransform(llm=llm, include_original=False)
        self._embed_model = embed_model
        self._asking = _Asking(llm, answers, self.name, advance)

    @classmethod
    def calls(cls, graded: int) -> int:
        """See `Peer.calls`."""
        return 1

    @property
    def bill(self) -> Bill:
        """One call for each query."""
        return self._asking.bill

    def vectors(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Let the LLM write a document for each query and join its vector with the query's."""
        texts = [self._asking.ask([query.text], partial(self._write, query.text)) for query in queries]
        vectors = np.array(self._embed_model.get_text_embedding_batch(texts), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return [query.query + vector for query, vector in zip(queries, vectors, strict=True)]

    def _write(self, text: str) -> str:
        return self._transform(text).embedding_strs[0]


class LLMReranked(Peer):
    """The first documents as LlamaIndex's `LLMRerank` orders them; what it drops and the others stay as they were."""

    name = "llm rerank"
    uses_grades = False
    needs_llm = True
    similarities = False

    def __init__(self, llm: LLM, answers: Answers, embed_model: object, advance: Advance) -> None:
        """Set up. See `Peer.needs_llm`."""
        self._asking = _Asking(llm, answers, self.name, advance)

    @classmethod
    def calls(cls, graded: int) -> int:
        """See `Peer.calls`."""
        return math.ceil(graded / _BATCH)

    @property
    def bill(self) -> Bill:
        """One call for each batch of documents."""
        return self._asking.bill

    def scores(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Similarities, those of the documents that the LLM chose raised above all others."""
        found = []
        for query in queries:
            scores = query.documents @ query.query
            question = [query.text, *query.graded_texts]
            order = self._asking.ask(question, partial(self._order, query))
            for rank, place in enumerate(order):
                scores[query.graded[place]] = 10 + len(order) - rank
            found.append(scores)
        return found

    def _order(self, query: Evidence) -> list[int]:
        nodes = [NodeWithScore(node=TextNode(id_=str(i), text=text)) for i, text in enumerate(query.graded_texts)]
        reranker = LLMRerank(llm=self._asking.llm, choice_batch_size=_BATCH, top_n=len(nodes))
        try:
            chosen = reranker.postprocess_nodes(nodes, query_str=query.text)
        except (ValueError, IndexError, KeyError) as error:
            logger.warning("LLMRerank could not read the LLM's answer, the first order stays: %s", error)
            return []
        return [int(node.node.node_id) for node in chosen]
