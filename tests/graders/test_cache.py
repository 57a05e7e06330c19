"""CachedGrader."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
from llama_index.core import Settings
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.cross_encoder import CrossEncoderGrader
from llama_index_refine.graders.ensembles import AverageGrader, CascadeGrader, SelfConsistencyGrader
from llama_index_refine.graders.listwise import ListwiseGrader
from llama_index_refine.graders.llm import LLMGrader, ScaleGrader
from llama_index_refine.graders.openai import OpenAIGrader
from llama_index_refine.graders.postprocessor import PostprocessorGrader
from tests.chat_server import error, overlap, yes
from tests.graders.conftest import NODES, QUERY, SECRET


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


@pytest.mark.parametrize("value", ["0.5", [0.5], 0.5])
def test_what_is_no_record_at_all_is_a_miss(value):
    class Spoilt(SimpleKVStore):
        def get(self, *args, **kwargs):
            return value

        async def aget(self, *args, **kwargs):
            return value

    assert CachedGrader(Table(), Spoilt()).grade(QUERY, NODES) == [0.5] * len(NODES)


class Table(BaseGrader):
    """A teacher without settings."""

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        return [0.5] * len(nodes)


TABLES = (Table(), Table())
SAME = "the way it is asked, and whose key it is, decide nothing"
CHANGES: dict[str, tuple[Callable[..., BaseGrader], dict[str, object], dict[str, str]]] = {
    "LLMGrader": (
        LLMGrader,
        {
            "llm": MockLLM(max_tokens=3),
            "instruction": "else",
            "prompt": PromptTemplate("{query} {document}"),
            "max_document_tokens": 10,
            "metadata_mode": MetadataMode.NONE,
            "llm_kwargs": {"seed": 1},
            "max_image_pixels": 10,
        },
        {
            "concurrency": SAME,
            "timeout": SAME,
            "retries": SAME,
            "cooldown": SAME,
            "on_error": SAME,
            "image_folders": SAME,
        },
    ),
    "ScaleGrader": (ScaleGrader, {"rubric": ["no", "yes"], "metadata_mode": MetadataMode.NONE}, {}),
    "ListwiseGrader": (
        ListwiseGrader,
        {
            "metadata_mode": MetadataMode.NONE,
            "batch_size": 3,
            "max_prompt_tokens": 900,
            "both_orders": True,
            "max_document_tokens": 9,
            "instruction": "else",
        },
        {},
    ),
    "OpenAIGrader": (
        partial(OpenAIGrader, **{"model": "m", "base_url": "http://127.0.0.1:1/v1"}),
        {
            "model": "n",
            "base_url": "http://u:p@127.0.0.1:2/v1",
            "llm_kwargs": {"extra_headers": {"Authorization": SECRET}},
        },
        {"api_key": SAME},
    ),
    "CrossEncoderGrader": (
        CrossEncoderGrader,
        {"model": "other", "temperature": 2.0, "metadata_mode": MetadataMode.NONE},
        {"batch_size": SAME, "device": SAME},
    ),
    "PostprocessorGrader": (
        partial(PostprocessorGrader, LLMRerank(llm=MockLLM())),
        {"postprocessor": LLMRerank(llm=MockLLM(max_tokens=3)), "scale": (0, 5)},
        {},
    ),
    "AverageGrader": (
        lambda teachers=TABLES, weights=None: AverageGrader(teachers, weights),
        {"teachers": (Table(),), "weights": [1, 2]},
        {},
    ),
    "CascadeGrader": (
        lambda teachers=TABLES, unsure=(0.2, 0.8): CascadeGrader(teachers, unsure),
        {"teachers": (Table(),), "unsure": (0.1, 0.8)},
        {},
    ),
    "SelfConsistencyGrader": (
        lambda teacher=None, n=3, prompts=None: SelfConsistencyGrader(teacher or LLMGrader(MockLLM()), n, prompts),
        {"teacher": LLMGrader(MockLLM(max_tokens=3)), "n": 4, "prompts": [PromptTemplate("{query}{document}")] * 2},
        {},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_argument_that_decides_a_grade_is_in_the_key_and_no_secret(name, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    make, changes, same = CHANGES[name]
    before = make().fingerprint()
    assert make().fingerprint() == before
    made = {argument: positional(make, argument, value).fingerprint() for argument, value in changes.items()}
    assert before not in made.values()
    assert len({*made.values()}) == len(made)
    values = {"concurrency": 2, "timeout": 9.0, "retries": 9, "cooldown": 9.0, "on_error": "raise", "batch_size": 9}
    for argument in same:
        value = values.get(argument, [] if argument == "image_folders" else SECRET)
        assert make(**{argument: value}).fingerprint() == before
    assert not any(secret in print_ for print_ in made.values() for secret in (SECRET, "u:p@"))


def positional(make: Callable[..., BaseGrader], argument: str, value: object) -> BaseGrader:
    """Make a teacher with another argument, which may be one that is given already."""
    if argument == "postprocessor":
        return PostprocessorGrader(value)
    return make(**{argument: value})


def test_two_functions_are_two_scales():
    reranker = LLMRerank(llm=MockLLM())
    scales = [lambda score: score / 4, lambda score: score / 5]
    assert len({PostprocessorGrader(reranker, scale).fingerprint() for scale in scales}) == 2


class Blocking(SimpleKVStore):
    """A store without coroutines, as some of LlamaIndex's are."""

    async def aget(self, *arguments: object) -> None:
        raise NotImplementedError

    aput = aget


async def test_a_store_without_coroutines_is_used_in_threads(make_grader, chat_server):
    cached = CachedGrader(make_grader(), Blocking())
    first = await cached.agrade(QUERY, NODES)
    assert await cached.agrade(QUERY, NODES) == cached.grade(QUERY, NODES) == first
    assert chat_server.calls == 3


def test_one_text_in_two_spellings_is_one_key(cached, chat_server):
    for accent in ("\u00f9", "u\u0300"):
        cached.grade(QueryBundle(f"o{accent} est la gare"), [TextNode(text=f"o{accent}")])
    assert chat_server.calls == 1
