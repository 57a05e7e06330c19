"""A run: every data set with every embedding, teacher and number of graded documents; every method on each."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

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
from llama_index_refine.evaluation.peers import PEERS, HyDE, Peer, Rerank, choose_peers
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
from llama_index_refine.graders.llm import LLMGrader

logger = logging.getLogger(__name__)


@dataclass
class Benchmark:
    """What to measure. `run` does it.

    :param data: names of data sets, folders in BEIR's form, or data sets.
    :param embed_models: names: of precomputed vectors where a data set has them, `minilm`, or of a SentenceTransformer;
        or LlamaIndex embedding models.
    :param teachers: names as `make_teacher` takes them.
    :param peers: names of peers to measure beside, None for all; those that need an LLM only where one is given.
    :param feedback_top_k: how many documents are graded, one or several numbers, each at least 2.
    :param rerank_times: how many times as many documents reranking is given too, each at least 2: what reading deeper
        would have brought.
    :param max_queries: how many queries of each data set to draw, None for all.
    :param seed: of that draw.
    :param llm: for the teacher `llm` and the peers that need one.
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
        choose_peers(self.peers, self.llm is not None)

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

    def calls(self) -> dict[str, int]:
        """Say how many calls of LLMs it takes.

        :return: the most calls by each teacher and peer that asks one; what is in the cache is not asked again.
        :raises ValueError: a data set is not there.
        """
        queries = sum(len(dataset.sample(self.max_queries, self.seed)) for dataset in self._datasets)
        asked = queries * len(self.embed_models)
        # What is reranked and what is refined overlap, and deeper lists hold the others.
        depth = max(self.feedback_top_k) * max([1, *self.rerank_times])
        most = {"llm": asked * (depth + sum(self.feedback_top_k))} if "llm" in self.teachers else {}
        for name in choose_peers(self.peers, self.llm is not None):
            most[name] = asked * sum(map(PEERS[name].calls, self.feedback_top_k))
        return {name: calls for name, calls in most.items() if calls}

    def settings(self) -> dict[str, object]:
        """What it is run with, as JSON can hold it."""
        return {
            "data": [data.name if isinstance(data, Dataset) else str(data) for data in self.data],
            "embed_models": [_name_of(model) for model in self.embed_models],
            "teachers": list(self.teachers),
            "peers": choose_peers(self.peers, self.llm is not None),
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
        precomputed = {name for dataset in self._datasets for name in dataset.vectors}
        models: dict[str, BaseEmbedding] = {}
        for dataset in self._datasets:
            rows = dataset.sample(self.max_queries, self.seed)
            for model in self.embed_models:
                name = _name_of(model)
                if isinstance(model, str) and name in dataset.vectors:
                    yield read_vectors(dataset, name, rows)
                elif isinstance(model, str) and name in precomputed and name != PACKAGED:
                    logger.warning("%s has no vectors %s.npz and is skipped", dataset.name, name)
                else:
                    if name not in models:
                        models[name] = SentenceTransformerEmbedding(model) if isinstance(model, str) else model
                    total = len(dataset.documents) + len(rows)
                    bar = bars.add_task(f"{dataset.name}: embedding with {name}", total=total)
                    yield embed(dataset, name, models[name], rows, self._cache, partial(bars.advance, bar))

    @cached_property
    def _datasets(self) -> list[Dataset]:
        return [data if isinstance(data, Dataset) else load_dataset(str(data)) for data in self.data]

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
            [corpus.dataset.name, corpus.dataset.digest, corpus.embedding, [query.id for query in corpus.queries]],
            [teacher, k, self._grader(teacher, corpus.dataset).fingerprint()],
            LLMGrader(llm=self.llm).fingerprint() if self.llm is not None else None,
            corpus.vectors_digest,
        ]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]

    def _measure(self, corpus: Corpus, store: QdrantVectorStore, teacher: str, k: int, bars: Progress) -> Cell:
        label = _label(corpus, teacher, k)

        def bar(stage: str) -> Callable[[], None]:
            return partial(bars.advance, bars.add_task(f"{label}: {stage}", total=len(corpus.queries)))

        grader = self._grader(teacher, corpus.dataset)
        evidence, bills = gather(corpus, grader, k, bar(f"{teacher} grades"))
        judge = Judge(corpus)
        measured: dict[str, Measured] = {}
        skipped: dict[str, str] = {}
        for name in choose_peers(self.peers, self.llm is not None):
            if name == HyDE.name and (corpus.embed_model is None and corpus.embedding != PACKAGED):
                skipped[name] = f"needs the embedding model behind {corpus.embedding}.npz"
                continue
            peer = self._peer(name, corpus, bar)
            measured[name] = measure_peer(peer, evidence, judge, bills if peer.uses_grades else [])
        for times in self.rerank_times:
            deeper, deeper_bills = gather(corpus, grader, times * k, bar(f"{teacher} grades {times * k}"))
            measured[f"rerank {times * k}"] = measure_peer(Rerank(), deeper, judge, deeper_bills)
        last = bars.add_task(f"{label}: refining", total=len(corpus.queries))
        measured[REFINED], distribution = measure_refined(
            corpus, store, grader, k, judge, self.retriever_options, partial(bars.advance, last)
        )
        gain = f"MAP {measured[BASELINE].mean('MAP'):.3f} to {measured[REFINED].mean('MAP'):.3f}"
        bars.update(last, description=f"{label}: {gain}")
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

    def _peer(self, name: str, corpus: Corpus, bar: Callable[[str], Callable[[], None]]) -> Peer:
        kind: Any = PEERS[name]
        if not kind.needs_llm:
            return cast(Peer, kind())
        model = corpus.embed_model
        if model is None and name == HyDE.name:
            model = SentenceTransformerEmbedding(PACKAGED)
        return cast(Peer, kind(self.llm, self._answers, model, bar(f"{name} asks the LLM")))

    def _grader(self, teacher: str, dataset: Dataset) -> BaseGrader:
        """The teacher; one that costs is asked once for each pair."""
        grader = make_teacher(teacher, dataset, self.llm)
        if teacher.partition(":")[0] not in ("llm", "cross-encoder"):
            return grader
        return ReplayingGrader(grader, self._answers)

    @property
    def _answers(self) -> Answers:
        return Answers(self._cache / "answers.sqlite")


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
