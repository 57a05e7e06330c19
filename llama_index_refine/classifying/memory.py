"""What a classifier has learnt: each label's query, and the documents that were graded for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from llama_index_refine.classifying.scores import Lesson
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.refiner import QueryRefiner
from llama_index_refine.similarity import SHORTEST, Metric, similarity

Floats = NDArray[np.float32]


@dataclass
class Label:
    """One label.

    :param text: what was searched for.
    :param query: (d,) its vector before.
    :param vector: (d,) and after.
    :param documents: (K, d) graded documents.
    :param grades: (K,) in [0, 1].
    :param trust: (K,) how far each grade is believed, in [0, 1].
    :param held_out: (K,) their similarity to the vector, as the other grades predict it.
    """

    text: str
    query: Floats
    vector: Floats
    documents: Floats
    grades: Floats
    trust: Floats
    held_out: Floats
    stale: bool = False


@dataclass
class Memory:
    """All labels, and the collection they are compared over.

    :param labels: by name.
    :param sample: (N, d) documents drawn at random.
    :param population: how many documents there are.
    :param metric: the collection's distance.
    :param sees: the probability that the teacher sees relevance at all.
    """

    labels: dict[str, Label]
    sample: Floats
    population: int
    metric: Metric
    sees: float
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = list(self.labels)

    @classmethod
    def of(
        cls,
        texts: Mapping[str, str],
        refinements: Sequence[Refinement],
        sample: Floats,
        population: int,
        metric: Metric,
        sees: float,
    ) -> Memory:
        """Keep what refining the labels' queries found out.

        :param texts: the labels and what was searched for.
        :param refinements: how each moved.
        :param sample: (N, d) documents drawn at random.
        :param population: how many documents there are.
        :param metric: the collection's distance.
        :param sees: the probability that the teacher sees relevance at all.
        :return: the memory.
        """
        labels = {}
        for (name, text), refinement in zip(texts.items(), refinements, strict=True):
            documents, grades, held = (
                np.asarray(values, dtype=np.float32)
                for values in (refinement.documents, refinement.grades, refinement.held_out)
            )
            trust = np.full(len(grades), refinement.trust, dtype=np.float32)
            query, vector = (np.asarray(one, dtype=np.float32) for one in (refinement.query, refinement.vector))
            labels[name] = Label(text, query, vector, documents, grades, trust, held)
        return cls(labels, np.asarray(sample, dtype=np.float32), population, metric, sees)

    def judge(self, name: str, document: Floats, grade: float) -> None:
        """Take in what a person says of a document; what was said of it before no longer counts.

        :param name: the label.
        :param document: (d,) its vector.
        :param grade: in [0, 1].
        """
        label = self.labels[name]
        documents = np.concatenate([label.documents.reshape(-1, len(document)), document[None]])
        rows = documents
        if self.metric == "cosine":
            # A text is embedded at any length, and Qdrant keeps vectors of length 1.
            rows = documents / np.maximum(np.linalg.norm(documents, axis=1, keepdims=True), SHORTEST)
        others = ~np.isclose(rows[:-1], rows[-1], atol=1e-6).all(1)
        label.documents = documents[np.append(others, True)]
        label.grades = np.append(label.grades[others], np.float32(grade))
        label.trust = np.append(label.trust[others], np.float32(1))
        label.stale = True

    def lessons(self) -> list[Lesson]:
        """Return what is known of each label, refined again where people have judged since."""
        for label in self.labels.values():
            if label.stale:
                self._refine(label)
        return [
            Lesson(
                label.vector,
                label.held_out.astype(np.float64),
                label.grades.astype(np.float64),
                label.documents,
                float(label.trust.max(initial=self.sees)),
            )
            for label in self.labels.values()
        ]

    def _refine(self, label: Label) -> None:
        label.stale = False
        if len(label.grades) < 2:
            rows = torch.from_numpy(label.documents)
            label.held_out = similarity(torch.from_numpy(label.vector), rows, self.metric).numpy()
            return
        refinement = QueryRefiner(self.metric).refine(
            label.query,
            label.documents,
            label.grades,
            self.sample[:30],
            population=self.population,
            trust=label.trust,
        )
        label.vector, label.held_out = np.asarray(refinement.vector), np.asarray(refinement.held_out)

    def to_file(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return tensors and facts."""
        labels = list(self.labels.values())
        tensors: dict[str, NDArray[Any]] = {
            "sample": self.sample,
            "queries": np.stack([label.query for label in labels]),
            "vectors": np.stack([label.vector for label in labels]),
            "documents": np.concatenate([label.documents.reshape(-1, self.sample.shape[1]) for label in labels]),
            **{
                name: np.concatenate([getattr(label, name) for label in labels])
                for name in ("grades", "trust", "held_out")
            },
        }
        facts = {
            "labels": [
                {"name": name, "text": one.text, "graded": len(one.grades)} for name, one in self.labels.items()
            ],
            "population": self.population,
            "metric": self.metric,
            "sees": self.sees,
        }
        return tensors, facts

    @classmethod
    def from_file(cls, tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Memory:
        """Read what `to_file` returned.

        :raises KeyError: something is missing.
        :raises ValueError: something does not fit.
        """
        named, counts = facts["labels"], [int(one["graded"]) for one in facts["labels"]]
        if facts["metric"] not in get_args(Metric):
            raise ValueError(f"it has the metric {facts['metric']!r}")
        size = tensors["sample"].shape[1]
        if tensors["vectors"].shape != (len(named), size) or tensors["queries"].shape != (len(named), size):
            raise ValueError("its labels and vectors do not fit")
        total = sum(counts)
        if tensors["documents"].shape != (total, size) or any(
            tensors[name].shape != (total,) for name in ("grades", "trust", "held_out")
        ):
            raise ValueError("its grades and documents do not fit")
        ends = np.cumsum(counts)
        parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        labels = {
            str(one["name"]): Label(
                str(one["text"]),
                tensors["queries"][at],
                tensors["vectors"][at],
                tensors["documents"][parts[at]],
                tensors["grades"][parts[at]],
                tensors["trust"][parts[at]],
                tensors["held_out"][parts[at]],
            )
            for at, one in enumerate(named)
        }
        return cls(labels, tensors["sample"], int(facts["population"]), facts["metric"], float(facts["sees"]))
