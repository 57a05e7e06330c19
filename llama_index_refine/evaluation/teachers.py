"""Teachers made from human labels, and the choice of a teacher by name."""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.evaluation.datasets import Dataset
from llama_index_refine.graders.base import BaseGrader

QUALITIES = {"noisy": (0.933, 1.7), "weak": (0.76, 1.2), "random": (0.5, 1.2)}
"""Label noise by name: area under the ROC curve, and spread of the logit."""

YES_RATES = {
    "good": (0.9, 0.1),
    "strict": (0.5, 0.02),
    "lenient": (0.98, 0.5),
    "coin": (0.5, 0.5),
    "naysayer": (0.1, 0.1),
}
"""One-sided errors by name: the share of relevant and of irrelevant documents that gets a bare yes."""

_SHARPNESS = 1.5
_SPREAD = 1.5


@dataclass
class LabelledQuery(QueryBundle):
    """A query that knows its id in the data set, by which a label teacher finds its labels."""

    query_id: str = ""


def node_id(document_id: str) -> str:
    """The node id of a document, a UUID as Qdrant wants it."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, document_id))


class LabelTeacher(BaseGrader):
    """Grades with the human labels: 1 for relevant, 0 for every other pair."""

    def __init__(self, dataset: Dataset) -> None:
        """:param dataset: where the labels are; its queries come as `LabelledQuery`."""
        super().__init__()
        self.dataset = dataset
        self._documents = {node_id(document.id): document.id for document in dataset.documents}

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        """Grade the nodes by their labels.

        :raises TypeError: the query is not a `LabelledQuery`.
        """
        if not isinstance(query, LabelledQuery):
            raise TypeError("a label teacher needs a LabelledQuery, which carries the query's id in the data set")
        labels = self.dataset.qrels.get(query.query_id, {})
        documents = [self._documents[node.node_id] for node in nodes]
        return [self._grade(query.query_id, document, labels.get(document, 0) > 0) for document in documents]

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        """Grade the nodes; there is nothing to wait for."""
        return self.grade(query, nodes)

    def _grade(self, query: str, document: str, relevant: bool) -> float | None:
        return float(relevant)


class NoisyTeacher(LabelTeacher):
    """Grades with labels and noise of a given quality; the same grade for the same pair in every run.

    The logit of a grade is normal around +m for relevant and -m for irrelevant pairs. Two normals 2m apart with spread
    s are told apart with area under ROC Phi(sqrt(2) m / s), which gives m.
    """

    def __init__(self, dataset: Dataset, auc: float, spread: float = _SPREAD) -> None:
        """Set the quality.

        :param auc: area under the ROC curve of the grades, in [0.5, 1): 0.5 is chance.
        :param spread: standard deviation of the logit, above 0; more makes bolder grades of the same quality.
        :raises ValueError: outside these ranges.
        """
        super().__init__(dataset)
        if not 0.5 <= auc < 1:
            raise ValueError(f"auc must be in [0.5, 1); got {auc}. For exact labels use LabelTeacher")
        if not spread > 0:
            raise ValueError(f"spread must be above 0; got {spread}")
        self.auc = auc
        self.spread = spread
        self._mean = NormalDist().inv_cdf(auc) * spread / math.sqrt(2)

    def _grade(self, query: str, document: str, relevant: bool) -> float:
        noise = self.spread * _drawn(self.dataset.name, query, document).normal()
        logit = (self._mean if relevant else -self._mean) + noise
        return float(1 / (1 + np.exp(-_SHARPNESS * logit)))


class YesNoTeacher(LabelTeacher):
    """Says a bare yes or no, and errs at a rate of its own in each direction; the same for the same pair in every run.

    Models err in one direction: some find nearly everything relevant, some nearly nothing.
    """

    def __init__(self, dataset: Dataset, of_relevant: float, of_irrelevant: float) -> None:
        """Set the rates.

        :param of_relevant: probability of a yes for a relevant document, in [0, 1].
        :param of_irrelevant: the same for an irrelevant one.
        :raises ValueError: a rate outside [0, 1].
        """
        super().__init__(dataset)
        for name, rate in (("of_relevant", of_relevant), ("of_irrelevant", of_irrelevant)):
            if not 0 <= rate <= 1:
                raise ValueError(f"{name} must be in [0, 1]; got {rate}")
        self._rates = of_irrelevant, of_relevant

    def _grade(self, query: str, document: str, relevant: bool) -> float:
        return float(_drawn(self.dataset.name, query, document).random() < self._rates[relevant])


class RecordedTeacher(LabelTeacher):
    """Gives the grades that a teacher gave before, as they are kept in a table; None where none is kept."""

    def __init__(self, dataset: Dataset, path: Path) -> None:
        """Read the table.

        :param path: a file as `read_grades` reads it.
        :raises ValueError: there is no such file, or it holds something else.
        """
        super().__init__(dataset)
        try:
            self._grades = read_grades(path)
        except (OSError, EOFError, zlib.error, KeyError, ValueError) as error:
            raise ValueError(f"{path} holds no recorded grades ({error}); write recorded:FOLDER/MODEL") from error

    def _grade(self, query: str, document: str, relevant: bool) -> float | None:
        return self._grades.get((query, document))


def read_grades(path: Path) -> dict[tuple[str, str], float]:
    """Read kept grades: a table with tabs, compressed by gzip, with the columns query, document and grade.

    :param path: the file.
    :return: grades by query id and document id.
    :raises OSError: there is no such file, or it is not compressed.
    :raises EOFError: the file ends too early; `zlib.error` where it is damaged.
    :raises KeyError: a column is missing.
    """
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        return {(row["query"], row["document"]): float(row["grade"]) for row in rows}


def _drawn(*pair: str) -> np.random.Generator:
    """A generator that is the same for the same pair of query and document."""
    digest = hashlib.blake2b("|".join(pair).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def make_teacher(name: str, dataset: Dataset, llm: LLM | None = None) -> BaseGrader:
    """Make a teacher from its name.

    :param name: `gold` (the labels), `noisy`, `weak` or `random` (the labels with noise, area under ROC .93, .76 and
        .5), `good`, `strict`, `lenient`, `coin` or `naysayer` (a bare yes or no, see `YES_RATES`), `auc:0.85` (any
        quality), `recorded:FOLDER/MODEL` (the kept grades in FOLDER/MODEL--DATA.tsv.gz), `cross-encoder` or
        `cross-encoder:MODEL`, or `llm`.
    :param dataset: whose labels to use.
    :param llm: the LLM of `llm`; None falls back to LlamaIndex's `Settings.llm`.
    :raises ValueError: unknown name, a quality that is not a number in [0.5, 1), or no kept grades.
    """
    kind, _, detail = name.partition(":")
    if kind == "gold":
        return LabelTeacher(dataset)
    if kind in QUALITIES:
        return NoisyTeacher(dataset, *QUALITIES[kind])
    if kind in YES_RATES:
        return YesNoTeacher(dataset, *YES_RATES[kind])
    if kind == "auc":
        try:
            return NoisyTeacher(dataset, float(detail))
        except ValueError as error:
            raise ValueError(f"teacher {name!r}: write the quality as in auc:0.85, in [0.5, 1)") from error
    if kind == "recorded":
        return RecordedTeacher(dataset, Path(f"{detail}--{dataset.name}.tsv.gz"))
    if kind == "cross-encoder":
        from llama_index_refine.graders.cross_encoder import CrossEncoderGrader

        return CrossEncoderGrader(detail) if detail else CrossEncoderGrader()
    if kind == "llm":
        from llama_index_refine.graders.llm import LLMGrader

        return LLMGrader(llm=llm)
    raise ValueError(
        f"unknown teacher {name!r}: use gold, {', '.join([*QUALITIES, *YES_RATES])}, auc:0.85, "
        "recorded:FOLDER/MODEL, cross-encoder, cross-encoder:MODEL or llm"
    )
