"""Qdrant's engine inside the process, behind the methods of `QdrantClient` that a vector store and a retriever call.

qdrant-client's own local mode compares a query with every vector, in Python. Edge has Qdrant's index, its storage and
its quantisation, without a server. What Edge lacks is an error here, never an answer without it.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from pydantic import BaseModel
from qdrant_client import models
from qdrant_client.http.models import QueryResponse

from llama_index_refine.locks import Lock

try:
    import qdrant_edge as edge
except ImportError as error:
    raise ImportError('EdgeClient needs Qdrant Edge: pip install "llama-index-refine[edge]"') from error

# Qdrant's own defaults, for settings that come in one piece with others.
HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
OPTIMIZERS = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "flush_interval_sec": 5,
}
RRF_CONSTANT = 2
UPLOAD = 1000


class EdgeClient:
    """Collections in a folder, searched by Qdrant Edge. Pass it where a `QdrantClient` goes.

    A retriever reaches it from asynchronous code through a worker thread. One process at a time may open a folder.

    :param path: the folder; it is made if it is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._shards: dict[str, edge.EdgeShard] = {}
        self._process: int | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an EdgeClient cannot be pickled, because one process at a time may open its folder: keep it in one "
            "process, or let several share a Qdrant server"
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"Qdrant Edge has no {name!r}: it takes a server")

    def create_collection(
        self,
        collection_name: str,
        vectors_config: models.VectorParams | Mapping[str, models.VectorParams] | None = None,
        sparse_vectors_config: Mapping[str, models.SparseVectorParams] | None = None,
        on_disk_payload: bool | None = None,
        hnsw_config: models.HnswConfigDiff | None = None,
        optimizers_config: models.OptimizersConfigDiff | None = None,
        quantization_config: models.QuantizationConfig | None = None,
        **kwargs: Any,
    ) -> bool:
        """Make an empty collection.

        :param collection_name: its name.
        :param vectors_config: its vector, or its vectors by name.
        :param sparse_vectors_config: its sparse vectors by name.
        :param on_disk_payload: whether payloads stay on disk.
        :param hnsw_config: the index.
        :param optimizers_config: when segments are indexed.
        :param quantization_config: the compression of all vectors that say nothing of their own.
        :return: True.
        :raises ValueError: it exists, or asks for what Edge lacks: shards, replicas, ...
        """
        _refuse(kwargs)
        if self.collection_exists(collection_name):
            raise ValueError(f"collection {collection_name!r} already exists")
        config = edge.EdgeConfig(
            vectors=to_edge(vectors_config),
            sparse_vectors=to_edge(sparse_vectors_config),
            on_disk_payload=on_disk_payload,
            hnsw_config=to_edge(hnsw_config),
            quantization_config=to_edge(quantization_config),
            optimizers=to_edge(optimizers_config),
        )
        with self._lock:
            self._opened()[collection_name] = edge.EdgeShard.create(str(self._folder(collection_name)), config)
        return True

    def collection_exists(self, collection_name: str) -> bool:
        """Say whether there is such a collection."""
        return (self._folder(collection_name) / "edge_config.json").exists()

    def get_collection(self, collection_name: str) -> models.CollectionInfo:
        """Describe a collection.

        :param collection_name: its name.
        :return: its vectors, their settings and the number of points; settings that a shard in the process does not
            have are Qdrant's defaults.
        :raises ValueError: there is no such collection.
        """
        info = self._shard(collection_name).info()
        config = json.loads((self._folder(collection_name) / "edge_config.json").read_text())
        vectors = config.get("vectors") or {}
        sparse = {name: {"modifier": params.get("modifier")} for name, params in config["sparse_vectors"].items()}
        params = {"vectors": vectors[""] if list(vectors) == [""] else vectors, "sparse_vectors": sparse or None}
        return models.CollectionInfo.model_validate(
            {
                "status": "green",
                "optimizer_status": "ok",
                "segments_count": info.segments_count,
                "points_count": info.points_count,
                "indexed_vectors_count": info.indexed_vectors_count,
                "payload_schema": {},
                "config": {
                    "params": params,
                    "hnsw_config": {**HNSW, **(config.get("hnsw_config") or {})},
                    "optimizer_config": OPTIMIZERS,
                    "quantization_config": config.get("quantization_config"),
                },
            }
        )

    def delete_collection(self, collection_name: str) -> bool:
        """Delete a collection and its files.

        :return: whether there was one.
        """
        there = self.collection_exists(collection_name)
        with self._lock:
            shard = self._opened().pop(collection_name, None)
        if shard is not None:
            shard.close()
        shutil.rmtree(self._folder(collection_name), ignore_errors=True)
        return there

    def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: models.PayloadSchemaType | str, **kwargs: Any
    ) -> None:
        """Index a payload field, so that filters on it are fast.

        :param collection_name: the collection.
        :param field_name: the field.
        :param field_schema: its type.
        """
        _refuse(kwargs, "wait")
        schema = to_edge(models.PayloadSchemaType(field_schema))
        self._shard(collection_name).update(edge.UpdateOperation.create_field_index(field_name, schema))

    def upsert(self, collection_name: str, points: Sequence[models.PointStruct], **kwargs: Any) -> None:
        """Write points. Call `optimize` when many have been written.

        :param collection_name: the collection.
        :param points: the points.
        """
        _refuse(kwargs, "wait")
        rows = [edge.Point(point.id, _given(point.vector), point.payload) for point in points]
        self._shard(collection_name).update(edge.UpdateOperation.upsert_points(rows))

    def upload_points(self, collection_name: str, points: Iterable[models.PointStruct], **kwargs: Any) -> None:
        """Write many points, and index them.

        :param collection_name: the collection.
        :param points: the points; they are taken a thousand at a time.
        """
        _refuse(kwargs, "wait", "batch_size", "parallel", "max_retries")
        for rows in _chunks(points, UPLOAD):
            self.upsert(collection_name, rows)
        self.optimize(collection_name)

    def optimize(self, collection_name: str) -> bool:
        """Build the index, and the compressed vectors, of what has been written. Blocks until they are there.

        :param collection_name: the collection.
        :return: whether there was anything to do.
        """
        shard = self._shard(collection_name)
        done: bool = shard.optimize()
        shard.flush()
        return done

    def delete(self, collection_name: str, points_selector: Any, **kwargs: Any) -> None:
        """Delete points.

        :param collection_name: the collection.
        :param points_selector: their ids, or a filter.
        """
        _refuse(kwargs, "wait")
        if isinstance(points_selector, models.FilterSelector):
            points_selector = points_selector.filter
        if isinstance(points_selector, models.PointIdsList):
            points_selector = points_selector.points
        if isinstance(points_selector, models.Filter):
            operation = edge.UpdateOperation.delete_points_by_filter(to_edge(points_selector))
        else:
            operation = edge.UpdateOperation.delete_points(list(points_selector))
        self._shard(collection_name).update(operation)

    def query_batch_points(
        self, collection_name: str, requests: Sequence[models.QueryRequest], **kwargs: Any
    ) -> list[QueryResponse]:
        """Run several queries.

        :param collection_name: the collection.
        :param requests: the queries.
        :return: an answer for each.
        :raises ValueError: a query asks for what Edge lacks.
        """
        _refuse(kwargs)
        shard = self._shard(collection_name)
        found = shard.query_batch(edge.QueryBatchRequest([_query(request) for request in requests]))
        return [QueryResponse(points=[_scored(point) for point in points]) for points in found]

    def query_points(
        self,
        collection_name: str,
        query: Any = None,
        using: str | None = None,
        query_filter: models.Filter | None = None,
        search_params: models.SearchParams | None = None,
        limit: int = 10,
        with_payload: bool = True,
        with_vectors: bool | list[str] = False,
        score_threshold: float | None = None,
        prefetch: Any = None,
        **kwargs: Any,
    ) -> QueryResponse:
        """Run one query. See `QdrantClient.query_points`."""
        _refuse(kwargs)
        request = models.QueryRequest(
            query=query,
            using=using or None,
            filter=query_filter,
            params=search_params,
            limit=limit,
            with_payload=with_payload,
            with_vector=with_vectors,
            score_threshold=score_threshold,
            prefetch=prefetch,
        )
        return self.query_batch_points(collection_name, [request])[0]

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[Any],
        with_payload: bool = True,
        with_vectors: bool | list[str] = False,
        **kwargs: Any,
    ) -> list[models.Record]:
        """Fetch points by id. Those that are not there are left out."""
        _refuse(kwargs)
        records = self._shard(collection_name).retrieve(list(ids), with_payload, with_vectors)
        return [models.Record(**_fields(record)) for record in records]

    def scroll(
        self,
        collection_name: str,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        offset: Any = None,
        with_payload: bool = True,
        with_vectors: bool | list[str] = False,
        **kwargs: Any,
    ) -> tuple[list[models.Record], Any]:
        """List points in the order of their ids. See `QdrantClient.scroll`."""
        _refuse(kwargs)
        request = edge.ScrollRequest(offset, limit, to_edge(scroll_filter), with_payload, with_vectors)
        records, following = self._shard(collection_name).scroll(request)
        return [models.Record(**_fields(record)) for record in records], following

    def count(
        self, collection_name: str, count_filter: models.Filter | None = None, exact: bool = True, **kwargs: Any
    ) -> models.CountResult:
        """Count points."""
        _refuse(kwargs)
        return models.CountResult(
            count=self._shard(collection_name).count(edge.CountRequest(exact=exact, filter=to_edge(count_filter)))
        )

    def close(self) -> None:
        """Write everything to disk and let go of the files."""
        with self._lock:
            for shard in self._opened().values():
                shard.flush()
                shard.close()
            self._shards.clear()

    def _folder(self, collection_name: str) -> Path:
        # No name reaches outside the folder.
        return self.path / quote(collection_name, safe="").replace(".", "%2E")

    def _shard(self, collection_name: str) -> edge.EdgeShard:
        with self._lock:
            shards = self._opened()
            if collection_name not in shards:
                if not self.collection_exists(collection_name):
                    raise ValueError(f"Collection {collection_name} not found in {self.path}")
                shards[collection_name] = edge.EdgeShard.load(str(self._folder(collection_name)))
            return shards[collection_name]

    def _opened(self) -> dict[str, edge.EdgeShard]:
        if self._shards and self._process != os.getpid():
            # The threads that serve it are the parent's: a forked process would wait for them forever.
            raise RuntimeError(
                "this EdgeClient's collections are open in the process that this one was forked from: open them after "
                "the fork, in one process, or let several share a Qdrant server"
            )
        self._process = os.getpid()
        return self._shards


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


