"""Refinement of a query that is a matrix, with a vector for each token, by documents that are matrices too."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.problem import like, to_tensor
from llama_index_refine.similarity import document_rows, query_row, row_metric, token_length

if TYPE_CHECKING:
    from llama_index_refine.refining.base import BaseRefiner


def is_matrix(query: Any) -> bool:
    """Say whether a query has a vector for each token."""
    try:
        return np.ndim(query) == 2
    except (TypeError, ValueError):
        return False


def refine_matrix(
    refiner: BaseRefiner, query: Any, documents: Any, grades: Any, background: Any, **options: Any
) -> Refinement:
    """Refine a matrix under MaxSim, its tokens' best matches held as they are at the first query.

    :param refiner: what refines the stacked rows.
    :param query: (T, d)
    :param documents: K matrices, (n_i, d) each.
    :param grades: (K,) in [0, 1].
    :param background: N matrices, (n_i, d) each; None for none.
    :param options: the keyword arguments of `BaseRefiner.refine`.
    :return: the refinement, whose `query` and `vector` are (T, d), and `documents` and `background` (K, T, d) and
        (N, T, d): the matches. For cosine, the refined tokens' lengths are 1 on average.
    :raises ValueError: naming the argument and what is wrong with it.
    """
    metric = refiner.metric
    tokens = to_tensor("query", query, (None, None), refiner.device)
    if not tokens.numel():
        raise ValueError(f"query must be a matrix of at least one vector, got the shape {tuple(tokens.shape)}")
    rows = document_rows(tokens, _matrices("documents", documents, tokens), metric)
    around = None
    if background is not None:
        around = document_rows(tokens, _matrices("background", background, tokens), metric)
    stacked = copy(refiner)
    stacked.metric = row_metric(metric)
    found = stacked.refine(query_row(tokens, metric), rows, grades, around, **options)
    size = tokens.shape[1]
    found = in_units(found, token_length(torch.as_tensor(found.vector), size, metric))

    def cut(stacks: Any) -> Any:
        stack = torch.as_tensor(stacks)
        return like(stack.reshape(*stack.shape[:-1], stack.shape[-1] // size, size), query)

    names = ("grades", "target", "student_before", "student_after", "fused", "held_out")
    written = {name: like(getattr(found, name), query) for name in names}
    written |= {name: cut(getattr(found, name)) for name in ("query", "vector", "documents", "background")}
    return replace(found, **written, path=[written["vector"]], metric=metric)


def in_units(found: Refinement, unit: float) -> Refinement:
    """Divide a refined row's length, and with it all its similarities, which are inner products.

    :param found: the refinement.
    :param unit: the length that is to count as one.
    :return: the same refinement in other units.
    """
    names = ("vector", "fused", "held_out")
    return replace(found, **{name: getattr(found, name) / unit for name in names}, tau=found.tau / unit)


def _matrices(name: str, given: Any, tokens: Tensor) -> list[Tensor]:
    if not isinstance(given, Sequence | np.ndarray | Tensor):
        raise ValueError(f"{name} must be a list of matrices, one a document, got {type(given).__name__}")
    if not len(given) and name == "background":
        raise ValueError("background is empty; leave it out to refine without one")
    matrices = [
        to_tensor(f"{name}[{at}]", matrix, (None, tokens.shape[1]), tokens.device) for at, matrix in enumerate(given)
    ]
    for at, matrix in enumerate(matrices):
        if not len(matrix):
            raise ValueError(f"{name}[{at}] is empty: a document has at least one vector")
    return matrices
