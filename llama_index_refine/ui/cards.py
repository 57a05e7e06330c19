"""The comparison as HTML. Document text is escaped: whatever it says, it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from llama_index.core.schema import MetadataMode

from llama_index_refine.display.moves import excerpt
from llama_index_refine.images.thumbnails import Thumbnails
from llama_index_refine.ui.comparison import DEPTH, Comparison, Result

_LONGEST = 320

_THUMB = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M2 21h4V9H2v12zm20-11a2 2 0 0 0-2-2h-6.3l1-4.6v-.3'
    "a1.5 1.5 0 0 0-.5-1.1L13.200 1 6.600 7.600A2 2 0 0 0 6 9v10a2 2 0 0 0 2 2h9a2 2 0 0 0 1.800-1.200l3-7.100"
    'a2 2 0 0 0 .2-.7v-2z"/></svg>'
)

CSS = """
.refine-cut { margin: 6px 0; padding-top: 4px; border-top: 2px dashed #2166ac; color: #2166ac;
  font-size: 13px; }
#results { --refine-soft: color-mix(in srgb, var(--body-text-color) 64%, transparent); --refine-line:
  color-mix(in srgb, var(--body-text-color) 14%, transparent); }
.refine-summary { display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: baseline; margin: 4px 0 14px;
  color: var(--refine-soft); font-size: 14px; }
.refine-summary b { color: var(--body-text-color); font-size: 17px; font-weight: 650; margin-right: 5px;
  font-variant-numeric: tabular-nums; }
