"""A refinement in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llama_index_refine.display.moves import Move, clean, cost, effect, excerpt, moves

if TYPE_CHECKING:
    from llama_index_refine.refinement import Refinement

_STYLE = {"new": "bold blue", "up": "green", "down": "yellow", "still": "", "gone": "dim"}
_WIDTH = 300


def to_table(refinement: Refinement) -> RenderableType:
    """Show a refinement with rich.

    :param refinement: what to show.
    :return: what `rich.print` prints. No text in it is read as markup, and none holds control characters.
    """
    query = clean(refinement.query_str)
    lines: list[RenderableType] = [Text(f"“{query}”" if query else "Refinement", style="bold")]
    lines += [Text(effect(refinement)), Text(cost(refinement), style="dim")]
    rows = moves(refinement)
    return Group(*lines, _table(rows)) if rows else Group(*lines)


def _table(rows: list[Move]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("rank", "moved", "grade", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("node", ratio=1, no_wrap=True, overflow="ellipsis")
    for move in rows:
        table.add_row(
            "" if move.rank is None else str(move.rank),
            Text(move.label, style=_STYLE[move.kind]),
            "" if move.grade is None else f"{move.grade:.2f}",
            "" if move.score is None else f"{move.score:.3f}",
            Text(excerpt(move.node, _WIDTH)),
            style="dim" if move.rank is None else "",
        )
    return table
