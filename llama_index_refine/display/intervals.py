"""Figures with their intervals, as a table, in a notebook and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from rich.table import Table

from llama_index_refine.display.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What each figure is called, with low, estimate and high.
Rows = Sequence[tuple[str, Sequence[float]]]
_BLUE = "#2166ac"


def to_table(rows: Rows) -> Table:
    """Show them with rich."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "estimate", "from", "to"):
        table.add_column(name, justify="right" if name else "left")
    for name, (low, estimate, high) in rows:
        table.add_row(name, *map(_written, (estimate, low, high)))
    return table


def to_html(rows: Rows, sentences: Sequence[str]) -> str:
    """Show them, and sentences above, as HTML that needs no style sheet and no script."""
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    cells = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{_written(value)}</td>' for value in (estimate, low, high))}</tr>"
        for name, (low, estimate, high) in rows
    )
    head = "".join(f"<th>{name}</th>" for name in ("", "estimate", "from", "to"))
    return f"<div>{said}<table><tr>{head}</tr>{cells}</table></div>"


def draw_intervals(rows: Rows) -> Figure:
    """Draw them beside each other.

    :raises ImportError: matplotlib is missing.
    """
    figure = new_figure(7, 0.5 * len(rows) + 1)
    axes = figure.subplots()
    for at, (_, (low, estimate, high)) in enumerate(rows):
        axes.plot([low, high], [at, at], color=_BLUE)
        axes.plot([estimate], [at], "o", color=_BLUE)
    axes.set(yticks=range(len(rows)), yticklabels=[name for name, _ in rows], xlim=(min(0, *_lows(rows)), 1))
    axes.invert_yaxis()
    return figure


def _lows(rows: Rows) -> list[float]:
    return [float(low) for _, (low, _, _) in rows]


def _written(value: float) -> str:
    return "not known" if value != value else f"{value:.2f}"
