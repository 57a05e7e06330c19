"""Progress bars."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def progress_on(console: Console) -> Progress:
    """Make bars that say what is done, how much of it, and for how long it has been.

    :param console: where they are drawn.
    :return: the bars, without any yet.
    """
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
