"""What LlamaIndex's instrumentation and callbacks see of a retrieval, through real OpenTelemetry."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import llama_index.core
import pytest
from llama_index.core import set_global_handler
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.openai import OpenAI

from llama_index_refine import LLMGrader, RefinedRetriever
from llama_index_refine.graders.account import current_account
from llama_index_refine.retrieval.events import GradingEvent, RefinementEvent, RefiningEvent
from tests.chat_server import Question, Reply, yes
from tests.small_index import QUERY, BrokenGrader, SubjectGrader, make_index

pytest.importorskip("llama_index.observability.otel")
from llama_index.observability.otel.base import OTelCompatibleEventHandler, OTelCompatibleSpanHandler
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TWO_ROUNDS = {"rounds": 2, "early_stop": False}
KEY = "sk-not-to-be-seen-0123456789"


@pytest.fixture(scope="module")
def telemetry() -> Iterator[InMemorySpanExporter]:
    """LlamaIndex's OpenTelemetry handlers, alone on the root dispatcher, exporting to memory."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    handler = OTelCompatibleSpanHandler(tracer=provider.get_tracer("tests"))
    root = get_dispatcher()
    before = root.span_handlers, root.event_handlers
    root.span_handlers, root.event_handlers = [handler], [OTelCompatibleEventHandler(span_handler=handler)]
    yield exporter
    root.span_handlers, root.event_handlers = before


@pytest.fixture
def exporter(telemetry: InMemorySpanExporter) -> InMemorySpanExporter:
    telemetry.clear()
    return telemetry


@pytest.fixture
def teacher(chat_server) -> LLMGrader:
    def reply(question: Question) -> Reply:
        return yes(0.9 if "owl" in question.document else 0.1)

    chat_server.reply = reply
    return LLMGrader(llm=OpenAI(model="gpt-4o-mini", api_base=chat_server.url, api_key=KEY))


@pytest.fixture(scope="module")
def index() -> Any:
    return make_index()


class Tree:
    """The spans of a finished trace."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self.spans = exporter.get_finished_spans()
        self.by_id = {span.context.span_id: span for span in self.spans}

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def parents(self, span: ReadableSpan) -> list[str]:
        names = []
        while span.parent is not None:
            span = self.by_id[span.parent.span_id]
            names.append(span.name)
        return names

    def events(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        return [
            (span.name, dict(event.attributes)) for span in self.spans for event in span.events if event.name == name
        ]


def check(tree: Tree, top: list[str], rounds: int = 2) -> None:
    """Every stage lies under the retriever, and the teacher's calls under the grading that made them."""
    for stage, times in (("embed", 1), ("grade", rounds), ("refine", rounds), ("search", 1 + rounds)):
        spans = tree.named(f"FeedbackLoop.{stage}")
        assert len(spans) == times, stage
        assert all(tree.parents(span) == top for span in spans)
    calls = [span for span in tree.spans if span.name.startswith("OpenAI.")]
    assert len(calls) >= 20
    assert all("FeedbackLoop.grade" in tree.parents(span) for span in calls)


def test_spans_nest_when_blocking(index, teacher, exporter):
    RefinedRetriever.from_index(index, grader=teacher, **TWO_ROUNDS).retrieve(QUERY)
    top = ["RefinedRetriever.refine", "RefinedRetriever._retrieve", "RefinedRetriever.retrieve"]
    check(Tree(exporter), top)


async def test_spans_nest_when_asynchronous(index, teacher, exporter):
    await RefinedRetriever.from_index(index, grader=teacher, **TWO_ROUNDS).aretrieve(QUERY)
    top = ["RefinedRetriever.arefine", "RefinedRetriever._aretrieve", "RefinedRetriever.aretrieve"]
    check(Tree(exporter), top)


def test_spans_nest_in_a_query_engine(index, teacher, llm_of, exporter):
    engine = RetrieverQueryEngine.from_args(
        RefinedRetriever.from_index(index, grader=teacher, **TWO_ROUNDS), llm=llm_of
    )
    engine.query(QUERY)
    tree = Tree(exporter)
    (grading, *_) = tree.named("FeedbackLoop.grade")
    assert tree.parents(grading)[-2:] == ["RetrieverQueryEngine._query", "RetrieverQueryEngine.query"]
    assert len({span.context.trace_id for span in tree.spans}) == 1


@pytest.fixture
def llm_of(chat_server) -> OpenAI:
    return OpenAI(model="gpt-4o-mini", api_base=chat_server.url, api_key=KEY)


