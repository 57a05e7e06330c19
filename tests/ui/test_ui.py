"""The playground: what it compares, how it is drawn, and the page itself in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from llama_index.core.schema import TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from typer.testing import CliRunner

from llama_index_refine import LLMGrader, RefinedRetriever
from llama_index_refine.commands.cli import app
from llama_index_refine.commands.options import CollectionOptions
from llama_index_refine.demo.labels import SampleLabels
from llama_index_refine.evaluation.teachers import node_id as labelled
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.ui import cards
from llama_index_refine.ui.comparison import THUMBS, Comparison, Playground, Settings
from tests.browser import chromium, missing
from tests.chat_server import ChatServer
from tests.small_index import QUERY, BrokenGrader, SubjectGrader, WordEmbedding, make_index, make_nodes, node_id

gradio = pytest.importorskip("gradio", reason='the playground needs: pip install "llama-index-refine[ui]"')

from llama_index_refine.ui import launch  # noqa: E402
from llama_index_refine.ui.page import toggled  # noqa: E402

HOSTILE = "owl sleep at night <img src=x onerror=alert(1)> ${alert(2)} {{alert}} `x`"


class Counting(SubjectGrader):
    """Counts what it is asked."""

    asked = 0

    def grade(self, query, nodes):
        self.asked += len(nodes)
        return super().grade(query, nodes)


@pytest.fixture(scope="module")
def store() -> QdrantVectorStore:
    hostile = TextNode(id_=node_id("hostile"), text=HOSTILE, metadata={"subject": "owls"})
    return make_index([*make_nodes(), hostile]).vector_store


def retriever_on(store: QdrantVectorStore, grader: BaseGrader) -> RefinedRetriever:
    return RefinedRetriever(store, WordEmbedding(), grader, similarity_top_k=6, feedback_top_k=10, rounds=1)


def ids(results) -> list[str]:
    return [result.node.node_id for result in results]


def subjects(results) -> list[str]:
    return [result.node.metadata["subject"] for result in results]


def graded(refinement) -> dict[str, float]:
    return dict(zip([entry.node.node_id for entry in refinement.graded_nodes], refinement.grades, strict=True))


class TestPlayground:
    def settings(self, **changes) -> Settings:
        return Settings(**{"teacher": "owls", "feedback_top_k": 10, "rounds": 1, "similarity_top_k": 6, **changes})

    def playground(self, store, grader: BaseGrader | None = None) -> Playground:
        grader = grader or SubjectGrader("owls")
        return Playground(retriever_on(store, grader), {"owls": grader})

    def test_lists_hold_what_their_names_say(self, store):
        found = self.playground(store).compare(QUERY, self.settings())
        assert [result.before for result in found.plain] == [1, 2, 3, 4, 5, 6]
        marks = [result.grade for result in found.reranked]
        assert marks == sorted(marks, reverse=True)
        assert marks[0] == pytest.approx(0.95)
        assert all(result.before <= 10 for result in found.reranked)
        assert subjects(found.refined).count("owls") > subjects(found.reranked).count("owls")
        assert found.gained == len(set(ids(found.refined)) - set(ids(found.plain))) > 0

    def test_the_teacher_is_asked_once_about_a_document(self, store):
        teacher = Counting("owls")
        playground = self.playground(store, teacher)
        playground.compare(QUERY, self.settings())
        assert teacher.asked == 10
        playground.compare(QUERY, self.settings())
        playground.compare(QUERY, self.settings(similarity_top_k=2))
        assert teacher.asked == 10

    def test_settings_reach_the_retriever(self, store):
        found = self.playground(store).compare(QUERY, self.settings(feedback_top_k=4, rounds=2, similarity_top_k=3))
        assert len(found.refinement.grades) == 4
        assert found.refinement.rounds == 2
        assert len(found.plain) == len(found.reranked) == len(found.refined) == 3

    def test_filters_of_the_retriever_stand(self, store):
        from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

        filters = MetadataFilters(filters=[MetadataFilter(key="subject", value="cats")])
        retriever = RefinedRetriever(store, WordEmbedding(), SubjectGrader(), filters=filters)
        found = Playground(retriever, {}).compare(QUERY, self.settings(teacher=THUMBS))
        assert set(subjects(found.plain)) == {"cats"}

    def test_a_judgement_counts_before_the_teacher_and_wherever_the_document_ranks(self, store):
        playground = self.playground(store)
        before = playground.compare(QUERY, self.settings(feedback_top_k=4))
        first, star = ids(before.plain)[0], node_id("stars 3")
        assert first in graded(before.refinement)
        assert star not in graded(before.refinement)
        after = playground.compare(QUERY, self.settings(feedback_top_k=4), {first: 0.0, star: 1.0})
        assert graded(after.refinement)[first] == 0.0
        assert graded(after.refinement)[star] == 1.0
        assert ids(after.refined) != ids(before.refined)
        assert [result.judged for result in after.plain] == [True] + [False] * 5

    def test_thumbs_alone_refine_from_two_on(self, store):
        playground = Playground(retriever_on(store, SubjectGrader()), {})
        assert playground.teachers == [THUMBS]
        settings = self.settings(teacher=THUMBS)
        nothing = playground.compare(QUERY, settings)
        assert not nothing.refinement.refined
        assert ids(nothing.refined) == ids(nothing.plain)
        one = playground.compare(QUERY, settings, {ids(nothing.plain)[0]: 1.0})
        assert not one.refinement.refined
        two = playground.compare(QUERY, settings, {ids(nothing.plain)[0]: 0.0, ids(nothing.plain)[1]: 1.0})
        assert two.refinement.refined
        assert graded(two.refinement) == {ids(nothing.plain)[0]: 0.0, ids(nothing.plain)[1]: 1.0}
        assert ids(nothing.plain)[0] not in ids(two.refined)

    def test_a_teacher_that_fails_leaves_the_search(self, store):
        found = self.playground(store, BrokenGrader()).compare(QUERY, self.settings())
        assert ids(found.refined) == ids(found.reranked) == ids(found.plain)
        assert "Not refined" in cards.page(found, 10, "owls")

    @pytest.mark.parametrize(("query", "teacher", "message"), [(" ", "owls", "empty"), ("a", "nobody", "one of")])
    def test_refuses(self, store, query, teacher, message):
        playground = self.playground(store)
        with pytest.raises(ValueError, match=message):
            playground.compare(query, self.settings(teacher=teacher))

    def test_tells_the_bill_of_an_llm(self, store, chat_server: ChatServer):
        openai_like = pytest.importorskip("llama_index.llms.openai_like", reason="needs the extra openai")
        llm = openai_like.OpenAILike(model="m", api_base=chat_server.url, api_key="k", is_chat_model=True)
        grader = LLMGrader(llm)
        found = Playground(retriever_on(store, grader), {"LLM": grader}).compare(QUERY, self.settings(teacher="LLM"))
        assert found.refinement.llm_calls == chat_server.calls == 10
        assert "<b>10</b>calls of the LLM" in cards.page(found, 10, "LLM")


class TestCards:
    def draw(self, store, judgements=None) -> tuple[Comparison, str]:
        playground = Playground(retriever_on(store, SubjectGrader()), {"labels": SubjectGrader()})
        settings = Settings("labels", 10, 1, 20)
        found = playground.compare(QUERY, settings, judgements)
        return found, cards.page(found, 6, "labels")

    def test_shows_three_lists_with_ranks_grades_and_thumbs(self, store):
        found, html = self.draw(store)
        page = Page(html)
        assert page.lists == {
            "search": ids(found.plain),
            "reranked": ids(found.reranked),
            "refined": ids(found.refined),
        }
        assert page.thumbs == 2 * 3 * 20
        assert page.pressed == []

    def test_a_judgement_is_pressed_in_each_list_it_stands_in(self, store):
        found, _ = self.draw(store)
        judged = ids(found.plain)[0]
        _, html = self.draw(store, {judged: 1.0})
        assert set(Page(html).pressed) == {(judged, "1")}
        assert "your grade" in html

    def test_document_text_is_only_text(self, store):
        _, html = self.draw(store)
        assert "onerror" in html
        assert "<img" not in html
        assert "img" not in Page(html).tags

    def test_notice_is_escaped(self):
        assert "<b>" not in cards.notice("<b>bold</b>")


class Page(HTMLParser):
    """The lists and thumbs of a drawn comparison."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.lists: dict[str, list[str]] = {}
        self.thumbs = 0
        self.pressed: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        if tag == "section":
            self.lists[given["data-list"]] = []
        elif tag == "li":
            list(self.lists.values())[-1].append(given["data-node"])
        elif tag == "button":
            self.thumbs += 1
            if given["aria-pressed"] == "true":
                self.pressed.append((given["data-node"], given["data-grade"]))


