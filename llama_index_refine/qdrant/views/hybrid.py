"""A dense and a sparse vector, refined as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from qdrant_client import models
from torch import Tensor
from torch.nn.functional import normalize

from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.requests import Hybrid
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.qdrant.views.dense import DenseQuery, Query, Row, View, stored
from llama_index_refine.qdrant.views.sparse import Terms, unmoved
from llama_index_refine.similarity import Metric, passes, score_of_similarity, similarity

if TYPE_CHECKING:
    from llama_index_refine.qdrant.background import Background

# The dense half's share of the joint similarity where nobody says: a flat optimum over three collections.
SHARE = 0.8
# Digits of a share that count. Of less than the last one float32 leaves no direction of the dense half.
DIGITS = 6
# How much longer than a document's way to the query the coordinate is that makes distances linear.
FAR = 100.0
# The best of a sum may lie further down in each of its parts.
DEEPER, LEAST_DEPTH = 2, 200


@dataclass(frozen=True)
class Half:
    """One of two similarities that are added.

    :param expression: it, weighed, in terms of Qdrant's score.
    :param sample: (n,) Qdrant's scores of documents drawn at random.
    :param falls: whether a smaller score is nearer.
    """

    expression: models.MultExpression
    sample: NDArray[np.float64]
    falls: bool = False

    def lowest(self, depth: int, population: int) -> float:
        """Estimate the lowest score of a ranking, which documents get that are not in it.

        :param depth: how deep it is.
        :param population: how many documents there are.
        :return: the score, by a normal distribution as the sample has it; the sample's worst where all are in it.
        """
        if not len(self.sample):
            return 0.0
        worst = self.sample.max() if self.falls else self.sample.min()
        if depth >= population:
            return float(worst)
        steps = NormalDist().inv_cdf(1 - depth / population) * (-1 if self.falls else 1)
        value = float(self.sample.mean() + steps * self.sample.std())
        # Documents that have none of a sparse query's terms score 0, and are in no ranking.
        return value if self.falls else max(value, float(worst))


@dataclass(frozen=True)
class Sum:
    """How the scores of two prefetches are added.

    :param halves: the dense one, and the sparse one.
    :param population: how many documents there are.
    :param constant: what is added to every score.
    """

    halves: tuple[Half, Half]
    population: int
    constant: float = 0.0

    def query(self, depths: Sequence[int]) -> models.FormulaQuery:
        """Write it in Qdrant's words, for prefetches of some depths."""
        halves = self.halves[: len(depths)]
        lowest = [half.lowest(depth, self.population) for half, depth in zip(halves, depths, strict=True)]
        return models.FormulaQuery(
            formula=models.SumExpression(sum=[*(half.expression for half in halves), self.constant]),
            defaults={f"$score[{at}]": value for at, value in enumerate(lowest)},
        )


