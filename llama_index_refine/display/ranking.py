"""A ranked list of documents as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Place:
    """One document in a ranked list.

    :param text: the document.
    :param grade: the teacher's, None where it gave none.
    :param was: the rank before, in words; empty where there was none to compare with.
    :param relevant: the human label, None where there is none.
    """

    text: str
    grade: float | None = None
    was: str = ""
    relevant: bool | None = None


def ranking_table(title: str, places: Sequence[Place]) -> Table:
    """Make a table with one line for each document, which a narrow terminal cuts short.

    :param title: stands above it.
    :param places: best first. Columns that are empty for all are left out.
    :return: the table.
    """
    labelled = any(place.relevant is not None for place in places)
    compared = any(place.was for place in places)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, expand=True)
    table.add_column("#", justify="right")
    if compared:
        table.add_column("was", justify="right")
    table.add_column("grade", justify="right")
    if labelled:
        table.add_column("relevant")
    table.add_column("document", no_wrap=True, overflow="ellipsis", ratio=1)
    for rank, place in enumerate(places, 1):
        cells = [str(rank)]
        if compared:
            cells.append(place.was)
        cells.append("-" if place.grade is None else f"{place.grade:.2f}")
        if labelled:
            cells.append("yes" if place.relevant else "no")
        style = "" if place.relevant is None else "green" if place.relevant else "dim"
        table.add_row(*cells, Text(one_line(place.text)), style=style)
    return table


def one_line(text: str) -> str:
    """Put a text on one line, without what could steer a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