def test_pressing_a_thumb_again_takes_it_back():
    once = toggled({}, "a", 1.0)
    assert once == {"a": 1.0}
    assert toggled(once, "a", 1.0) == {}
    assert toggled(once, "a", 0.0) == {"a": 0.0}
    assert toggled(once, "b", 0.0) == {"a": 1.0, "b": 0.0}


def test_missing_gradio_is_told_with_the_command(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'pip install "llama-index-refine\[ui\]"'):
        launch(retriever_on(store, SubjectGrader()), open_browser=False, block=False)


def test_serving_connects_to_nothing_outside(tmp_path):
    """In a process of its own, because an audit hook cannot be taken off again."""
    script = textwrap.dedent("""
        import sys

        outside = []
        def audit(event, arguments):
            if event == "socket.connect" and isinstance(arguments[1], tuple):
                if arguments[1][0] not in ("127.0.0.1", "::1", "localhost"):
                    outside.append(arguments[1])
            if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "::1", "localhost", None):
                outside.append(arguments[0])
        sys.addaudithook(audit)

        import threading
        from urllib.request import ProxyHandler, build_opener
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient
        from llama_index_refine import RefinedRetriever
        from llama_index_refine.ui import launch

        store = QdrantVectorStore("empty", client=QdrantClient(":memory:"))
        page = launch(RefinedRetriever(store), {}, open_browser=False, block=False)
        assert page.local_url.startswith("http://127.0.0.1:"), page.local_url
        body = build_opener(ProxyHandler({})).open(page.local_url).read().decode()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join(1)
        page.close(verbose=False)
        assert not outside, outside
        print("fonts.googleapis" in body)
        """)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().splitlines()[-1] == "False"