class HybridQuery(Query):
    """The first of two rankings: fused by rank, or by the sum of their scores where the halves have been refined.

    :param near: the dense search.
    :param words: the sparse one's query.
    :param how: how the two become one.
    :param total: how scores are added, None for fusing.
    """

    fuses = True

    def __init__(self, near: DenseQuery, words: models.SparseVector, how: Hybrid, total: Sum | None = None) -> None:
        self.near, self.words, self.how, self.total = near, words, how, total
        self.ranks, self.threshold, self.dense = total is None, near.threshold, near.dense

    @property
    def telling(self) -> Query:
        """The dense search."""
        return self.near

    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write both as prefetches. See `Query`."""
        if self.total is not None:
            depth = max(DEEPER * depth, LEAST_DEPTH)
        depths = [depth]
        how: models.FusionQuery | models.RrfQuery = models.FusionQuery(fusion=models.Fusion.RRF)
        prefetch = [models.Prefetch(**self.near.fields(space, restricted, depth), limit=depth)]
        if self.words.indices:
            depths, how = [depth, self.how.sparse_top_k or depth], self.how.query()
            # A score threshold is the dense search's.
            sparse = {**restricted, "score_threshold": None, "limit": depths[1]}
            prefetch.append(models.Prefetch(query=self.words, using=space.sparse, **sparse))
        return {"prefetch": prefetch, "query": self.total.query(depths) if self.total else how}

    def vectors(self, space: Space) -> dict[str, Any]:
        """See `Query`."""
        return {**self.near.vectors(space), space.sparse or "": self.words}

    def view(self, space: Space) -> HybridView:
        """See `Query`."""
        return HybridView(self, space)

    def misfit(self, space: Space) -> str | None:
        """Say whether the dense vector has another size, or scores cannot be added."""
        if self.how.fusion == "dbsf" and space.metric == "euclid":
            return "fusion='dbsf' adds up scores, but Euclid gives distances: use 'rrf'"
        return self.near.misfit(space)


class HybridView(View):
    """Rows are both vectors side by side, so that their inner products are a sum of two similarities.

    Each similarity is in units of its own scatter over the collection, times its share; and each half of the rows is at
    a scale at which documents are as far apart as in the other one, again but for the share. So one convex problem
    moves both queries, and neither vector's unit counts.
    """

    _first: HybridQuery
    # A sum of two scores is neither of them.
    lasts = False

    def __init__(self, first: HybridQuery, space: Space) -> None:
        super().__init__(first, space)
        self.metric, self.whole = "dot", False
        self._linear = Linear(first.near.dense, space.metric)
        self._terms = Terms(first.words, space.idf)
        alpha = first.how.alpha
        self._share = SHARE if alpha is None else round(alpha, DIGITS)
        # What rows, and what queries are multiplied by: dense and sparse.
        self._of_rows = self._of_queries = (1.0, 1.0)
        self._population = 0

    def meet(self, shown: Vectors, background: Background | None) -> None:
        """See `View`."""
        super().meet(shown, background)
        others = background.vectors if background else Vectors()
        # What the scatter would be, did both similarities rise and fall together: the sum of their shares. They do not,
        # and where they agree says more for it. A few documents would show it badly: most have none of the query's
        # terms. The dense one alone is like any other.
        self.scatter = 1.0 if len(others.dense) > 1 and self._share < 1 else None
        self._population = background.population if background else len(shown.dense)
        self._linear.meet(torch.cat([shown.dense, others.dense]) if len(others.dense) else shown.dense)
        self._terms.words = background.words if background else None
        near, rest = (self._linear.rows(vectors.dense) for vectors in (shown, others))
        words, more = self._terms.rows(shown, others)
        sample = self._linear.rows(self._sample.dense)
        found = (words @ torch.as_tensor(self._terms.row)).double().numpy()
        scatter = float((sample @ self._linear.row).std(unbiased=False)), self._terms.scatter(found)
        spread = _spread(torch.cat([near, rest])), _spread(torch.cat([words, more]))
        shares = self._share, 1 - self._share
        self._of_rows = tuple(np.sqrt(share) / wide for share, wide in zip(shares, spread, strict=True))
        self._of_queries = tuple(
            np.sqrt(share) * wide / (unit or 1.0) for share, wide, unit in zip(shares, spread, scatter, strict=True)
        )

    @property
    def row(self) -> Row:
        """(r + t,) both queries."""
        near, words = self._of_queries
        row: Row = np.r_[np.asarray(self._linear.row) * near, self._terms.row * words].astype(np.float32)
        return row

    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return both vectors side by side."""
        near, words = self._of_rows
        return [
            torch.cat([self._linear.rows(vectors.dense) * near, rows * words], dim=-1)
            for vectors, rows in zip(some, self._terms.rows(*some), strict=True)
        ]

    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return both queries with the sum of their scores; the first query where nothing has moved."""
        if unmoved(row, self.row):
            return self._first
        near, words = self._near(row), row[self._linear.width :]
        query = self._terms.query(words)
        weight = self._of_rows[0] * self._linear.length(near)
        scores = self._linear.scores(near, self._linear.rows(self._sample.dense)).double().numpy()
        dense = Half(self._linear.expression("$score[0]", weight), scores, self.space.metric == "euclid")
        expression = models.MultExpression(mult=[self._of_rows[1], "$score[1]"])
        sparse = Half(expression, self._terms.sample(query))
        total = Sum((dense, sparse), self._population, weight * self._linear.constant(near))
        searched = DenseQuery(self._linear.vector(near), self.threshold(row, self._first.threshold))
        return HybridQuery(searched, query, self._first.how, total)

    def passes(self, row: Row, rows: Tensor, threshold: float) -> list[bool]:
        """Compare the dense half. See `View`."""
        scores = self._linear.scores(self._near(row), rows[:, : self._linear.width] / (self._of_rows[0] or 1.0))
        admitted: list[bool] = passes(scores, threshold, self.space.metric).tolist()
        return admitted

    def _similarities(self, row: Row) -> Tensor:
        """Compare the dense half. See `View`."""
        first = unmoved(row, self.row)
        dense = stored(self._first.near.dense if first else self._linear.vector(self._near(row)), self.space)
        return similarity(torch.as_tensor(dense), self._sample.dense, self.space.metric)

    def _near(self, row: Row) -> Tensor:
        """Return the dense half; one that counts for nothing has no direction any more, and stays the first query's."""
        return torch.as_tensor(row[: self._linear.width]) if self._share else self._linear.row


