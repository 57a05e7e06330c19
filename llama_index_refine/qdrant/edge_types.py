"""qdrant-client's models in the classes of Qdrant Edge, and back."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel
from qdrant_client import models

try:
    import qdrant_edge as edge
except ImportError as error:
    raise ImportError('EdgeClient needs Qdrant Edge: pip install "llama-index-refine[edge]"') from error

# Qdrant's own defaults, for settings that come in one piece with others.
HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
RRF_CONSTANT = 2


def to_edge(value: Any) -> Any:
    """Turn one of qdrant-client's models into Edge's.

    :param value: a model, an enum, a list or mapping of them, or a plain value.
    :return: the same in Edge's classes.
    :raises ValueError: Edge has no such thing.
    """
    if isinstance(value, Enum):
        return _member(value)
    if isinstance(value, BaseModel):
        return _model(value)
    if isinstance(value, Mapping):
        return {key: to_edge(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_edge(one) for one in value]
    return value.isoformat() if isinstance(value, datetime.datetime | datetime.date) else value


_RENAMED = {
    "Datatype": "VectorStorageDatatype",
    "DatetimeRange": "RangeDateTime",
    "Nested": "NestedCondition",
    "HnswConfigDiff": "HnswIndexConfig",
    "OptimizersConfigDiff": "EdgeOptimizersConfig",
    "Range": "RangeFloat",
    "VectorParams": "EdgeVectorParams",
}
# Models that wrap the one that matters.
_WRAPPERS = {
    "BinaryQuantization": "binary",
    "GeoLineString": "points",
    "NestedCondition": "nested",
    "PayloadField": "key",
    "ProductQuantization": "product",
    "ScalarQuantization": "scalar",
    "TurboQuantization": "turbo",
}


def _model(value: BaseModel) -> Any:
    name = type(value).__name__
    if isinstance(value, models.SparseVectorParams):
        index = value.index or models.SparseIndexParams()
        return edge.EdgeSparseVectorParams(index.full_scan_threshold, index.on_disk, to_edge(value.modifier))
    if name == "SliceCondition":
        return edge.SliceCondition(value.slice.total, value.slice.index)  # type: ignore[attr-defined]
    if name in _WRAPPERS:
        return to_edge(getattr(value, _WRAPPERS[name]))
    kind = getattr(edge, _RENAMED.get(name, name), None)
    if kind is None:
        raise ValueError(f"Qdrant Edge has no {name}")
    fields = {key: getattr(value, key) for key in type(value).model_fields}
    fields = {key: to_edge(one) for key, one in fields.items() if one is not None}
    try:
        return kind(**_arguments(name, fields))
    except TypeError as error:
        raise ValueError(f"Qdrant Edge does not take this {name}: {error}") from error


def _arguments(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Give the fields the names and forms that Edge's constructor knows."""
    if name == "Filter":
        return {key: one if isinstance(one, list) or key == "min_should" else [one] for key, one in fields.items()}
    if name == "HasIdCondition":
        return {"point_ids": set(fields["has_id"])}
    if name in ("HasVectorCondition", "IsEmptyCondition", "IsNullCondition"):
        (one,) = fields.values()
        return {"vector" if name == "HasVectorCondition" else "key": one}
    if name == "MatchExcept":
        return {"except": fields["except_"]}
    if name == "HnswConfigDiff":
        return {**HNSW, **fields}
    return fields


def _member(value: Enum) -> Any:
    kind = getattr(edge, _RENAMED.get(type(value).__name__, type(value).__name__), None)
    wanted = str(value.value).replace("_", "").lower()
    for name in dir(kind):
        if name.replace("_", "").lower() == wanted:
            return getattr(kind, name)
    if value is models.Modifier.NONE:
        return None
    raise ValueError(f"Qdrant Edge has no {type(value).__name__} {value.value!r}")