class TestCommand:
    def test_opens_a_collection_on_disk(self, tmp_path):
        pytest.importorskip("sentence_transformers", reason="needs the extra demo")
        from qdrant_client import QdrantClient, models

        client = QdrantClient(path=str(tmp_path))
        client.create_collection("notes", models.VectorParams(size=384, distance=models.Distance.COSINE))
        client.close()
        options = CollectionOptions(collection="notes", path=tmp_path, text_key="body")
        with options.opened(None) as (retriever, _):
            assert retriever.retrieve("anything") == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--collection", "notes", "--path", "nowhere"], "nowhere"),
            (["--collection", "notes", "--url", "http://127.0.0.1:9"], "no Qdrant server"),
            (["--llm-base-url", "http://127.0.0.1:9/v1"], "--llm-model"),
        ],
    )
    def test_says_what_to_change(self, arguments, message):
        ran = CliRunner().invoke(app, ["ui", *arguments])
        assert ran.exit_code == 1
        assert message in ran.stderr

    def test_sample_labels_know_the_samples_own_queries_only(self):
        from llama_index.core.schema import QueryBundle

        from llama_index_refine.demo.sample import load_sample

        sample = load_sample()
        query = sample.queries[0]
        nodes = [TextNode(id_=labelled(document.id), text=document.text) for document in sample.documents]
        grades = SampleLabels(sample).grade(QueryBundle(f" {query.text.upper()} "), nodes)
        assert {at for at, grade in enumerate(grades) if grade} == sample.relevant(query)
        assert set(grades) == {0.0, 1.0}
        assert SampleLabels(sample).grade(QueryBundle("something else"), nodes[:2]) == [None, None]


