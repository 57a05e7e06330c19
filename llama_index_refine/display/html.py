"""A refinement in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from llama_index_refine.display.moves import Move, clean, cost, effect, excerpt, moves
from llama_index_refine.images.thumbnails import Thumbnails

if TYPE_CHECKING:
    from llama_index_refine.refinement import Refinement

# Colours that can be read on white and on black; everything else takes the page's own.
_COLOUR = {"new": "#2f81d8", "up": "#2a9d63", "down": "#c9731a", "still": "inherit", "gone": "#8a8a8a"}
_LINE = "1px solid rgba(128, 128, 128, 0.3)"
_CELL = f"padding: 0.3em 0.7em; text-align: left; vertical-align: top; border: none; border-top: {_LINE};"
_NUMBER = _CELL.replace("left", "right") + " white-space: nowrap; font-variant-numeric: tabular-nums;"
_WIDTH = 160


def to_html(refinement: Refinement) -> str:
    """Show a refinement as HTML that needs no style sheet and no script.

    :param refinement: what to show.
    :return: a `div`; all text in it is escaped. Images are shown small, and none is fetched.
    """
    query = clean(refinement.query_str)
    thumbnails = Thumbnails(refinement.image_folders)
    title = f"<b>“<bdi>{escape(query)}</bdi>”</b>" if query else "<b>Refinement</b>"
    small = '<div style="opacity: 0.75; margin: 0.2em 0;">'
    rows = moves(refinement)
    return (
        '<div style="max-width: 62em; line-height: 1.4;">'
        f'<div style="margin: 0.2em 0;">{thumbnails.of_path(refinement.image_path)}{title}</div>'
        f"{small}{escape(effect(refinement))}<br>{escape(cost(refinement))}</div>"
        f"{_table(rows, thumbnails) if rows else ''}</div>"
    )


def _table(rows: list[Move], thumbnails: Thumbnails) -> str:
    heads = (("rank", _NUMBER), ("moved", _CELL), ("grade", _CELL), ("score", _NUMBER), ("node", _CELL))
    head = "".join(f'<th style="{style} border-top: none; font-weight: 600;">{name}</th>' for name, style in heads)
    body = "".join(_row(row, thumbnails.of_node(row.node)) for row in rows)
    return (
        '<table style="border-collapse: collapse; width: 100%; margin: 0.5em 0;">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _row(move: Move, images: str) -> str:
    rank = "" if move.rank is None else str(move.rank)
    score = "" if move.score is None else f"{move.score:.3f}"
    text = f'<bdi title="{escape(excerpt(move.node, 1000))}">{escape(excerpt(move.node, _WIDTH))}</bdi>'
    moved = f'<span style="color: {_COLOUR[move.kind]}; font-weight: 600;">{move.label}</span>'
    faded = ' style="opacity: 0.55;"' if move.rank is None else ""
    return (
        f'<tr{faded}><td style="{_NUMBER}">{rank}</td><td style="{_CELL} white-space: nowrap;">{moved}</td>'
        f'<td style="{_CELL} white-space: nowrap;">{_bar(move.grade)}</td><td style="{_NUMBER}">{score}</td>'
        f'<td style="{_CELL} overflow-wrap: anywhere;">{images}{text}</td></tr>'
    )


def _bar(grade: float | None) -> str:
    if grade is None:
        return ""
    return (
        '<span style="display: inline-block; width: 3em; height: 0.6em; margin-right: 0.5em; border-radius: 0.2em; '
        'overflow: hidden; background: rgba(128, 128, 128, 0.25);"><span style="display: block; height: 100%; '
        f'width: {100 * grade:.0f}%; background: {_COLOUR["up"]};"></span></span>{grade:.2f}'
    )
