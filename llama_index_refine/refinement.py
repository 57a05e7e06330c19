"""What one refinement found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from llama_index.core.schema import NodeWithScore
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from torch import Tensor

    from llama_index_refine.similarity import Metric

    Array = np.ndarray | Tensor


@dataclass(repr=False)
class Refinement:
    """How one query moved. From a retriever, also what was graded, what was found and what it cost.

    Arrays are float32. They are numpy or torch, as the query was; a retriever's are numpy.

    :param query: (d,) the vector before; (T, d), with a vector a token, where a multivector is searched.
    :param vector: (d,) the refined vector, or the query itself if nothing was refined. For a multivector (T, d); under
        cosine, its tokens have length 1 on average. For a sparse vector, the weights of the terms that query and
        documents have, after the dense vector if there is one. Their scale is not the collection's: to search again,
        use `vectors`.
    :param documents: (K, d) the graded documents; of a multivector (K, T, d): for each of the query's tokens, the
        vector of the document that it matched best.
    :param grades: (K,) their grades in [0, 1].
    :param background: (N, d) documents taken as irrelevant; (N, T, d) of a multivector.
    :param target: (K + N,) the distribution the student was drawn to; graded documents first, as in the next two.
    :param student_before: (K + N,) the student's distribution at `query`.
    :param student_after: (K + N,) the student's distribution at `vector`.
    :param fused: (K,) similarity of each graded document to `vector`, with its own grade weighed in. The returned order
        follows it.
    :param held_out: (K,) the same, predicted from the other documents' grades alone.
    :param kl_before: KL divergence of student_before from target, in nats.
    :param kl_after: KL divergence of student_after from target, in nats.
    :param tau: the student's temperature: the similarity, in the collection's units, that counts as one nat.
    :param trust: the share of the step taken, in [0, 1].
    :param iterations: Newton steps, or the published procedure's Adam steps.
    :param converged: whether the optimum was reached to within the tolerance.
    :param seconds: time the optimisation took; of a batch, the whole batch's.
    :param metric: the distance that the vectors are compared by: cosine, dot or euclid.
    :param vectors: the refined query as Qdrant takes it, by the name of the vector that it searches: an array, or a
        sparse vector. Empty if no retriever made it.
    :param path: the refined vector after each round, the last one being `vector`.
    :param query_str: the query's text.
    :param image_path: the query's image, None where it has none.
    :param image_folders: the folders whose images may be shown, because the teacher may read them.
    :param nodes_before: what the first search found.
    :param nodes: what the retriever returns.
    :param graded_nodes: the nodes behind `documents`, with their score in the search that found them.
    :param ungraded: how many nodes the teacher was shown and did not grade.
    :param failures: why nodes were left ungraded, each reason once.
    :param rounds: how many times the teacher was asked.
    :param saved_grades: how many grades early stopping left out, because they would hardly have changed the nodes.
    :param timings: seconds spent in each stage.
    :param llm_calls: calls that the teacher made.
    :param prompt_tokens: tokens sent, as far as the API says.
    :param completion_tokens: tokens received, as far as the API says.
    :param cached_grades: grades that a cache answered.
    :param remembered: grades that a memory had for this very query.
    :param borrowed: grades that a memory had for similar queries and that took part. `grades` does not include them.
    :param answerable: the probability that at least one of the nodes is relevant, in [0, 1]; None if nothing was
        refined. For a split query, the greatest of its parts.
    :param parts: the refinement of each part of a split query. The parts have the vectors.
    :param reason: why nothing was refined, or why no nodes are returned; None if the nodes come from a second search.
    """

    query: Array
    vector: Array
    documents: Array
    grades: Array
    background: Array
    target: Array
    student_before: Array
    student_after: Array
    fused: Array
    held_out: Array
    kl_before: float = 0.0
    kl_after: float = 0.0
    tau: float = 0.0
    trust: float = 0.0
    iterations: int = 0
    converged: bool = False
    seconds: float = 0.0
    metric: Metric = "cosine"
    vectors: Mapping[str, Any] = field(default_factory=dict)
    path: Sequence[Array] = ()
    query_str: str = ""
    image_path: str | None = None
    image_folders: Sequence[Path] = ()
    nodes_before: Sequence[NodeWithScore] = ()
    nodes: Sequence[NodeWithScore] = ()
    graded_nodes: Sequence[NodeWithScore] = ()
    ungraded: int = 0
    failures: Sequence[str] = ()
    rounds: int = 0
    saved_grades: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    llm_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_grades: int = 0
    remembered: int = 0
    borrowed: int = 0
    answerable: float | None = None
    parts: Sequence[Refinement] = ()
    reason: str | None = None

    @property
    def refined(self) -> bool:
        """Whether the query moved, and the nodes come from a second search."""
        return self.reason is None

    @property
    def gained(self) -> list[NodeWithScore]:
        """The returned nodes that the first search had not returned, best first."""
        return _without(self.nodes, self.nodes_before)

    @property
    def lost(self) -> list[NodeWithScore]:
        """The nodes that the first search had returned and that are not returned any more, best first."""
        return _without(self.nodes_before, self.nodes)

    @property
    def grade_of(self) -> dict[str, float]:
        """The grade in [0, 1] of each graded node, by node id; for a split query, the greatest of its parts'."""
        grades: dict[str, float] = {}
        for entry, grade in zip(self.graded_nodes, self.grades, strict=False):
            grades[entry.node_id] = max(float(grade), grades.get(entry.node_id, 0.0))
        return grades

    @property
    def rank_before(self) -> dict[str, int]:
        """The rank, from 1, of each node that the first search returned, by node id."""
        return {entry.node_id: rank for rank, entry in enumerate(self.nodes_before, 1)}

    def __repr__(self) -> str:
        from llama_index_refine.display.moves import clean, effect

        return f"<{type(self).__name__} of {clean(self.query_str, 80)!r}. {effect(self)}>"

    def _repr_html_(self) -> str:
        from llama_index_refine.display.html import to_html

        return to_html(self)

    def __rich__(self) -> RenderableType:
        from llama_index_refine.display.table import to_table

        return to_table(self)

    def plot(self) -> Figure:
        """Draw how the query moved: scores before and after, its path among the documents, target and student.

        :return: a matplotlib figure, in which the documents are coloured by their grade.
        :raises ImportError: matplotlib is missing; the message says how to install it.
        :raises ValueError: nothing was refined.
        """
        if self.parts:
            raise ValueError("the query was split, and its parts have vectors of their own: plot each of `parts`")
        from llama_index_refine.display.figure import draw

        return draw(self)

    def to_dict(self, vectors: bool = False, texts: bool = False) -> dict[str, Any]:
        """Write it for a log: what was found, what was graded and what it cost, in numbers and strings.

        :param vectors: with the vectors of query, documents and background.
        :param texts: with the nodes' texts.
        :return: a dictionary for JSON, with None for a number that is not finite.
        """
        from llama_index_refine.display.record import to_dict

        return to_dict(self, vectors, texts)

    def to_json(self, vectors: bool = False, texts: bool = False) -> str:
        """Write `to_dict` as one line of strict JSON."""
        return json.dumps(self.to_dict(vectors, texts), allow_nan=False, ensure_ascii=False)

    @classmethod
    def unmoved(cls, query: np.ndarray, query_str: str, nodes: Sequence[NodeWithScore]) -> Refinement:
        """Return the refinement of a query that has not moved yet.

        :param query: (d,) its vector.
        :param query_str: its text.
        :param nodes: what the first search found.
        :return: the refinement; whoever makes it says the `reason`.
        """
        none, rows = query.ravel()[:0], query[None][:0]
        return cls(
            query=query,
            vector=query,
            documents=rows,
            grades=none,
            background=rows,
            target=none,
            student_before=none,
            student_after=none,
            fused=none,
            held_out=none,
            query_str=query_str,
            nodes_before=nodes,
            nodes=nodes,
        )


def _without(nodes: Sequence[NodeWithScore], others: Sequence[NodeWithScore]) -> list[NodeWithScore]:
    there = {entry.node_id for entry in others}
    return [entry for entry in nodes if entry.node_id not in there]