@pytest.fixture
def browser() -> Iterator:
    reason = missing()
    if reason:
        pytest.skip(f"needs {reason}")
    with chromium(1440, 1240) as driver:
        yield driver


def test_in_a_browser(store, browser):
    """Type a query, see three lists, press a thumb: the refined list changes, and nothing is fetched from elsewhere."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def cards_of(name: str) -> list[str]:
        cards = browser.find_elements(By.CSS_SELECTOR, f"[data-list={name}] li")
        return [card.get_attribute("data-node") for card in cards]

    def wait(condition):
        return WebDriverWait(browser, 60).until(lambda _: condition())

    page = launch(
        retriever_on(store, SubjectGrader()), {"labels": SubjectGrader()}, [QUERY], open_browser=False, block=False
    )
    try:
        browser.get(page.local_url)
        box = wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#query input, #query textarea"))[0]
        box.send_keys(QUERY)
        browser.find_element(By.ID, "go").click()
        wait(lambda: len(cards_of("refined")) == 6)
        assert len(cards_of("search")) == len(cards_of("reranked")) == 6
        before = cards_of("refined")
        browser.find_element(By.CSS_SELECTOR, "[data-list=refined] li button.no").click()
        wait(lambda: browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]"))
        after = cards_of("refined")
        assert after != before
        assert after[0] != before[0]
        browser.find_element(By.ID, "forget").click()
        wait(lambda: not browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]"))
        assert cards_of("refined") == before
        box.clear()
        box.send_keys("img src onerror alert", Keys.ENTER)
        wait(lambda: HOSTILE in browser.find_element(By.ID, "results").text)
        assert browser.find_elements(By.CSS_SELECTOR, "#results img") == []
    finally:
        page.close(verbose=False)
    requested = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in requested if event["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(page.local_url) for url in urls)
    assert [url for url in urls if url.startswith("http") and not url.startswith("http://127.0.0.1:")] == []


def test_a_line_shows_where_the_selection_ends(store: QdrantVectorStore):
    teacher = Counting("owls")
    playground = Playground(retriever_on(store, teacher), {"teacher": teacher})
    few = playground.compare(QUERY, Settings("teacher", 10, 1, 30))
    asked = teacher.asked
    assert few.selection is not None
    assert few.cut is not None
    assert 0 < few.cut < 30
    html = cards.page(few, 10, "teacher")
    assert html.count("refine-cut") == 1
    refined = html.split('data-list="refined"')[1]
    assert refined.split("refine-cut")[0].count("refine-card") == few.cut
    assert f"{len(few.selection.nodes)} selected" in refined
    one = playground.compare(QUERY, Settings("teacher", 10, 1, 1))
    assert one.cut is None
    assert "goes on below" in cards.page(one, 10, "teacher")
    # The grades were there already.
    assert teacher.asked == asked


def test_no_line_where_nobody_can_say(store: QdrantVectorStore):
    playground = Playground(retriever_on(store, BrokenGrader()), {"teacher": BrokenGrader()})
    comparison = playground.compare(QUERY, Settings("teacher", 10, 1, 6))
    assert comparison.selection is None
    assert comparison.cut is None
    assert "refine-cut" not in cards.page(comparison, 10, "teacher")
