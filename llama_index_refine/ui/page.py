"""The playground's page, in Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from llama_index_refine.ui import cards
from llama_index_refine.ui.comparison import Playground, Settings

Judgements = Mapping[str, float]

# The cards reach the page as the value of one component, which no template engine reads: document text stays text.
_TELL_THUMBS = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-grade]');
  if (button) trigger('click', { node: button.dataset.node, grade: Number(button.dataset.grade) });
});
"""

_LAYOUT = """
.gradio-container { max-width: 1440px !important; margin: 0 auto; }
#title, #title > *, #results, #results > * { padding-left: 0 !important; padding-right: 0 !important; }
#title h1 { display: inline; font-size: 22px; margin: 0 14px 0 0; } #title p { display: inline; margin: 0; }
#query textarea, #query input { font-size: 17px; }
#go, #forget { min-width: 176px; } #forget { font-size: 14px; font-weight: 500; }
"""


def theme() -> gr.themes.Base:
    """Return a plain theme with the system's own fonts, so that nothing is fetched."""
    return gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )


def css() -> str:
    """Return the page's style sheet."""
    return _LAYOUT + cards.CSS


def build(playground: Playground, queries: Sequence[str] = ()) -> gr.Blocks:
    """Lay the page out.

    :param playground: what answers.
    :param queries: queries to offer.
    :return: the page, not yet served.
    """
    retriever = playground.retriever
    names = playground.teachers
    page = gr.Blocks(analytics_enabled=False, title="llama-index-refine", fill_width=True)
    with page:
        name = escape(retriever.vector_store.collection_name)
        gr.HTML(f"<h1>Refine a search</h1><p>collection <b>{name}</b></p>", elem_id="title")
        with gr.Row(equal_height=True):
            query = gr.Textbox(
                label="Query", placeholder="What are you looking for?", elem_id="query", scale=6, autofocus=True
            )
            go = gr.Button("Search", variant="primary", elem_id="go", scale=0)
        if queries:
            gr.Examples([[text] for text in queries], [query], label="Try one of these", examples_per_page=len(queries))
        with gr.Row():
            teacher = gr.Dropdown(names, value=names[0], label="Teacher", elem_id="teacher", scale=2)
            count = gr.Slider(
                2, 100, retriever.feedback_top_k, step=1, label="K, documents to grade", elem_id="count", scale=2
            )
            rounds = gr.Slider(1, 5, retriever.rounds, step=1, label="Rounds", elem_id="rounds", scale=2)
            shown = gr.Slider(
                1, 50, retriever.similarity_top_k, step=1, label="Results to show", elem_id="shown", scale=2
            )
            forget = gr.Button("Forget my thumbs", elem_id="forget", scale=0)
        results = gr.HTML(cards.EMPTY, js_on_load=_TELL_THUMBS, elem_id="results")
        asked = gr.State("")
        judgements: Any = gr.State({})

        def draw(text: str, settings: Settings, judged: Judgements) -> str:
            if not text.strip():
                return cards.EMPTY
            try:
                comparison = playground.compare(text, settings, judged)
            except Exception as error:
                return cards.notice(f"{type(error).__name__}: {error}")
            return cards.page(comparison, settings.feedback_top_k, settings.teacher)

        def search(
            text: str, before: str, judged: Judgements, teacher: str, count: int, rounds: int, shown: int
        ) -> tuple[str, str, Judgements]:
            kept = judged if text == before else {}
            return draw(text, Settings(teacher, count, rounds, shown), kept), text, kept

        def again(text: str, judged: Judgements, teacher: str, count: int, rounds: int, shown: int) -> str:
            return draw(text, Settings(teacher, count, rounds, shown), judged)

        def judge(
            event: gr.EventData, text: str, judged: Judgements, teacher: str, count: int, rounds: int, shown: int
        ) -> tuple[str, Judgements]:
            kept = toggled(judged, str(event.node), float(event.grade))
            return draw(text, Settings(teacher, count, rounds, shown), kept), kept

        def clear(text: str, teacher: str, count: int, rounds: int, shown: int) -> tuple[str, Judgements]:
            return draw(text, Settings(teacher, count, rounds, shown), {}), {}

        settings = [teacher, count, rounds, shown]
        # One at a time: the collection and the teachers' memories are shared.
        one: dict[str, Any] = {"concurrency_id": "playground", "concurrency_limit": 1, "api_visibility": "private"}
        gr.on(
            [go.click, query.submit], search, [query, asked, judgements, *settings], [results, asked, judgements], **one
        )
        results.click(judge, [asked, judgements, *settings], [results, judgements], **one)
        forget.click(clear, [asked, *settings], [results, judgements], **one)
        gr.on(
            [teacher.input, count.release, rounds.release, shown.release],
            again,
            [asked, judgements, *settings],
            results,
            **one,
        )
    return page


def toggled(judgements: Judgements, node_id: str, grade: float) -> Judgements:
    """Add a judgement, or take it back where the same thumb is pressed again.

    :param judgements: the grades so far by node id.
    :param node_id: the node.
    :param grade: 1 for relevant, 0 for not.
    :return: the grades now.
    """
    others = {node: kept for node, kept in judgements.items() if node != node_id}
    return others if judgements.get(node_id) == grade else {**others, node_id: grade}
