"""Nodes from plain payloads."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index_refine.stores import PayloadVectorStore, open_store, split_payload

NAMES = st.text("abc", min_size=1, max_size=3)
VALUES = st.recursive(st.integers() | st.text(max_size=5), lambda inner: st.dictionaries(NAMES, inner, max_size=3))


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.lists(NAMES, min_size=1, max_size=3), st.text(max_size=9))
def test_what_is_put_at_a_path_is_taken_out_and_the_rest_is_left(payload, path, text):
    inner = payload
    for name in path[:-1]:
        if not isinstance(inner.get(name), dict):
            inner[name] = {}
        inner = inner[name]
    inner.pop(path[-1], None)
    without = str(payload)
    inner[path[-1]] = text
    whole = str(payload)
    found, rest = split_payload(payload, ".".join(path))
    assert found == text
    assert str(rest) == without
    assert str(payload) == whole


@pytest.mark.parametrize(
    ("payload", "key", "text"),
    [
        ({"a.b": "literal", "a": {"b": "nested"}}, "a.b", "literal"),
        ({"a": ["one", "two"]}, "a", "one\ntwo"),
        ({"a": 3}, "a", "3"),
        ({"a": None}, "a", None),
        ({"a": "x"}, "a.b", None),
        ({}, "a", None),
    ],
)
def test_texts_of_other_forms(payload, key, text):
    store = open_store(QdrantClient(":memory:"), "c", key)
    points = [models.ScoredPoint(id=0, version=0, score=1.0, payload=payload)]
    if text is None:
        with pytest.raises(ValueError, match="has the field"):
            store.parse_to_query_result(points)
    else:
        assert store.parse_to_query_result(points).nodes[0].text == text


def test_such_a_store_is_read_only():
    store = open_store(QdrantClient(":memory:"), "c", "text")
    assert isinstance(store, PayloadVectorStore)
    with pytest.raises(NotImplementedError, match="'c' is read only"):
        store.add([TextNode(text="a")])
    with pytest.raises(NotImplementedError, match="'c' is read only"):
        asyncio.run(store.async_add([TextNode(text="a")]))


def test_either_kind_of_client_may_come_first():
    client = AsyncQdrantClient(":memory:")
    store = open_store(client, "c")
    assert store._client is None
    assert store._aclient is client
