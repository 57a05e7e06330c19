"""Reads what restricts and steers a retriever's searches, as its users say it: in LlamaIndex's words and Qdrant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any, Literal, TypedDict

from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQueryMode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from llama_index.vector_stores.qdrant.utils import relative_score_fusion
from pydantic import ValidationError
from qdrant_client import models

from llama_index_refine.qdrant.filters import read_filter
from llama_index_refine.qdrant.points import Grouping
from llama_index_refine.qdrant.requests import PREFETCH, FusionName, Hybrid, MatrixEncoder, Multivector, SearchOptions

DENSE = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR)
MODES = (*DENSE, VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.HYBRID)


class QdrantKwargs(TypedDict, total=False):
    """What `vector_store_kwargs` may hold. The first three are those that `QdrantVectorStore.query` knows too.

    - qdrant_filters: a raw Qdrant filter, instead of `filters`, `node_ids` and `doc_ids`.
    - search_params: `hnsw_ef`, `exact`, `quantization` (rescoring), ...
    - shard_identifier: what the store's `shard_key_selector_fn` turns into a shard key.
    - shard_key_selector: the shard key, or keys, themselves.
    - score_threshold: leave out nodes that score worse; in hybrid mode, of the dense search.
    - consistency: how many replicas must agree: a number, "quorum", "majority" or "all". The last two ask every
      replica, so that a node that is down fails each request; the others go on.
    - timeout: seconds that one request may take; None for the client's own timeout.
    - fusion: how hybrid mode fuses, "rrf" (default) or "dbsf".
    - prefetch_limit: how many points prefetch_vector_name finds for MaxSim to compare, at least 1; 100 by default.
    - group_by: the payload field that names a node's document, as "doc_id"; "a.b" for b inside a.
    - group_size: the most nodes of one document among those that a search returns, at least 1; 1 by default.
    - mmr_threshold: in mmr mode, how much being near the query counts beside differing from other nodes, in [0, 1];
      0.5 by default.
    - boost: a formula by which points are ranked, of "$score", which is Qdrant's score for the query as it is refined,
      and payload fields: an expression, or a `FormulaQuery` with `defaults` for fields that points may lack.
    """

    qdrant_filters: models.Filter | None
    search_params: models.SearchParams | dict[str, Any] | None
    shard_identifier: Any
    shard_key_selector: models.ShardKeySelector | None
    score_threshold: float | None
    consistency: models.ReadConsistency | Literal["majority", "quorum", "all"] | None
    timeout: int | None
    fusion: FusionName
    prefetch_limit: int
    group_by: str
    group_size: int
    mmr_threshold: float
    boost: models.FormulaQuery | models.Expression | dict[str, Any]


def read_options(
    store: QdrantVectorStore,
    filters: MetadataFilters | None,
    node_ids: Sequence[str] | None,
    doc_ids: Sequence[str] | None,
    hybrid: Hybrid | None,
    kwargs: QdrantKwargs,
    multivector: Multivector | None,
    mode: VectorStoreQueryMode,
) -> SearchOptions:
    """Put a retriever's arguments into Qdrant's words.

    :param store: the vector store, which builds the filter.
    :param filters: metadata filters, nested as one likes.
    :param node_ids: search these nodes only.
    :param doc_ids: search the nodes of these documents only.
    :param hybrid: how a sparse search takes part.
    :param kwargs: Qdrant's own options.
    :param multivector: how documents that are matrices are searched.
    :param mode: LlamaIndex's query mode.
    :return: the options.
    :raises ValueError: an option that is not known, out of range, or at odds with another.
    """
    given: dict[str, Any] = dict(kwargs)
    unknown = sorted(set(given) - set(QdrantKwargs.__annotations__))
    if unknown:
        raise ValueError(
            f"vector_store_kwargs has no {unknown[0]!r}; it takes {', '.join(sorted(QdrantKwargs.__annotations__))}"
        )
    timeout = given.get("timeout")
    if timeout is not None and not (isinstance(timeout, int) and timeout >= 1):
        raise ValueError(f"timeout must be whole seconds, at least 1, got {timeout!r}")
    params = given.get("search_params")
    return SearchOptions(
        filter=read_filter(store, filters, node_ids, doc_ids, given.get("qdrant_filters")),
        score_threshold=_threshold(given.get("score_threshold")),
        search_params=models.SearchParams(**params) if isinstance(params, dict) else params,
        shard_key=_shard_key(store, given.get("shard_identifier"), given.get("shard_key_selector")),
        consistency=_consistency(given.get("consistency")),
        timeout=timeout,
        hybrid=hybrid,
        multivector=multivector,
        sparse_alone=mode == VectorStoreQueryMode.SPARSE,
        grouping=_grouping(given),
        mmr_threshold=_mmr(mode, given, multivector),
        boost=_boost(given.get("boost"), mode),
    )


def read_hybrid(
    store: QdrantVectorStore,
    mode: VectorStoreQueryMode,
    alpha: float | None,
    sparse_top_k: int | None,
    hybrid_top_k: int | None,
    kwargs: QdrantKwargs,
) -> Hybrid | None:
    """Say how a sparse search takes part.

    :param store: the vector store, which makes the sparse vectors.
    :param mode: LlamaIndex's query mode: "default", "mmr", "sparse" or "hybrid".
    :param alpha: the dense search's share, in [0, 1].
    :param sparse_top_k: how many nodes the sparse search contributes.
    :param hybrid_top_k: how many nodes a retrieval returns.
    :param kwargs: Qdrant's own options, of which `fusion` is one.
    :return: how, or None where one search is alone.
    :raises ValueError: another mode, a store without sparse vectors, or an argument that would have no effect.
    """
    if mode not in MODES:
        raise ValueError(
            f"vector_store_query_mode {mode.value!r} cannot be refined: use 'default', 'mmr', 'sparse' or 'hybrid'"
        )
    if mode not in DENSE and not (store.enable_hybrid and store._sparse_query_fn):
        raise ValueError(
            f"vector_store_query_mode={mode.value!r} needs sparse vectors: QdrantVectorStore(..., enable_hybrid=True), "
            "or from_collection(..., sparse_query_fn=...)"
        )
    if mode != VectorStoreQueryMode.HYBRID:
        given = {"alpha": alpha, "sparse_top_k": sparse_top_k, "hybrid_top_k": hybrid_top_k}
        lost = [name for name, value in given.items() if value is not None]
        if lost:
            raise ValueError(f"{lost[0]} has no effect without vector_store_query_mode='hybrid'")
        return None
    if store._hybrid_fusion_fn is not relative_score_fusion:
        raise ValueError(
            "hybrid_fusion_fn is never called, because Qdrant fuses the lists: leave it out, and set fusion"
        )
    return Hybrid(kwargs.get("fusion", "rrf"), alpha, sparse_top_k, hybrid_top_k)


def read_multivector(
    query_fn: MatrixEncoder | None, prefetch: str | None, hybrid: bool, limit: int | None
) -> Multivector | None:
    """Say how documents that are matrices are searched.

    :param query_fn: makes of each text a matrix.
    :param prefetch: the dense vector whose nearest points are compared by MaxSim.
    :param hybrid: whether a sparse search takes part.
    :param limit: how many points these are, at least; None where nobody says.
    :return: how, or None where they are vectors.
    :raises ValueError: an argument out of range, or one that would have no effect.
    """
    if query_fn is None and prefetch is not None:
        raise ValueError("prefetch_vector_name has no effect without multivector_query_fn")
    if prefetch is None and limit is not None:
        raise ValueError("prefetch_limit has no effect without prefetch_vector_name")
    if query_fn is None:
        return None
    if not callable(query_fn):
        raise ValueError(f"multivector_query_fn must be a function of a list of texts, got {type(query_fn).__name__}")
    if hybrid:
        raise ValueError("multivector_query_fn compares by MaxSim only: leave out vector_store_query_mode='hybrid'")
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise ValueError(f"prefetch_limit must be at least 1, got {limit!r}")
    return Multivector(query_fn, prefetch, limit or PREFETCH)


def _threshold(given: Any) -> float | None:
    if given is not None and (isinstance(given, bool) or not isinstance(given, Real) or not isfinite(given)):
        raise ValueError(f"score_threshold must be a finite number, or None for no threshold, got {given!r}")
    return None if given is None else float(given)


def _grouping(given: Mapping[str, Any]) -> Grouping:
    by, size = given.get("group_by"), given.get("group_size", 1)
    if by is None and "group_size" in given:
        raise ValueError("group_size has no effect without group_by, the payload field that names the document")
    if by is not None and not (isinstance(by, str) and by):
        raise ValueError(f"group_by must be the name of a payload field, got {by!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"group_size must be a whole number, at least 1, got {size!r}")
    return Grouping(by, size)


def _mmr(mode: VectorStoreQueryMode, given: Mapping[str, Any], multivector: Multivector | None) -> float | None:
    if mode != VectorStoreQueryMode.MMR:
        if "mmr_threshold" in given:
            raise ValueError("mmr_threshold has no effect without vector_store_query_mode='mmr'")
        return None
    if multivector is not None:
        raise ValueError("vector_store_query_mode='mmr' compares dense vectors: leave out multivector_query_fn")
    threshold = given.get("mmr_threshold", 0.5)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise ValueError(f"mmr_threshold must be in [0, 1], got {threshold!r}")
    return float(threshold)


def _boost(given: Any, mode: VectorStoreQueryMode) -> models.FormulaQuery | None:
    if given is None:
        return None
    if mode == VectorStoreQueryMode.MMR:
        raise ValueError(
            "boost ranks by a formula and vector_store_query_mode='mmr' by similarity: leave one of them out"
        )
    if isinstance(given, models.FormulaQuery):
        return given
    written = given if isinstance(given, dict) and "formula" in given else {"formula": given}
    try:
        return models.FormulaQuery(**written)
    except ValidationError:
        raise ValueError(
            f"boost is not a formula that Qdrant takes, where numbers are floats: {given!r}; write it as "
            "{'sum': ['$score', {'mult': [0.1, 'field']}]}, or as models.FormulaQuery(formula=..., defaults=...)"
        ) from None


def _consistency(given: Any) -> models.ReadConsistency | None:
    """Read a word as what it stands for: over gRPC the client takes no text."""
    if given is None or isinstance(given, models.ReadConsistencyType):
        return given
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return given
    words = [one.value for one in models.ReadConsistencyType]
    if given not in words:
        raise ValueError(f"consistency must be a number of replicas, at least 1, or one of {words}, got {given!r}")
    return models.ReadConsistencyType(given)


def _shard_key(store: QdrantVectorStore, identifier: Any, selector: Any) -> Any:
    for name, value in (("shard_identifier", identifier), ("shard_key_selector", selector)):
        if value in ("", [], ()) or (isinstance(value, list | tuple) and any(key in ("", None) for key in value)):
            raise ValueError(f"{name} must name a shard, got {value!r}: leave it out to search all of them")
    if identifier is None:
        return selector
    if selector is not None:
        raise ValueError("pass shard_identifier or shard_key_selector, not both")
    key = store._generate_shard_key_selector(identifier)
    if key is None:
        raise ValueError(
            "shard_identifier needs a store with sharding_method=CUSTOM and a shard_key_selector_fn; otherwise pass "
            "the shard key itself as shard_key_selector"
        )
    return key