def query_to_edge(request: models.QueryRequest) -> Any:
    """Turn a query into Edge's.

    :param request: the query.
    :return: the same in Edge's classes.
    :raises ValueError: it asks for what Edge lacks.
    """
    refuse({"shard_key": request.shard_key})
    if isinstance(request.with_payload, BaseModel):
        raise ValueError("EdgeClient returns a payload whole or not at all: with_payload must be true or false")
    return edge.QueryRequest(
        offset=request.offset,
        with_vector=request.with_vector or False,
        with_payload=request.with_payload or False,
        **_search(request),
    )


def _search(search: models.QueryRequest | models.Prefetch) -> dict[str, Any]:
    """Turn what a query and a prefetch have in common."""
    refuse({"lookup_from": search.lookup_from})
    prefetch = search.prefetch if isinstance(search.prefetch, list) else [search.prefetch]
    return {
        "limit": search.limit or 10,
        "query": _scoring(search.query, search.using or None),
        "prefetches": [edge.Prefetch(**_search(one)) for one in prefetch if one is not None],
        "params": to_edge(search.params),
        "filter": to_edge(search.filter),
        "score_threshold": search.score_threshold,
    }


def _scoring(query: Any, using: str | None) -> Any:
    if query is None:
        return None
    if isinstance(query, models.NearestQuery) and query.mmr is None:
        query = query.nearest
    if isinstance(query, models.SparseVector | list):
        return edge.Query.Nearest(vector_to_edge(query), using)
    if isinstance(query, models.SampleQuery):
        return edge.Sample.Random
    if isinstance(query, models.RrfQuery):
        return edge.Fusion.Rrf(query.rrf.k or RRF_CONSTANT, query.rrf.weights)
    if isinstance(query, models.FusionQuery):
        return edge.Fusion.Dbsf() if query.fusion == models.Fusion.DBSF else edge.Fusion.Rrf(RRF_CONSTANT)
    if isinstance(query, models.FormulaQuery):
        return edge.Formula(_expression(query.formula), dict(query.defaults or {}))
    raise ValueError(f"EdgeClient does not translate {type(query).__name__}: it takes a server")


def _expression(value: Any) -> Any:
    """Turn a part of a formula over scores."""
    if isinstance(value, str):
        return edge.Expression.Variable(value)
    if isinstance(value, int | float):
        return edge.Expression.Constant(value)
    if isinstance(value, models.SumExpression):
        return edge.Expression.Sum([_expression(one) for one in value.sum])
    if isinstance(value, models.MultExpression):
        return edge.Expression.Mult([_expression(one) for one in value.mult])
    if isinstance(value, models.PowExpression):
        return edge.Expression.Pow(_expression(value.pow.base), _expression(value.pow.exponent))
    raise ValueError(f"EdgeClient does not translate {type(value).__name__}: it takes a server")


def scored_point(point: Any) -> models.ScoredPoint:
    """Turn what Edge has found into a point of qdrant-client's."""
    return models.ScoredPoint(score=point.score, version=point.version, **point_fields(point))


def point_fields(point: Any) -> dict[str, Any]:
    """Return what points of all kinds have: id, payload and vector."""
    vector = point.vector
    if isinstance(vector, dict):
        words = {name: one for name, one in vector.items() if isinstance(one, edge.SparseVector)}
        sparse = {name: models.SparseVector(indices=one.indices, values=one.values) for name, one in words.items()}
        vector = {**vector, **sparse}
    point_id = point.id if isinstance(point.id, int) else str(point.id)
    return {"id": point_id, "payload": point.payload, "vector": vector}


def vector_to_edge(vector: Any) -> Any:
    """Turn a vector, or the vectors of a point by name; numbers are not looked at one by one."""
    if isinstance(vector, dict):
        return {name: vector_to_edge(one) for name, one in vector.items()}
    return vector if isinstance(vector, list) else to_edge(vector)


def refuse(given: Mapping[str, Any], *harmless: str) -> None:
    """Refuse arguments that Edge has no use for.

    :param given: arguments by name; None counts as not given.
    :param harmless: names of those that change nothing.
    :raises ValueError: there is one.
    """
    for name, value in given.items():
        if value is not None and name not in harmless:
            raise ValueError(f"{name} has no meaning for Qdrant Edge, which is one shard in this process")
