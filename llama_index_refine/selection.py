"""What one selection found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, TextNode
from numpy.typing import NDArray

from llama_index_refine import storage
from llama_index_refine.refinement import Refinement
from llama_index_refine.selecting.cut import Interval
from llama_index_refine.similarity import METRICS, Metric, passes, score_of_similarity, similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNKNOWN = Interval(0.0, float("nan"), 1.0)


@dataclass(repr=False)
class Selection:
    """The nodes of a collection that belong to a query.

    A node is relevant if the teacher's grade is at least 0.5. Where the teacher errs, so do the numbers below.

    :param nodes: the nodes, most probable first; their score is the probability that they are relevant.
    :param threshold: Qdrant's score that separates what belongs from what does not, among nodes that nobody graded.
        Together with `vector` it is a query that you can store.
    :param vector: (d,) the refined vector.
    :param precision: the share of the nodes that is relevant: low, estimate, high.
    :param recall: the share of the collection's relevant nodes that is selected: low, estimate, high.
    :param expected_total: how many nodes of the collection are relevant, as estimated.
    :param graded: how many nodes were graded for it.
    :param certified: whether documents drawn at random have shown that the target is reached, with the confidence that
        you asked for. Then the low end of precision or recall is that bound; otherwise it is an estimate.
    :param reason: why it is not certified; None if it is.
    :param refinement: how the query moved, and what the grading cost.
    :param cuts: the expected precision and recall of every cut, for the picture.
    :param metric: the collection's distance.
    :param curve: (2, n) similarities to `vector`, rising, and the probability of relevance at each, for `match`.
    :param embed_model: embeds what `match` is given without a vector; None for `Settings.embed_model`.
    """

    nodes: Sequence[NodeWithScore]
    threshold: float
    vector: np.ndarray
    precision: Interval
    recall: Interval
    expected_total: float
    graded: int
    certified: bool
    reason: str | None
    refinement: Refinement
    cuts: Cuts = field(default_factory=lambda: Cuts((), (), (), 0))
    metric: Metric = "cosine"
    curve: NDArray[np.float64] = field(default_factory=lambda: np.empty((2, 0)))
    embed_model: BaseEmbedding | None = None

    def __repr__(self) -> str:
        from llama_index_refine.display.moves import clean

        said = "certified" if self.certified else f"not certified: {self.reason}"
        return (
            f"<{type(self).__name__} for {clean(self.refinement.query_str, 80)!r}. {self.cuts.chosen} nodes of about "
            f"{self.expected_total:.0f} that are relevant; precision {_written(self.precision)}, recall "
            f"{_written(self.recall)}; {self.graded} graded; {said}>"
        )

    def match(self, nodes: Sequence[str | BaseNode | NodeWithScore]) -> list[NodeWithScore]:
        """Say which new documents belong to the query: those that pass `threshold`. No teacher is asked.

        :param nodes: nodes, by their own vector or else by their text; or texts.
        :return: those that belong, in the order given, with the probability that each is relevant as its score.
        :raises ValueError: nothing was selected, so that there is no threshold, or vectors of another model.
        """
        if isinstance(nodes, str):
            raise ValueError(f"nodes must be a list of nodes or texts; got the text {nodes[:40]!r}")
        if math.isnan(self.threshold) or not self.curve.size:
            raise ValueError(
                "this selection has no threshold to match by: nothing was selected, or all of its collection was graded"
            )
        if not nodes:
            return []
        plain = [TextNode(text=one) if isinstance(one, str) else one for one in nodes]
        taken = [one.node if isinstance(one, NodeWithScore) else one for one in plain]
        near = similarity(torch.tensor(self.vector), self._rows(taken), self.metric).double()
        inside = passes(score_of_similarity(near, self.metric), self.threshold, self.metric).tolist()
        likely = np.interp(near.numpy(), *self.curve).tolist()
        return [
            NodeWithScore(node=node, score=score)
            for node, score, belongs in zip(taken, likely, inside, strict=True)
            if belongs
        ]

    def _rows(self, nodes: Sequence[BaseNode]) -> torch.Tensor:
        vectors = {at: node.embedding for at, node in enumerate(nodes) if node.embedding is not None}
        rest = [at for at in range(len(nodes)) if at not in vectors]
        if rest:
            texts = [nodes[at].get_content(MetadataMode.EMBED) for at in rest]
            model = self.embed_model or Settings.embed_model
            vectors |= zip(rest, model.get_text_embedding_batch(texts), strict=True)
        size = self.vector.size
        if wrong := next((len(row) for row in vectors.values() if len(row) != size), 0):
            raise ValueError(
                f"nodes have vectors of {wrong} dimensions, but the query has {size}: embed both with the same model"
            )
        return torch.tensor([vectors[at] for at in range(len(nodes))], dtype=torch.float32)

    def save(self, path: str | Path) -> None:
        """Write what `match` needs and what is known of the selection, in safetensors' format with JSON in its header.

        The nodes are not in it, as they are in the collection, and neither are the texts of what was graded.

        :param path: the file, which is replaced.
        :raises OSError: it cannot be written.
        """
        numbers = [self.threshold, self.expected_total, *self.precision, *self.recall]
        facts: dict[str, Any] = {name: getattr(self, name) for name in ("graded", "certified", "reason", "metric")}
        facts["query_str"], facts["chosen"] = self.refinement.query_str, self.cuts.chosen
        facts["numbers"] = [None if math.isnan(number) else number for number in numbers]
        cuts = np.array([self.cuts.counts, self.cuts.precision, self.cuts.recall], dtype=np.float64)
        storage.write(path, "Selection", {"vector": self.vector, "curve": self.curve, "cuts": cuts}, facts)

    @classmethod
    def load(cls, path: str | Path, embed_model: BaseEmbedding | None = None) -> Selection:
        """Read what `save` wrote.

        :param path: the file.
        :param embed_model: embeds what `match` is given without a vector; None for `Settings.embed_model`.
        :return: the selection, without nodes.
        :raises OSError: it cannot be read.
        :raises ValueError: the file was not written by `save`.
        """
        tensors, facts = storage.read(path, "Selection")
        try:
            numbers = [float("nan") if one is None else float(one) for one in facts["numbers"]]
            threshold, total, *shares = numbers
            counts, precision, recall = tensors["cuts"]
            vector, curve = tensors["vector"], tensors["curve"]
            if facts["metric"] not in METRICS or vector.ndim != 1 or len(curve) != 2 or curve.ndim != 2:
                raise ValueError("its arrays have other shapes")
            return cls(
                [],
                threshold,
                vector,
                Interval(*shares[:3]),
                Interval(*shares[3:]),
                total,
                int(facts["graded"]),
                bool(facts["certified"]),
                facts["reason"],
                Refinement.unmoved(vector, str(facts["query_str"]), []),
                Cuts(counts.astype(int).tolist(), precision.tolist(), recall.tolist(), int(facts["chosen"])),
                facts["metric"],
                curve,
                embed_model,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path {path} is not a file that Selection.save wrote: {error}") from error

    def plot(self) -> Figure:
        """Draw the expected precision and recall against the cut, and where it was made.

        :return: a matplotlib figure.
        :raises ImportError: matplotlib is missing; the message says how to install it.
        :raises ValueError: there was nothing to select from.
        """
        from llama_index_refine.display.cuts import draw_cuts

        return draw_cuts(self.cuts, self.precision, self.recall)


@dataclass(frozen=True)
class Cuts:
    """What is expected of every cut.

    :param counts: how many nodes are above it, ascending.
    :param precision: the share of them that is relevant.
    :param recall: the share of the relevant ones that is above it.
    :param chosen: how many nodes were selected.
    """

    counts: Sequence[int]
    precision: Sequence[float]
    recall: Sequence[float]
    chosen: int


def _written(interval: Interval) -> str:
    return f"{interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})"
