"""Ranked lists as a terminal shows them."""

from __future__ import annotations

from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llama_index_refine.display.ranking import Place, one_line, ranking_table


def shown(places: list[Place], width: int = 60) -> list[str]:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(ranking_table("List", places))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_only_columns_with_something_in_them():
    assert shown([Place("a")])[1].split() == ["#", "grade", "document"]
    assert shown([Place("a", 0.5, "3", True)])[1].split() == ["#", "was", "grade", "relevant", "document"]


def test_a_long_document_takes_one_line():
    lines = shown([Place("word " * 100, 1.0), Place("[bold]second[/bold]\nline")])
    assert len(lines) == 4
    assert lines[2].rstrip().endswith("…")
    assert lines[3].rstrip().split(maxsplit=2) == ["2", "-", "[bold]second[/bold] line"]


@given(st.text())
def test_nothing_in_a_text_steers_the_terminal(text: str):
    line = one_line(f"\x1b[2J\x1b]0;title\x07{text}")
    assert line.isprintable()
