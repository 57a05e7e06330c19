"""Grades that a served LLM gave, kept in files, and given again without it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from llama_index.core import MockEmbedding
from llama_index.core.schema import BaseNode, QueryBundle
from numpy.typing import NDArray

from llama_index_refine import BaseGrader, RefinedRetriever
from llama_index_refine.evaluation.corpus import Corpus, filters_of, read_vectors
from llama_index_refine.evaluation.datasets import Dataset, load_folder
from llama_index_refine.evaluation.teachers import LabelledQuery, read_grades
from llama_index_refine.graders.account import Account

GRADES = Path(__file__).with_name("llm") / "grades"
PROMPT = "yes_no"
K = 20
# So many grades are lost at the most where a run is stopped.
_PART = 20
_COLUMNS = ("query", "document", "grade", "prompt")


@dataclass
class Kept:
    """The grades that one model gave on one collection, in a compressed table.

    :param path: the file; a `.json` beside it says what recording cost, and on what machine.
    :param prompt: how it was asked.
    """

    path: Path
    prompt: str = PROMPT
    grades: dict[tuple[str, str], float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, model: str, collection: str, prompt: str = PROMPT) -> Kept:
        """Read what is kept, nothing where there is nothing."""
        asked = "" if prompt == PROMPT else f"--{prompt.replace(' ', '-')}"
        kept = cls(folder / f"{model}--{collection}{asked}.tsv.gz", prompt)
        if kept.path.is_file():
            kept.grades = read_grades(kept.path)
        if kept._beside.is_file():
            told = json.loads(kept._beside.read_text(encoding="utf-8"))
            kept.cost, kept.about = told["cost"], told["about"]
        return kept

    @property
    def _beside(self) -> Path:
        return self.path.with_name(self.path.name.replace(".tsv.gz", ".json"))

    def save(self) -> None:
        """Write everything. The same grades give the same bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        table = csv.writer(text, delimiter="\t", lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows((*pair, f"{grade:.4f}", self.prompt) for pair, grade in sorted(self.grades.items()))
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
        unfinished.replace(self.path)
        told = json.dumps({"about": self.about, "cost": self.cost}, indent=1)
        self._beside.write_text(told + "\n", encoding="utf-8")


class RecordedGrader(BaseGrader):
    """Gives the grades that are kept; the others come from a teacher, or are counted as missing.

    :param kept: the grades.
    :param teacher: who is asked for the others, and its grades are kept; None for nobody.
    """

    def __init__(self, kept: Kept, teacher: BaseGrader | None = None) -> None:
        super().__init__()
        self.kept = kept
        self.teacher = teacher
        self.asked: set[tuple[str, str]] = set()

    @property
    def missing(self) -> int:
        """How many different grades were asked for that are not kept."""
        return len(self.asked - self.kept.grades.keys())

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        """Look the grades up. :raises TypeError: the query is not a `LabelledQuery`."""
        if not isinstance(query, LabelledQuery):
            raise TypeError("recorded grades need a LabelledQuery, which carries the query's id in the data set")
        pairs = [(query.query_id, str(node.metadata["document"])) for node in nodes]
        self.asked.update(pairs)
        new = [node for node, pair in zip(nodes, pairs, strict=True) if pair not in self.kept.grades]
        for start in range(0, len(new) if self.teacher is not None else 0, _PART):
            self._ask(self.teacher, query, new[start : start + _PART])
        return [self.kept.grades.get(pair) for pair in pairs]

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        """Look the grades up."""
        return self.grade(query, nodes)

    def _ask(self, teacher: BaseGrader, query: LabelledQuery, nodes: Sequence[BaseNode]) -> None:
        account, begun = Account(), time.monotonic()
        with account.active():
            grades = teacher.grade(query, nodes)
        spent = {
            "calls": account.calls,
            "prompt_tokens": account.prompt_tokens,
            "completion_tokens": account.completion_tokens,
            "seconds": time.monotonic() - begun,
        }
        for name, value in spent.items():
            self.kept.cost[name] = round(self.kept.cost.get(name, 0) + value, 1)
        for node, grade in zip(nodes, grades, strict=True):
            if grade is not None:
                # As it is kept, so that a run that goes on sees what one without a break would.
                self.kept.grades[query.query_id, str(node.metadata["document"])] = round(grade, 4)
        self.kept.save()
        # One answer to a list may be unreadable; many answers in a row are not.
        if account.calls != 1 and all(grade is None for grade in grades):
            sys.exit(f"the model gives no grades: {'; '.join(account.failures)}")


def chosen(dataset: Dataset, many: int) -> list[int]:
    """Rows of the queries to measure; asking for more than 12 or 20 adds to those."""
    drawn = [row for count in (12, 20, max(many, 20), None) for row in dataset.sample(count)]
    return list(dict.fromkeys(drawn))[:many]


def opened(spec: str, many: int) -> Corpus:
    """Read a collection and its vectors. :param spec: a folder, with the name of its vectors after a colon."""
    folder, _, vectors = spec.partition(":")
    dataset = load_folder(Path(folder))
    return read_vectors(dataset, vectors or "minilm", chosen(dataset, many))


def nearest(corpus: Corpus, row: int) -> list[int]:
    """Rows of the documents that a query searches, nearest first."""
    rows, vectors = corpus.searched(corpus.queries[row])
    return rows[np.argsort(-(vectors @ corpus.query_vectors[row]), kind="stable")].tolist()


def retriever(corpus: Corpus, store: object, row: int, grader: BaseGrader, **options: object) -> RefinedRetriever:
    """The retriever as an application has it, on the documents that this query searches."""
    embed_model = MockEmbedding(embed_dim=corpus.query_vectors.shape[1])
    return RefinedRetriever(store, embed_model, grader, filters=filters_of(corpus.queries[row]), **options)


def graded_rows(corpus: Corpus, kept: Kept) -> list[int]:
    """Return the rows of the queries whose first K documents are graded."""
    return [row for row in range(len(corpus.queries)) if not np.isnan(graded(corpus, kept, row)[0]).any()]


def graded(corpus: Corpus, kept: Kept, row: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Grades of the first K documents of a query, NaN where one is not kept, and whether they are relevant."""
    query, relevant = corpus.queries[row], corpus.dataset.relevant(corpus.queries[row])
    first = nearest(corpus, row)[:K]
    grades = [kept.grades.get((query.id, corpus.dataset.documents[at].id), np.nan) for at in first]
    return np.array(grades), np.array([at in relevant for at in first])