async def test_concurrent_queries_do_not_mix(index, exporter):
    retrievers = [
        RefinedRetriever.from_index(index, grader=SubjectGrader(name), **TWO_ROUNDS)
        for name in ("owls", "hotels", "cats")
    ]
    await asyncio.gather(*(retriever.aretrieve(f"{QUERY} {at}") for at, retriever in enumerate(retrievers)))
    tree = Tree(exporter)
    assert len({span.context.trace_id for span in tree.spans}) == 3
    for span in tree.named("RefinedRetriever.aretrieve"):
        same = [other for other in tree.spans if other.context.trace_id == span.context.trace_id]
        said = {
            event.attributes["query_str"] for other in same for event in other.events if "query_str" in event.attributes
        }
        assert len(said) == 1
        assert sum(other.name == "FeedbackLoop.grade" for other in same) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batch_shares_its_stages(index, exporter, asynchronous):
    retriever = RefinedRetriever.from_index(index, grader=SubjectGrader(), **TWO_ROUNDS)
    queries = [f"{QUERY} {at}" for at in range(3)]
    if asynchronous:
        asyncio.run(retriever.arefine_batch(queries))
    else:
        retriever.refine_batch(queries)
    tree = Tree(exporter)
    top = "RefinedRetriever.arefine_batch" if asynchronous else "RefinedRetriever.refine_batch"
    gradings = tree.events("GradingEvent")
    assert len(tree.named("FeedbackLoop.grade")) == 2
    assert sorted(attributes["query_str"] for _, attributes in gradings) == sorted(queries * 2)
    assert {name for name, _ in gradings} == {"FeedbackLoop.grade"}
    assert all(tree.parents(span) == [top] for span in tree.spans if span.name.startswith("FeedbackLoop."))
    assert {attributes["query_str"] for _, attributes in tree.events("RefiningEvent")} == set(queries)
    assert [attributes["query_str"] for _, attributes in tree.events("RefinementEvent")] == queries


def test_events_carry_the_numbers(index, teacher, exporter):
    refinement = RefinedRetriever.from_index(index, grader=teacher, similarity_top_k=5, **TWO_ROUNDS).refine(QUERY)
    tree = Tree(exporter)
    (place, first), (_, second) = tree.events("GradingEvent")
    assert place == "FeedbackLoop.grade"
    assert first["query_str"] == QUERY
    ids = [*first["node_ids"], *second["node_ids"]]
    assert ids == [entry.node_id for entry in refinement.graded_nodes]
    assert [*first["grades"], *second["grades"]] == pytest.approx(refinement.grades.tolist())
    assert first["llm_calls"] + second["llm_calls"] == refinement.llm_calls == 20
    assert first["prompt_tokens"] + second["prompt_tokens"] == refinement.prompt_tokens > 0
    assert first["completion_tokens"] + second["completion_tokens"] == refinement.completion_tokens > 0
    assert first["ungraded"] == first["cached_grades"] == 0
    assert first["milliseconds"] > 0

    place, refining = tree.events("RefiningEvent")[-1]
    assert place == "FeedbackLoop.refine"
    assert refining["kl_before"] == pytest.approx(refinement.kl_before)
    assert refining["kl_after"] == pytest.approx(refinement.kl_after)
    assert 0 <= refining["kl_after"] < refining["kl_before"]
    assert refining["graded"] == 20
    assert refining["converged"] is True

    ((place, whole),) = tree.events("RefinementEvent")
    assert place == "RefinedRetriever.refine"
    assert whole["refined"] is True
    assert whole["reason"] == ""
    assert list(whole["node_ids"]) == [entry.node_id for entry in refinement.nodes]
    assert list(whole["gained"]) == [entry.node_id for entry in refinement.gained]
    assert list(whole["lost"]) == [entry.node_id for entry in refinement.lost]
    assert len(whole["gained"]) == len(whole["lost"]) > 0
    assert whole["llm_calls"] == 20
    assert whole["milliseconds.grade"] == pytest.approx(1000 * refinement.timings["grade"])


def test_no_event_carries_text_of_documents_or_keys(index, teacher, exporter):
    RefinedRetriever.from_index(index, grader=teacher, **TWO_ROUNDS).refine(QUERY)
    own = ("GradingEvent", "RefiningEvent", "RefinementEvent")
    said = json.dumps([Tree(exporter).events(name) for name in own], default=list)
    assert "whiskers" not in said
    assert "wings" not in said
    assert KEY not in said