.refine-notice { padding: 10px 14px; margin: 0 0 14px; border-radius: 8px; border: 1px solid #e3c98d;
  background: #fdf6e3; color: #6b4e10; }
.refine-empty { padding: 42px 0 60px; text-align: center; color: var(--refine-soft); }
.refine-columns { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 22px; }
@media (max-width: 860px) { .refine-columns { grid-template-columns: minmax(0, 1fr); } }
.refine-columns h3 { margin: 0; font-size: 16px; font-weight: 650; }
.refine-columns p { margin: 2px 0 10px; font-size: 13px; color: var(--refine-soft); }
.refine-columns ol { list-style: none; margin: 0; padding: 0; display: flex; flex-direction: column; gap: 6px; }
.refine-card { display: grid; grid-template-columns: 54px minmax(0, 1fr) auto; gap: 2px 10px; padding: 9px 10px 8px 6px;
  border: 1px solid var(--refine-line); border-left: 4px solid var(--refine-line);
  border-radius: 8px; background: var(--background-fill-primary); font-size: 14px; line-height: 1.4; }
.refine-card.good { border-left-color: #2f9e64; } .refine-card.fair { border-left-color: #d9a528; }
.refine-card.poor { border-left-color: #cf5b4b; }
.refine-card.found { background: color-mix(in srgb, #2f6fdb 7%, var(--background-fill-primary)); }
.refine-place { text-align: center; font-variant-numeric: tabular-nums; font-weight: 650; }
.refine-place small { display: block; font-weight: 500; font-size: 11px; white-space: nowrap;
  color: var(--refine-soft); }
.refine-place .up { color: #1f8a53; } .refine-place .down { color: #c04a3a; } .refine-place .new { color: #2f6fdb; }
.refine-text { overflow-wrap: anywhere; }
.refine-text img { display: inline-block; }
.refine-side { display: flex; flex-direction: column; align-items: flex-end; gap: 4px; }
.refine-grade { font-size: 12px; font-variant-numeric: tabular-nums; white-space: nowrap;
  color: var(--refine-soft); }
.refine-thumbs { display: flex; gap: 2px; }
.refine-thumbs button { all: unset; cursor: pointer; padding: 4px; border-radius: 6px; line-height: 0; opacity: .38; }
.refine-thumbs button:hover { opacity: 1; background: var(--background-fill-secondary); }
.refine-thumbs button:focus-visible { opacity: 1; outline: 2px solid #2f6fdb; }
.refine-thumbs svg { width: 16px; height: 16px; fill: var(--body-text-color); }
.refine-thumbs .no svg { transform: rotate(180deg); }
.refine-thumbs button[aria-pressed=true] { opacity: 1; }
.refine-thumbs .yes[aria-pressed=true] svg { fill: #1f8a53; }
.refine-thumbs .no[aria-pressed=true] svg { fill: #c04a3a; }
.refine-legend { margin: 14px 0 0; font-size: 13px; color: var(--refine-soft); }
"""

_LEGEND = (
    '<p class="refine-legend">Shaded: not in the search\'s own list. The coloured edge is the grade: green relevant, '
    "yellow in between, red not. A thumb is your own grade; it counts before the teacher's, and the query is refined "
    "again at once.</p>"
)

EMPTY = '<div class="refine-empty">Type a query, or pick one of those above, to see the three lists side by side.</div>'


def page(comparison: Comparison, count: int, teacher: str) -> str:
    """Draw the whole comparison.

    :param comparison: the three lists.
    :param count: how many documents may be graded.
    :param teacher: the teacher's name.
    :return: HTML.
    """
    columns = (
        ("Search", "the collection's own ranking", comparison.plain, False),
        ("Reranked", f"its first {count}, sorted by the grades", comparison.reranked, True),
        ("Refined", "searched again with the refined query", comparison.refined, True),
    )
    thumbnails = Thumbnails(comparison.refinement.image_folders)
    lists = "".join(
        _column(*column, thumbnails, _cut(comparison) if column[0] == "Refined" else None) for column in columns
    )
    return f'{_summary(comparison, teacher)}<div class="refine-columns">{lists}</div>{_LEGEND}'


def notice(text: str) -> str:
    """Draw a sentence that the user should read.

    :param text: the sentence, not yet escaped.
    :return: HTML.
    """
    return f'<div class="refine-notice" role="status">{escape(text)}</div>'


def _summary(comparison: Comparison, teacher: str) -> str:
    refinement = comparison.refinement
    if not refinement.refined:
        return notice(f"Not refined: {refinement.reason}. The refined list is the search's own.")
    gained = comparison.gained
    facts = [
        (str(gained), "new document in the list" if gained == 1 else "new documents in the list"),
        (str(len(refinement.grades)), f"graded by {teacher} in {_times(refinement.rounds)}"),
        (f"{refinement.kl_before:.2f} → {refinement.kl_after:.2f}", "KL from the grades, in nats"),
        *_bill(comparison),
    ]
    parts = "".join(f"<span><b>{escape(number)}</b>{escape(words)}</span>" for number, words in facts)
    return f'<div class="refine-summary">{parts}</div>'


def _times(rounds: int) -> str:
    return "one round" if rounds == 1 else f"{rounds} rounds"


def _bill(comparison: Comparison) -> list[tuple[str, str]]:
    """What all three lists cost."""
    refinement, more = comparison.refinement, comparison.reranking
    calls = refinement.llm_calls + more.calls
    tokens = refinement.prompt_tokens + refinement.completion_tokens + more.prompt_tokens + more.completion_tokens
    return [(str(calls), "calls of the LLM"), (f"{tokens:,}", "tokens")] if calls else []


def _cut(comparison: Comparison) -> tuple[int, str] | None:
    """Return after which card the line goes, and what it says."""
    selection = comparison.selection
    if selection is None:
        return None
    said = f"about {selection.expected_total:.0f} belong; {len(selection.nodes)} selected"
    low, estimate, high = selection.precision
    said += f", {100 * estimate:.0f} % of them right ({100 * low:.0f} to {100 * high:.0f} %)"
    where = comparison.cut
    return (len(comparison.refined), f"goes on below: {said}") if where is None else (where, f"cut here: {said}")


def _column(
    name: str,
    explanation: str,
    results: Sequence[Result],
    moves: bool,
    thumbnails: Thumbnails,
    cut: tuple[int, str] | None = None,
) -> str:
    drawn = [_card(place, result, len(results), moves, thumbnails) for place, result in enumerate(results, 1)]
    if cut is not None:
        drawn.insert(cut[0], f'</ol><div class="refine-cut" role="separator">{escape(cut[1])}</div><ol>')
    cards = "".join(drawn)
    heading = f"<h3>{name}</h3><p>{escape(explanation)}</p>"
    return f'<section data-list="{name.lower()}">{heading}<ol>{cards or "Nothing found."}</ol></section>'


def _card(place: int, result: Result, shown: int, moves: bool, thumbnails: Thumbnails) -> str:
    images = thumbnails.of_node(result.node)
    text = " ".join(result.node.get_content(MetadataMode.NONE).split()) or ("" if images else excerpt(result.node, 80))
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST].rsplit(' ', 1)[0]} …"
    node_id = escape(result.node.node_id)
    found = " found" if result.before is None or result.before > shown else ""
    return (
        f'<li class="refine-card {_colour(result.grade)}{found}" data-node="{node_id}">'
        f'<div class="refine-place">{place}{_move(place, result.before) if moves else ""}</div>'
        f'<div class="refine-text">{images}{escape(text)}</div>'
        f'<div class="refine-side"><span class="refine-grade">{_grade(result)}</span>'
        f'<span class="refine-thumbs">{_thumb(result, node_id, 1.0)}{_thumb(result, node_id, 0.0)}</span></div></li>'
    )


def _move(place: int, before: int | None) -> str:
    if before is None:
        return f'<small class="new" title="below rank {DEPTH} before">new</small>'
    if before == place:
        return '<small title="same rank as before">=</small>'
    arrow, way = ("▲", "up") if before > place else ("▼", "down")
    return f'<small class="{way}" title="rank {before} before">{arrow} was {before}</small>'


def _colour(grade: float | None) -> str:
    if grade is None:
        return "ungraded"
    return "good" if grade >= 2 / 3 else "fair" if grade >= 1 / 3 else "poor"


def _grade(result: Result) -> str:
    if result.grade is None:
        return '<span title="nobody has graded this one">not read</span>'
    return "your grade" if result.judged else f"{result.grade:.2f}"


def _thumb(result: Result, node_id: str, grade: float) -> str:
    name, label = ("yes", "Relevant") if grade else ("no", "Not relevant")
    pressed = "true" if result.judged and result.grade == grade else "false"
    return (
        f'<button class="{name}" type="button" data-node="{node_id}" data-grade="{grade:g}" aria-pressed="{pressed}" '
        f'aria-label="{label}" title="{label}">{_THUMB}</button>'
    )
