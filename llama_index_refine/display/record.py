"""A refinement in a log."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_index_refine.display.moves import Move, moves

if TYPE_CHECKING:
    from llama_index_refine.refinement import Refinement

_PLAIN = (
    "query_str", "refined", "reason", "metric", "kl_before", "kl_after", "tau", "trust", "iterations", "converged",
    "seconds", "rounds", "saved_grades", "ungraded", "llm_calls", "prompt_tokens", "completion_tokens", "cached_grades",
    "remembered", "borrowed", "answerable",
)  # fmt: skip
_VECTORS = ("query", "vector", "documents", "background")


def to_dict(refinement: Refinement, vectors: bool, texts: bool) -> dict[str, Any]:
    """Write a refinement in what JSON knows: no arrays, no NaN or infinity.

    :param refinement: what to write.
    :param vectors: with the vectors of query, documents and background.
    :param texts: with the nodes' texts.
    :return: numbers and strings in dicts and lists; None for a number that is not finite.
    """
    rows = moves(refinement)
    record = {name: _finite(getattr(refinement, name)) for name in _PLAIN}
    record["timings"] = {stage: _finite(seconds) for stage, seconds in refinement.timings.items()}
    record["nodes"] = [_node(move, texts) for move in rows if move.rank is not None]
    record["lost"] = [_node(move, texts) for move in rows if move.rank is None]
    record["graded"] = _graded(refinement, texts)
    if vectors:
        record |= {name: _finite(as_array(getattr(refinement, name)).tolist()) for name in _VECTORS}
        record["path"] = [_finite(as_array(vector).tolist()) for vector in refinement.path]
    return record


def as_rows(refinement: Refinement) -> Refinement:
    """Write what was compared by MaxSim as the rows in which that is linear, a query's tokens one after the other."""
    if as_array(refinement.query).ndim < 2:
        return refinement

    def flat(matrices: Any) -> np.ndarray:
        array = as_array(matrices)
        return array.reshape(*array.shape[:-2], array.shape[-2] * array.shape[-1])

    names = ("query", "vector", "documents", "background")
    rows: dict[str, Any] = {name: flat(getattr(refinement, name)) for name in names}
    path = [flat(stop) for stop in refinement.path]
    return replace(refinement, **rows, path=path, metric="euclid" if refinement.metric == "euclid" else "dot")


def as_array(values: Any) -> np.ndarray:
    """Return a numpy array or torch tensor, wherever it is, as a numpy array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _node(move: Move, texts: bool) -> dict[str, Any]:
    record = {
        "node_id": move.node.node_id,
        "rank": move.rank,
        "rank_before": move.rank_before,
        "score": _finite(move.score),
        "grade": _finite(move.grade),
    }
    return {**record, "text": move.node.get_content()} if texts else record


def _graded(refinement: Refinement, texts: bool) -> list[dict[str, Any]]:
    columns = {
        "grade": refinement.grades,
        "target": refinement.target,
        "student_before": refinement.student_before,
        "student_after": refinement.student_after,
    }
    count = len(refinement.grades)
    values = {name: _finite(as_array(column).tolist())[:count] for name, column in columns.items()}
    records: list[dict[str, Any]] = [
        {name: column[at] if at < len(column) else None for name, column in values.items()} for at in range(count)
    ]
    for record, entry in zip(records, refinement.graded_nodes, strict=False):
        record["node_id"] = entry.node_id
        if texts:
            record["text"] = entry.node.get_content()
    return records


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
