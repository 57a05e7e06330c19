"""The sample's human labels as a teacher, for queries that are typed."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.evaluation.datasets import Dataset
from llama_index_refine.evaluation.teachers import node_id
from llama_index_refine.graders.base import BaseGrader


class SampleLabels(BaseGrader):
    """Grades 1 for relevant and 0 for every other document, if the query is one of the data set's own.

    :param dataset: where the labels are.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self._relevant = {
            _folded(query.text): {
                node_id(document) for document, label in dataset.qrels.get(query.id, {}).items() if label > 0
            }
            for query in dataset.queries
        }

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        """See `BaseGrader.grade`. Of any other query nothing is known."""
        relevant = self._relevant.get(_folded(query.query_str))
        return [None if relevant is None else float(node.node_id in relevant) for node in nodes]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