def _query(request: models.QueryRequest) -> Any:
    _refuse({"shard_key": request.shard_key, "lookup_from": request.lookup_from})
    if isinstance(request.with_payload, BaseModel):
        raise ValueError("EdgeClient returns a payload whole or not at all: with_payload must be true or false")
    return edge.QueryRequest(
        limit=request.limit or 10,
        offset=request.offset,
        query=_scoring(request.query, request.using),
        prefetches=_prefetches(request.prefetch),
        with_vector=request.with_vector or False,
        with_payload=request.with_payload or False,
        filter=to_edge(request.filter),
        score_threshold=request.score_threshold,
        params=to_edge(request.params),
    )


def _prefetches(prefetch: Any) -> list[Any]:
    given = prefetch if isinstance(prefetch, list) else [prefetch] if prefetch is not None else []
    for one in given:
        _refuse({"lookup_from": one.lookup_from})
    return [
        edge.Prefetch(
            limit=one.limit or 10,
            query=_scoring(one.query, one.using),
            prefetches=_prefetches(one.prefetch),
            params=to_edge(one.params),
            filter=to_edge(one.filter),
            score_threshold=one.score_threshold,
        )
        for one in given
    ]


def _scoring(query: Any, using: str | None) -> Any:
    if query is None:
        return None
    if isinstance(query, models.NearestQuery) and query.mmr is None:
        query = query.nearest
    if isinstance(query, models.SparseVector | list):
        return edge.Query.Nearest(_given(query), using)
    if isinstance(query, models.SampleQuery):
        return edge.Sample.Random
    if isinstance(query, models.RrfQuery):
        return edge.Fusion.Rrf(query.rrf.k or RRF_CONSTANT, query.rrf.weights)
    if isinstance(query, models.FusionQuery):
        return edge.Fusion.Dbsf() if query.fusion == models.Fusion.DBSF else edge.Fusion.Rrf(RRF_CONSTANT)
    raise ValueError(f"EdgeClient does not translate {type(query).__name__}: it takes a server")


