"""Qdrant's engine inside the process, behind the methods of `QdrantClient` that a vector store and a retriever call.

qdrant-client's own local mode compares a query with every vector, in Python. Edge has Qdrant's index, its storage and
its quantisation, without a server. What Edge lacks is an error here, never an answer without it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from qdrant_client import models
from qdrant_client.http.models import QueryResponse
from qdrant_client.local.local_collection import LocalCollection

from llama_index_refine.locks import Lock
from llama_index_refine.qdrant.filters import says_nothing

try:
    import qdrant_edge as edge
except ImportError as error:
    raise ImportError('EdgeClient needs Qdrant Edge: pip install "llama-index-refine[edge]"') from error

from llama_index_refine.qdrant.edge_types import (
    HNSW,
    point_fields,
    query_to_edge,
    refuse,
    scored_point,
    to_edge,
    vector_to_edge,
)

# Fields of a request that `query_points` has other names for.
FIELDS = {"query_filter": "filter", "search_params": "params", "with_vectors": "with_vector"}
UPLOAD = 1000


class EdgeClient:
    """Collections in a folder, searched by Qdrant Edge. Pass it where a `QdrantClient` goes.

    A retriever reaches it from asynchronous code through a worker thread. One process at a time may open a folder.

    :param path: the folder; it is made if it is not there.
    """

    def __init__(self, path: str | Path) -> None:
        if not str(path).strip():
            raise ValueError("path is empty: name the folder that the collections are kept in")
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
        refuse(kwargs)
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
        described = LocalCollection(models.CreateCollection.model_validate(params)).info()
        described.segments_count, described.points_count = info.segments_count, info.points_count
        described.indexed_vectors_count = info.indexed_vectors_count
        own = {"hnsw_config": {**HNSW, **(config.get("hnsw_config") or {})}}
        own["quantization_config"] = config.get("quantization_config")
        described.config = models.CollectionConfig.model_validate({**described.config.model_dump(), **own})
        return described

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
        refuse(kwargs, "wait")
        if not field_name:
            raise ValueError("field_name is empty: name the payload field to index")
        schema = to_edge(models.PayloadSchemaType(field_schema))
        self._shard(collection_name).update(edge.UpdateOperation.create_field_index(field_name, schema))

    def upsert(self, collection_name: str, points: Sequence[models.PointStruct], **kwargs: Any) -> None:
        """Write points. Call `optimize` when many have been written.

        :param collection_name: the collection.
        :param points: the points.
        """
        refuse(kwargs, "wait")
        rows = [edge.Point(point.id, vector_to_edge(point.vector), point.payload) for point in points]
        self._shard(collection_name).update(edge.UpdateOperation.upsert_points(rows))

    def upload_points(self, collection_name: str, points: Iterable[models.PointStruct], **kwargs: Any) -> None:
        """Write many points, and index them.

        :param collection_name: the collection.
        :param points: the points; they are taken a thousand at a time.
        """
        refuse(kwargs, "wait", "batch_size", "parallel", "max_retries")
        rest = iter(points)
        while rows := list(islice(rest, UPLOAD)):
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
        :raises ValueError: it selects nothing, or everything.
        """
        refuse(kwargs, "wait")
        if isinstance(points_selector, models.FilterSelector):
            points_selector = points_selector.filter
        if isinstance(points_selector, models.PointIdsList):
            points_selector = points_selector.points
        if not points_selector or (isinstance(points_selector, models.Filter) and says_nothing(points_selector)):
            raise ValueError("points_selector is empty: name the points by their ids, or by a filter with conditions")
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
        refuse(kwargs)
        shard = self._shard(collection_name)
        found = shard.query_batch(edge.QueryBatchRequest([query_to_edge(request) for request in requests]))
        return [QueryResponse(points=[scored_point(point) for point in points]) for points in found]

    def query_points(
        self, collection_name: str, query: Any = None, *, limit: int = 10, with_payload: bool = True, **kwargs: Any
    ) -> QueryResponse:
        """Run one query. See `QdrantClient.query_points`."""
        given = {FIELDS.get(name, name): value for name, value in kwargs.items()}
        fields = {name: given.pop(name) for name in [*given] if name in models.QueryRequest.model_fields}
        refuse(given)
        request = models.QueryRequest(query=query, limit=limit, with_payload=with_payload, **fields)
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
        refuse(kwargs)
        records = self._shard(collection_name).retrieve(list(ids), with_payload, with_vectors)
        return [models.Record(**point_fields(record)) for record in records]

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
        refuse(kwargs)
        request = edge.ScrollRequest(offset, limit, to_edge(scroll_filter), with_payload, with_vectors)
        records, following = self._shard(collection_name).scroll(request)
        return [models.Record(**point_fields(record)) for record in records], following

    def count(
        self, collection_name: str, count_filter: models.Filter | None = None, exact: bool = True, **kwargs: Any
    ) -> models.CountResult:
        """Count points."""
        refuse(kwargs)
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
        if not isinstance(collection_name, str) or not collection_name.strip():
            raise ValueError(f"collection_name is empty, got {collection_name!r}: name a collection")
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