class Linear:
    """Rows whose inner product with the query's is the similarity, but for a constant that all documents share.

    Under cosine, vectors have length 1. For Euclid, with e the way from the first query q to a document and y = q + x,
    -|y - d|^2 / 2 is e.x - |e|^2 / 2 and a constant: rows are [e, -|e|^2 / (2c)], and the query is [x, c]. What counts
    of a moved query is x over its last coordinate; c is long enough for that not to tell documents apart.

    :param first: (d,) the first query.
    :param metric: the distance.
    """

    def __init__(self, first: Row, metric: Metric) -> None:
        self._metric = metric
        self._first = torch.as_tensor(first, dtype=torch.float32)
        self._far = 1.0

    def meet(self, documents: Tensor) -> None:
        """Take in how far documents, (n, d), are."""
        if self._metric == "euclid" and len(documents):
            self._far = FAR * max(float((documents - self._first).norm(dim=-1).mean()), 1e-12)

    @property
    def row(self) -> Tensor:
        """(r,) the first query."""
        if self._metric == "euclid":
            return torch.cat([torch.zeros_like(self._first), torch.tensor([self._far])])
        return normalize(self._first, dim=-1) if self._metric == "cosine" else self._first

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return len(self._first) + (self._metric == "euclid")

    def rows(self, documents: Tensor) -> Tensor:
        """(n, r) rows of documents, (n, d)."""
        if not len(documents):
            return torch.empty(0, self.width)
        if self._metric == "euclid":
            ways = documents - self._first
            return torch.cat([ways, -ways.square().sum(-1, keepdim=True) / (2 * self._far)], dim=-1)
        return normalize(documents, dim=-1) if self._metric == "cosine" else documents

    def vector(self, row: Tensor) -> Row:
        """(d,) the vector to search for, of a moved row."""
        if self._metric == "euclid":
            row = self._first + row[:-1] * (self._far / row[-1])
        return np.asarray(row, dtype=np.float32)

    def length(self, row: Tensor) -> float:
        """Return what one of Qdrant's similarities to that vector is worth in inner products with the row."""
        if self._metric == "euclid":
            return float(row[-1]) / self._far
        return float(row.norm()) if self._metric == "cosine" else 1.0

    def constant(self, row: Tensor) -> float:
        """Return what inner products with a row have more than Qdrant's similarities, all documents alike."""
        # Half the squared length of the query's way.
        return float((row[:-1] * (self._far / row[-1])).square().sum() / 2) if self._metric == "euclid" else 0.0

    def scores(self, row: Tensor, rows: Tensor) -> Tensor:
        """Return Qdrant's scores of documents, (n, r), for that vector."""
        return score_of_similarity(rows @ row / self.length(row) - self.constant(row), self._metric)

    def expression(self, variable: str, weight: float) -> models.MultExpression:
        """Write a weighed similarity as a part of a formula over Qdrant's scores."""
        if self._metric != "euclid":
            return models.MultExpression(mult=[weight, variable])
        squared = models.PowExpression(pow=models.PowParams(base=variable, exponent=2.0))
        return models.MultExpression(mult=[-weight / 2, squared])


def _spread(rows: Tensor) -> float:
    """Return the root mean square distance from the mean, 1 where there is none."""
    return float((rows - rows.mean(0)).square().sum(-1).mean().sqrt()) or 1.0
