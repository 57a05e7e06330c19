"""Which points count: LlamaIndex's filters, node ids and document ids in Qdrant's words.

A filter may be what keeps tenants apart. One that says less than was asked for is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters, VectorStoreQuery
from llama_index.vector_stores.qdrant import QdrantVectorStore
from pydantic import ValidationError
from qdrant_client import models

from llama_index_refine.qdrant.points import points_of

_RANGES = {
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
}


def read_filter(
    store: QdrantVectorStore,
    filters: MetadataFilters | None = None,
    node_ids: Sequence[str] | None = None,
    doc_ids: Sequence[str] | None = None,
    raw: models.Filter | None = None,
) -> models.Filter | None:
    """Put what restricts a search into one filter.

    :param store: the vector store, which translates metadata filters.
    :param filters: metadata filters, nested as one likes.
    :param node_ids: these nodes only.
    :param doc_ids: the nodes of these documents only.
    :param raw: a Qdrant filter, instead of the others.
    :return: the filter; None where nothing was asked for.
    :raises ValueError: one that is empty, cannot be translated, or lost a condition on the way; raw beside another.
    :raises NotImplementedError: an operator that the store does not know.
    """
    given = {"filters": filters, "node_ids": node_ids, "doc_ids": doc_ids}
    if raw is not None:
        # LlamaIndex lets a raw filter replace the others without a word, which may be the one that keeps tenants apart.
        both = [name for name, value in given.items() if value is not None]
        if both:
            raise ValueError(f"pass qdrant_filters or {both[0]}, not both: put all conditions into qdrant_filters")
        if says_nothing(raw):
            raise ValueError(
                "qdrant_filters has no condition, or a part without one, so it excludes nothing: pass None for no "
                "restriction"
            )
        return raw
    _check_ids("node_ids", node_ids)
    _check_ids("doc_ids", doc_ids)
    leaves = _leaves(filters) if filters is not None else []
    asked = bool(node_ids) + bool(doc_ids) + len(leaves)
    points = [point for node_id in node_ids or () for point in points_of(str(node_id))]
    if node_ids and not points:
        raise ValueError(f"node_ids has no id that a point can have, a whole number or a UUID: {node_ids[0]!r}, ...")
    query = VectorStoreQuery(
        filters=filters,
        # Qdrant tells the integer 7 from the text "7", which it takes for no id at all.
        node_ids=points or None,  # type: ignore[arg-type]
        doc_ids=list(doc_ids) if doc_ids else None,
    )
    try:
        built: models.Filter | None = store._build_query_filter(query)
    except ValidationError as error:
        raise ValueError(_untranslatable(leaves, error)) from error
    there = conditions_in(built)
    if there < asked:
        raise ValueError(
            f"filters asks for {asked} conditions, of which {type(store).__name__} translated {there}: put all "
            "conditions into vector_store_kwargs={'qdrant_filters': models.Filter(...)} instead"
        )
    return built


def _check_ids(name: str, ids: Sequence[str] | None) -> None:
    """See that ids name something. :raises ValueError: there is none, one is empty, or they are one text."""
    if isinstance(ids, str):
        raise ValueError(f"{name} must be a list of ids, got the text {ids!r}, whose letters would be taken for them")
    if ids is not None and not len(ids):
        raise ValueError(f"{name} is empty, so nothing could be found: pass None for no restriction")
    if any(one is None or not str(one).strip() for one in ids or ()):
        raise ValueError(f"{name} has an empty id: {list(ids or ())[:5]}")


def _leaves(filters: MetadataFilters) -> list[MetadataFilter]:
    """Return the single filters.

    :raises ValueError: a group holds none, or does not say how they are joined; or one lacks its key or its value.
    """
    if not filters.filters:
        raise ValueError("filters has an empty MetadataFilters, which would exclude nothing")
    if filters.condition is None:
        raise ValueError("filters has a MetadataFilters whose condition is None: set FilterCondition.AND, OR or NOT")
    found: list[MetadataFilter] = []
    for one in filters.filters:
        if isinstance(one, MetadataFilters):
            found += _leaves(one)
            continue
        if not one.key.strip():
            raise ValueError(f"filters has a MetadataFilter whose key is empty: {one}")
        # A field may well be compared with an empty text, but every text contains it.
        within = one.operator in (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)
        blank = one.value is None or one.value == [] or (within and not str(one.value).strip())
        if blank and one.operator != FilterOperator.IS_EMPTY:
            raise ValueError(_not_taken(f"{one.key!r} {one.operator.value} {one.value!r}"))
        found.append(one)
    return found


def says_nothing(condition: Any) -> bool:
    """Say whether a part of a Qdrant filter leaves nothing out.

    :param condition: a filter or a condition.
    """
    if isinstance(condition, models.NestedCondition):
        return says_nothing(condition.nested.filter)
    if isinstance(condition, models.Filter):
        parts, least, excluded = _parts(condition), condition.min_should, _listed(condition.must_not)
        needs_none = least is not None and least.min_count < 1
        return not parts or needs_none or any(map(says_nothing, parts)) or any(map(_fits_nothing, excluded))
    if not isinstance(condition, models.FieldCondition):
        return False
    said = condition.model_dump(exclude_none=True, exclude={"key"})
    return all(value in ({}, [], {"except_": []}) for value in said.values())


def _fits_nothing(condition: Any) -> bool:
    """Say whether a condition names nothing, so that to exclude what fits it excludes nothing."""
    if isinstance(condition, models.HasIdCondition):
        return not condition.has_id
    match = getattr(condition, "match", None)
    return isinstance(match, models.MatchAny) and not match.any


def conditions_in(condition: Any) -> int:
    """Count the conditions of a Qdrant filter, as its limits do.

    :param condition: a filter, a condition or None.
    :return: how many conditions it holds, itself included where it is one.
    """
    if condition is None:
        return 0
    if isinstance(condition, models.NestedCondition):
        return conditions_in(condition.nested.filter)
    if not isinstance(condition, models.Filter):
        return 1
    return sum(map(conditions_in, _parts(condition)))


def _parts(admitted: models.Filter) -> list[Any]:
    groups = [admitted.must, admitted.should, admitted.must_not]
    groups.append(admitted.min_should.conditions if admitted.min_should else None)
    return [one for group in groups for one in _listed(group)]


def _listed(group: Any) -> list[Any]:
    if group is None:
        return []
    return group if isinstance(group, list) else [group]


def _untranslatable(filters: Sequence[MetadataFilter], error: ValidationError) -> str:
    """Say which filter has a value that Qdrant's condition does not take, and what to use instead."""
    for one in filters:
        bound = _RANGES.get(one.operator)
        if bound and isinstance(one.value, str):
            return (
                f"filters compares {one.key!r} with the text {one.value!r}, but LlamaIndex can only compare "
                "numbers: for dates, pass vector_store_kwargs={'qdrant_filters': models.Filter(must=["
                f"models.FieldCondition(key={one.key!r}, range=models.DatetimeRange({bound}={one.value!r}))])}}"
            )
    return _not_taken(str(error.errors()[0]["msg"]))


def _not_taken(told: str) -> str:
    return (
        f"filters has a value that its operator does not take ({told}); vector_store_kwargs={{'qdrant_filters': "
        "models.Filter(...)} takes any condition of Qdrant's"
    )
