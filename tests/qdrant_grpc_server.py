"""Qdrant's gRPC interface on loopback, in front of qdrant-client's local mode."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as proto
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc

from tests.faults import Calls


class QdrantGrpcServer(Calls):
    """A server whose collections are those of `storage`."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = QdrantClient(":memory:")
        self._server = grpc.server(ThreadPoolExecutor(4))
        points_service_pb2_grpc.add_PointsServicer_to_server(_Points(self), self._server)
        collections_service_pb2_grpc.add_CollectionsServicer_to_server(_Collections(self), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def start(self) -> QdrantGrpcServer:
        self._server.start()
        return self

    def stop(self) -> None:
        self._server.stop(None).wait()

    def meet(self, kind: str, request: Any, context: grpc.ServicerContext) -> None:
        """Let a call go wrong, if it is to."""
        fault = self.fault(kind, request)
        if fault.status:
            context.set_trailing_metadata(tuple(fault.headers.items()))
            context.abort(fault.status, fault.said)


class _Points(points_service_pb2_grpc.PointsServicer):
    def __init__(self, app: QdrantGrpcServer) -> None:
        self.app = app

    def QueryBatch(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.app.meet("query", request, context)
        queries = [GrpcToRest.convert_query_points(query) for query in request.query_points]
        timeout = request.timeout if request.HasField("timeout") else None
        answers = self._answers(request.collection_name, queries, context, timeout)
        return proto.QueryBatchResponse(result=[proto.BatchResult(result=found) for found in answers], time=0.001)

    def Query(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.app.meet("single", request, context)
        query = GrpcToRest.convert_query_points(request)
        (found,) = self._answers(request.collection_name, [query], context)
        return proto.QueryResponse(result=found, time=0.001)

    def _answers(
        self, name: str, queries: list[models.QueryRequest], context: grpc.ServicerContext, timeout: int | None = None
    ) -> list[Any]:
        for query in queries:
            query.filter = _tidy(query.filter)
        try:
            self.app.keep_to_limits(queries, timeout)
            answers = self.app.storage.query_batch_points(name, queries)
        except BlockingIOError as error:
            context.set_trailing_metadata((("retry-after", str(self.app.strict.retry_after)),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except ValueError as error:
            missing = str(error).startswith("Collection")
            context.abort(grpc.StatusCode.NOT_FOUND if missing else grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return [[RestToGrpc.convert_scored_point(point) for point in answer.points] for answer in answers]

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.app.meet("retrieve", request, context)
        ids = [GrpcToRest.convert_point_id(one) for one in request.ids]
        found = self.app.storage.retrieve(request.collection_name, ids, with_payload=False)
        result = [RestToGrpc.convert_record(point.model_copy(update={"payload": {}})) for point in found]
        return proto.GetResponse(result=result, time=0.001)

    def Count(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.app.meet("count", request, context)
        admitted = _tidy(GrpcToRest.convert_filter(request.filter)) if request.HasField("filter") else None
        count = self.app.storage.count(request.collection_name, admitted).count
        return proto.CountResponse(result=proto.CountResult(count=count), time=0.001)


class _Collections(collections_service_pb2_grpc.CollectionsServicer):
    def __init__(self, app: QdrantGrpcServer) -> None:
        self.app = app

    def CollectionExists(self, request: Any, context: grpc.ServicerContext) -> Any:
        exists = self.app.storage.collection_exists(request.collection_name)
        return proto.CollectionExistsResponse(result=proto.CollectionExists(exists=exists), time=0.001)

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.app.meet("describe", request, context)
        if not self.app.storage.collection_exists(request.collection_name):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Collection {request.collection_name} not found")
        info = self.app.storage.get_collection(request.collection_name)
        info = self.app.strict.described(info) if self.app.strict else info
        return proto.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info), time=0.001)


def _tidy(admitted: models.Filter | None) -> models.Filter | None:
    """Leave out groups without conditions, which qdrant-client before 1.19 makes of those that were not sent."""
    if admitted is None:
        return None
    groups = {
        name: [_tidy(one) if isinstance(one, models.Filter) else one for one in getattr(admitted, name) or []] or None
        for name in ("must", "should", "must_not")
    }
    return admitted.model_copy(update=groups)
