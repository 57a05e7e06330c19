"""CachedGrader."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import BaseNode, QueryBundle, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.cache import CachedGrader
from tests.chat_server import error, overlap, yes
from tests.graders.conftest import NODES, QUERY


@pytest.fixture
def cached(make_grader):
    return CachedGrader(make_grader())


def test_a_second_run_of_a_hundred_queries_makes_no_call(cached, chat_server):
    queries = [QueryBundle(f"how do cats purr {number}") for number in range(100)]
    nodes = [[TextNode(text=f"document {number} {place}") for place in range(3)] for number in range(100)]
    first = [cached.grade(*pair) for pair in zip(queries, nodes, strict=True)]
    assert chat_server.calls == 300
    account = Account()
    with account.active():
        assert [cached.grade(*pair) for pair in zip(queries, nodes, strict=True)] == first
    assert chat_server.calls == 300
    assert (account.calls, account.cached) == (0, 300)


async def test_synchronous_and_asynchronous_share(cached, chat_server):
    first = await cached.agrade(QUERY, NODES)
    assert cached.grade(QUERY, NODES) == first
    assert chat_server.calls == 3


def test_on_disk(make_grader, chat_server, tmp_path):
    store = SimpleKVStore()
    first = CachedGrader(make_grader(), store).grade(QUERY, NODES)
    store.persist(str(tmp_path / "grades.json"))
    again = CachedGrader(make_grader(), SimpleKVStore.from_persist_path(str(tmp_path / "grades.json")))
    assert again.grade(QUERY, NODES) == first
    assert chat_server.calls == 3


@pytest.mark.parametrize(
    "other",
    [
        {"instruction": "else"},
        {"prompt": PromptTemplate("{query} {document}")},
        {"max_document_tokens": 10},
        {"llm_kwargs": {"temperature": 0.9}},
    ],
)
def test_another_teacher_misses(make_grader, chat_server, other):
    store = SimpleKVStore()
    CachedGrader(make_grader(), store).grade(QUERY, NODES)
    CachedGrader(make_grader(**other), store).grade(QUERY, NODES)
    assert chat_server.calls == 6


def test_another_model_query_or_text_misses(make_grader, chat_server, like):
    store = SimpleKVStore()
    CachedGrader(make_grader(), store).grade(QUERY, NODES)
    CachedGrader(make_grader(llm=like), store).grade(QUERY, NODES)
    cached = CachedGrader(make_grader(), store)
    cached.grade(QueryBundle("other"), NODES)
    cached.grade(QUERY, [TextNode(id_="0", text="cats purr softly indeed")])
    assert chat_server.calls == 10


def test_fields_of_metadata_in_another_order_are_the_same(cached, chat_server):
    # As Qdrant's payloads come over gRPC.
    ways = [
        {"year": 1991, "by": {"name": "a", "at": [{"x": 1, "y": 2}]}},
        {"by": {"at": [{"y": 2, "x": 1}], "name": "a"}, "year": 1991},
    ]
    for metadata in ways:
        assert str(metadata) != str(ways[0]) or metadata is ways[0]
        cached.grade(QUERY, [TextNode(text="purring", metadata=metadata)])
    assert chat_server.calls == 1
    cached.grade(QUERY, [TextNode(text="purring", metadata={**ways[0], "year": 1992})])
    assert chat_server.calls == 2


def test_prompts_reach_the_teacher_and_miss(cached, chat_server):
    cached.grade(QUERY, NODES)
    cached.update_prompts({"grade_prompt": PromptTemplate("{document} {query}?")})
    cached.grade(QUERY, NODES)
    assert chat_server.calls == 6


def test_failures_are_not_remembered(cached, chat_server):
    chat_server.reply = lambda question: error(500)
    assert cached.grade(QUERY, NODES) == [None, None, None]
    chat_server.reply = overlap
    assert cached.grade(QUERY, NODES) == pytest.approx([0.9, 0.1, 0.9])


def test_the_same_text_twice_is_one_call(cached, chat_server):
    assert len(set(cached.grade(QUERY, [TextNode(text="cats"), TextNode(text="cats")]))) == 1
    assert chat_server.calls == 1


async def test_queries_at_the_same_time_share_calls(cached, chat_server):
    chat_server.reply = lambda question: replace(yes(0.9), delay=0.1)
    in_threads = [asyncio.to_thread(cached.grade, QUERY, NODES) for _ in range(3)]
    results = await asyncio.gather(*(cached.agrade(QUERY, NODES) for _ in range(10)), *in_threads)
    assert all(grades == results[0] for grades in results)
    assert chat_server.calls == 3


def test_threads_share_calls(cached, chat_server):
    chat_server.reply = lambda question: replace(yes(0.9), delay=0.05)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cached.grade(QUERY, NODES), range(16)))
    assert chat_server.calls == 3


async def test_a_query_that_is_cancelled_leaves_the_others_to_ask_for_themselves(cached, chat_server):
    chat_server.reply = lambda question: replace(yes(0.9), delay=0.2)
    first = asyncio.create_task(cached.agrade(QUERY, NODES))
    while chat_server.calls < 3:
        await asyncio.sleep(0.01)
    second = asyncio.create_task(cached.agrade(QUERY, NODES))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == pytest.approx([0.9] * 3)


class Slow(BaseGrader):
    """Grades when told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.release = asyncio.Event()

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        return [0.5] * len(nodes)

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        self.asked.set()
        await self.release.wait()
        return [0.5] * len(nodes)


async def test_synchronous_use_inside_a_loop_does_not_wait_for_that_loop():
    teacher = Slow()
    cached = CachedGrader(teacher)
    waiting = asyncio.create_task(cached.agrade(QUERY, NODES))
    while not teacher.asked.is_set():
        await asyncio.sleep(0)
    assert cached.grade(QUERY, NODES) == [0.5] * 3
    teacher.release.set()
    assert await waiting == [0.5] * 3


class Sure(BaseGrader):
    """Says how sure it is."""

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        return Grades([0.5] * len(nodes), [0.1] * len(nodes))


def test_the_spread_is_kept():
    cached = CachedGrader(Sure())
    assert cached.grade(QUERY, NODES).spread == cached.grade(QUERY, NODES).spread == [0.1] * 3


class Failing(SimpleKVStore):
    """A store whose server is gone."""

    def get(self, key: str, collection: str = "") -> dict | None:
        raise ConnectionError

    def put(self, key: str, val: dict, collection: str = "") -> None:
        raise ConnectionError


async def test_a_failing_store_is_as_good_as_none(make_grader, caplog):
    cached = CachedGrader(make_grader(), Failing())
    assert cached.grade(QUERY, NODES) == pytest.approx([0.9, 0.1, 0.9])
    assert await cached.agrade(QUERY, NODES) == pytest.approx([0.9, 0.1, 0.9])
    assert "could not be read" in caplog.text


def test_nonsense_in_the_store_is_a_miss(make_grader, chat_server):
    store = SimpleKVStore()
    cached = CachedGrader(make_grader(), store)
    cached.grade(QUERY, NODES)
    for key, value in zip(store.get_all("grades"), ({}, {"grade": "1"}, {"grade": 7}), strict=True):
        store.put(key, value, "grades")
    assert cached.grade(QUERY, NODES) == pytest.approx([0.9, 0.1, 0.9])
    assert chat_server.calls == 6