def _scored(point: Any) -> models.ScoredPoint:
    return models.ScoredPoint(score=point.score, version=point.version, **_fields(point))


def _fields(point: Any) -> dict[str, Any]:
    vector = point.vector
    if isinstance(vector, dict):
        vector = {name: _vector(one) for name, one in vector.items()}
    point_id = point.id if isinstance(point.id, int) else str(point.id)
    return {"id": point_id, "payload": point.payload, "vector": vector}


def _given(vector: Any) -> Any:
    """Turn a vector, or the vectors of a point by name; numbers are not looked at one by one."""
    if isinstance(vector, dict):
        return {name: _given(one) for name, one in vector.items()}
    return vector if isinstance(vector, list) else to_edge(vector)


def _vector(vector: Any) -> Any:
    if isinstance(vector, edge.SparseVector):
        return models.SparseVector(indices=vector.indices, values=vector.values)
    return vector


def _chunks(points: Iterable[models.PointStruct], size: int) -> Iterator[list[models.PointStruct]]:
    chunk: list[models.PointStruct] = []
    for point in points:
        chunk.append(point)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _refuse(given: Mapping[str, Any], *harmless: str) -> None:
    for name, value in given.items():
        if value is not None and name not in harmless:
            raise ValueError(f"{name} has no meaning for Qdrant Edge, which is one shard in this process")