def test_grading_shows_as_a_reranker_to_whoever_knows_llamaindexs_events(index):
    heard: list[BaseEvent] = []

    class Listener(BaseEventHandler):
        def handle(self, event: BaseEvent, **kwargs: Any) -> None:
            heard.append(event)

    root = get_dispatcher()
    before = list(root.event_handlers)
    root.add_event_handler(Listener())
    try:
        refinement = RefinedRetriever.from_index(index, grader=SubjectGrader("owls"), rounds=1).refine(QUERY)
    finally:
        root.event_handlers = before
    begun = next(event for event in heard if isinstance(event, ReRankStartEvent))
    ended = next(event for event in heard if isinstance(event, ReRankEndEvent))
    assert "FeedbackLoop.grade" in begun.span_id
    assert begun.span_id == ended.span_id
    assert (begun.query.query_str, begun.model_name, begun.top_n) == (QUERY, "SubjectGrader", 20)
    grades = [entry.score for entry in ended.nodes]
    assert grades == sorted(grades, reverse=True)
    assert {entry.node_id: entry.score for entry in ended.nodes} == pytest.approx(refinement.grade_of)


def test_a_failing_teacher_shows_as_a_failed_span(index, exporter, caplog):
    with caplog.at_level(logging.WARNING, "llama_index_refine"):
        RefinedRetriever.from_index(index, grader=BrokenGrader(), **TWO_ROUNDS).retrieve(QUERY)
        asyncio.run(RefinedRetriever.from_index(index, grader=BrokenGrader(), **TWO_ROUNDS).aretrieve(QUERY))
    tree = Tree(exporter)
    assert [span.status.status_code.name for span in tree.named("FeedbackLoop.grade")] == ["ERROR", "ERROR"]
    for _, event in tree.events("RefinementEvent"):
        assert event["refined"] is False
        assert event["reason"] == "grading failed: RuntimeError: the teacher is out"
        assert list(event["gained"]) == list(event["lost"]) == []
    assert "unrefined: grading failed: RuntimeError: the teacher is out" in caplog.text


def test_the_packages_own_dispatcher_hears_nothing_else(index):
    heard: list[BaseEvent] = []

    class Listener(BaseEventHandler):
        def handle(self, event: BaseEvent, **kwargs: Any) -> None:
            heard.append(event)

    own = get_dispatcher("llama_index_refine")
    before = list(own.event_handlers)
    own.add_event_handler(Listener())
    try:
        RefinedRetriever.from_index(index, grader=SubjectGrader(), rounds=1).retrieve(QUERY)
    finally:
        own.event_handlers = before
    assert [type(event) for event in heard] == [GradingEvent, RefiningEvent, RefinementEvent]
    assert [event.class_name() for event in heard] == ["GradingEvent", "RefiningEvent", "RefinementEvent"]


@pytest.mark.parametrize("failing", [{1}, {1, 2}, {2}])
def test_a_grading_tells_of_its_own_failures(index, failing):
    rounds, heard = [], []

    class Failing(SubjectGrader):
        def grade(self, query, nodes):
            rounds.append(nodes)
            grades = super().grade(query, nodes)
            if len(rounds) not in failing:
                return grades
            current_account().note("the teacher nods off")
            return [None, *grades[1:]]

    class Listener(BaseEventHandler):
        def handle(self, event: BaseEvent, **kwargs: Any) -> None:
            if isinstance(event, GradingEvent):
                heard.append(event)

    own = get_dispatcher("llama_index_refine")
    before = list(own.event_handlers)
    own.add_event_handler(Listener())
    try:
        refinement = RefinedRetriever.from_index(index, grader=Failing(), **TWO_ROUNDS).refine(QUERY)
    finally:
        own.event_handlers = before
    assert [event.ungraded for event in heard] == [int(at in failing) for at in (1, 2)]
    assert [event.failures for event in heard] == [["the teacher nods off"] * (at in failing) for at in (1, 2)]
    assert refinement.failures == ("the teacher nods off",)


def test_the_simple_global_handler_prints_the_teachers_calls(index, chat_server, capsys, monkeypatch):
    monkeypatch.setattr(llama_index.core, "global_handler", None)
    set_global_handler("simple")
    model = OpenAI(model="gpt-4o-mini", api_base=chat_server.url, api_key=KEY, callback_manager=CallbackManager())
    retriever = RefinedRetriever.from_index(index, grader=LLMGrader(llm=model), feedback_top_k=4, rounds=1)
    capsys.readouterr()
    assert retriever.refine(QUERY).refined
    printed = capsys.readouterr().out
    assert printed.count("** Messages: **") == 4
    assert printed.count("** Response: **") == 4
    assert printed.count(f"Query: {QUERY}") == 4
    assert KEY not in printed


def test_nothing_is_printed_without_a_handler(index, capsys):
    RefinedRetriever.from_index(index, grader=SubjectGrader(), **TWO_ROUNDS).retrieve(QUERY)
    said = capsys.readouterr()
    assert said.out == ""
