"""A run: every data set with every embedding, teacher and number of graded documents; every method on each."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM
from llama_index.vector_stores.qdrant import QdrantVectorStore
from rich.progress import Progress

import llama_index_refine
from llama_index_refine.evaluation.cache import Answers, ReplayingGrader, default_cache_dir
from llama_index_refine.evaluation.corpus import Corpus, embed, read_vectors
from llama_index_refine.evaluation.datasets import Dataset
from llama_index_refine.evaluation.embeddings import PACKAGED, SentenceTransformerEmbedding
from llama_index_refine.evaluation.loading import load_dataset
from llama_index_refine.evaluation.measuring import Judge, gather, measure_peer, measure_refined
from llama_index_refine.evaluation.peers import Peer, Rerank, make_peers
from llama_index_refine.evaluation.results import (
    BASELINE,
    REFINED,
    Cell,
    Measured,
    Run,
    load_cell,
    save_cell,
)
from llama_index_refine.evaluation.teachers import make_teacher
from llama_index_refine.graders.base import BaseGrader

logger = logging.getLogger(__name__)


@dataclass
class Benchmark:
    """What to measure. `run` does it.

    :param data: names of data sets, folders in BEIR's form, or data sets.
    :param embed_models: names: of precomputed vectors where a data set has them, `minilm`, or of a SentenceTransformer;
        or LlamaIndex embedding models.
    :param teachers: names as `make_teacher` takes them.
    :param peers: names of peers to measure beside, None for all that need no LLM.
    :param feedback_top_k: how many documents are graded, one or several numbers, each at least 2.
    :param rerank_times: how many times as many documents reranking is given too, each at least 2: what reading deeper
        would have brought.
    :param max_queries: how many queries of each data set to draw, None for all.
    :param seed: of that draw.
    :param llm: for the teacher `llm`, and for HyDE and LLMRerank, which are measured when it is given.
    :param cache: folder for embeddings and grades, None for `default_cache_dir`.
    :param retriever_options: further arguments of `RefinedRetriever`.
    :raises ValueError: an argument outside its range.
    """

    data: Sequence[str | Path | Dataset]
    embed_models: Sequence[str | BaseEmbedding] = (PACKAGED,)
    teachers: Sequence[str] = ("gold",)
    peers: Sequence[str] | None = None
    feedback_top_k: Sequence[int] = (20,)
    rerank_times: Sequence[int] = ()
    max_queries: int | None = None
    seed: int = 1
    llm: LLM | None = None
    cache: str | Path | None = None
    retriever_options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("data", "embed_models", "teachers", "feedback_top_k"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if min(self.feedback_top_k) < 2:
            raise ValueError(f"feedback_top_k must be at least 2, got {min(self.feedback_top_k)}")
        if self.rerank_times and min(self.rerank_times) < 2:
            raise ValueError(f"rerank_times must be at least 2, got {min(self.rerank_times)}")
        if self.max_queries is not None and self.max_queries < 1:
            raise ValueError(f"max_queries must be at least 1, got {self.max_queries}")
        make_peers(self.peers)

    def run(self, out: str | Path | None = None, progress: Progress | None = None) -> Run:
        """Measure.

        :param out: a folder for what is finished; a run that was stopped goes on from there.
        :param progress: shows how far it is.
        :return: what was measured.
        :raises ValueError: a data set, teacher or embedding is not there.
        """
        bars = progress or Progress(disable=True)
        out = Path(out) if out is not None else None
        cells = [cell for corpus in self._corpora(bars) for cell in self._cells(corpus, out, bars)]
        found = Run(self.settings(), _machine(), cells)
        if out is not None:
            found.save(out)
        return found

    def settings(self) -> dict[str, object]:
        """What it is run with, as JSON can hold it."""
        return {
            "data": [data.name if isinstance(data, Dataset) else str(data) for data in self.data],
            "embed_models": [_name_of(model) for model in self.embed_models],
            "teachers": list(self.teachers),
            "peers": [peer.name for peer in make_peers(self.peers)],
            "feedback_top_k": list(self.feedback_top_k),
            "rerank_times": list(self.rerank_times),
            "max_queries": self.max_queries,
            "seed": self.seed,
            "llm": self.llm.metadata.model_name if self.llm else None,
            "retriever_options": {name: repr(value) for name, value in self.retriever_options.items()},
            "version": llama_index_refine.__version__,
        }

    def _corpora(self, bars: Progress) -> Iterator[Corpus]:
        """Load the data sets first, so that a wrong name is told at once, and embed each when its turn comes."""
        datasets = [data if isinstance(data, Dataset) else load_dataset(str(data)) for data in self.data]
        precomputed = {name for dataset in datasets for name in dataset.vectors}
        models: dict[str, BaseEmbedding] = {}
        for dataset in datasets:
            rows = dataset.sample(self.max_queries, self.seed)
            for model in self.embed_models:
                name = _name_of(model)
                if isinstance(model, str) and name in dataset.vectors:
                    yield read_vectors(dataset, name, rows)
                elif isinstance(model, str) and name in precomputed and name != PACKAGED:
                    logger.warning("%s has no vectors %s.npz and is left out for them", dataset.name, name)
                else:
                    if name not in models:
                        models[name] = SentenceTransformerEmbedding(model) if isinstance(model, str) else model
                    total = len(dataset.documents) + len(rows)
                    bar = bars.add_task(f"{dataset.name}: embedding with {name}", total=total)
                    yield embed(dataset, name, models[name], rows, self._cache, partial(bars.advance, bar))

    @property
    def _cache(self) -> Path:
        return Path(self.cache) if self.cache else default_cache_dir()

    def _cells(self, corpus: Corpus, out: Path | None, bars: Progress) -> Iterator[Cell]:
        store: QdrantVectorStore | None = None
        for teacher in self.teachers:
            for k in self.feedback_top_k:
                path = out / "cells" / f"{self._digest(corpus, teacher, k)}.json" if out else None
                if path is not None and path.is_file():
                    label = f"{_label(corpus, teacher, k)}: measured before, in {out}"
                    bars.add_task(label, total=len(corpus.queries), completed=len(corpus.queries))
                    yield load_cell(path)
                    continue
                store = store or corpus.store()
                cell = self._measure(corpus, store, teacher, k, bars)
                if path is not None:
                    save_cell(path, cell)
                yield cell

    def _digest(self, corpus: Corpus, teacher: str, k: int) -> str:
        """Names all that a cell's figures depend on, so that a changed run measures anew."""
        identity = [
            {**self.settings(), "data": 0, "embed_models": 0, "teachers": 0, "feedback_top_k": 0},
            [corpus.dataset.name, corpus.embedding, teacher, k, [query.id for query in corpus.queries]],
            hashlib.sha256(corpus.document_vectors.tobytes() + corpus.query_vectors.tobytes()).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]

    def _measure(self, corpus: Corpus, store: QdrantVectorStore, teacher: str, k: int, bars: Progress) -> Cell:
        label = _label(corpus, teacher, k)
        bar = bars.add_task(label, total=2 * len(corpus.queries))
        grader = self._grader(teacher, corpus.dataset)
        evidence, bills = gather(corpus, grader, k, lambda: bars.advance(bar))
        judge = Judge(corpus)
        measured: dict[str, Measured] = {}
        skipped: dict[str, str] = {}
        peers = make_peers(self.peers)
        if self.llm is not None:
            generative, skipped = self._generative(corpus)
            peers += generative
        for peer in peers:
            measured[peer.name] = measure_peer(peer, evidence, judge, bills if peer.uses_grades else [])
        for times in self.rerank_times:
            deeper, deeper_bills = gather(corpus, grader, times * k, lambda: None)
            measured[f"rerank {times * k}"] = measure_peer(Rerank(), deeper, judge, deeper_bills)
        measured[REFINED], distribution = measure_refined(
            corpus, store, grader, k, judge, self.retriever_options, lambda: bars.advance(bar)
        )
        bars.update(
            bar, description=f"{label}: MAP {measured[BASELINE].mean('MAP'):.3f} to {measured[REFINED].mean('MAP'):.3f}"
        )
        return Cell(
            corpus.dataset.name,
            corpus.embedding,
            teacher,
            k,
            len(corpus.dataset.documents),
            [query.id for query in corpus.queries],
            measured,
            distribution,
            skipped,
        )

    def _grader(self, teacher: str, dataset: Dataset) -> BaseGrader:
        """The teacher; one that costs is asked once for each pair."""
        grader = make_teacher(teacher, dataset, self.llm)
        if teacher.partition(":")[0] not in ("llm", "cross-encoder"):
            return grader
        return ReplayingGrader(grader, self._answers)

    @property
    def _answers(self) -> Answers:
        return Answers(self._cache / "answers.sqlite")

    def _generative(self, corpus: Corpus) -> tuple[list[Peer], dict[str, str]]:
        from llama_index_refine.evaluation.peers.generative import HyDE, LLMReranked

        assert self.llm is not None
        reranked = LLMReranked(self.llm, self._answers)
        if corpus.embed_model is None and corpus.embedding != PACKAGED:
            return [reranked], {HyDE.name: f"needs the embedding model behind {corpus.embedding}.npz"}
        model = corpus.embed_model or SentenceTransformerEmbedding(PACKAGED)
        return [HyDE(self.llm, model, self._answers), reranked], {}


def _label(corpus: Corpus, teacher: str, k: int) -> str:
    return f"{corpus.dataset.name} ({corpus.embedding}), {teacher}, {k} graded"


def _name_of(model: str | BaseEmbedding) -> str:
    return model if isinstance(model, str) else model.model_name


def _machine() -> dict[str, str]:
    return {
        "system": platform.system(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
