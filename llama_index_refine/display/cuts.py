"""The cuts of a ranking as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index_refine.display.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llama_index_refine.selection import Cuts

_PRECISION, _RECALL, _INK = "#2166ac", "#b2182b", "#111111"


def draw_cuts(cuts: Cuts, precision: Sequence[float], recall: Sequence[float]) -> Figure:
    """Draw precision and recall against the cut. See `Selection.plot`.

    :param cuts: what is expected of each.
    :param precision: low, estimate and high end at the cut that was made.
    :param recall: the same.
    :return: the figure.
    :raises ImportError: matplotlib is missing.
    :raises ValueError: there are no cuts.
    """
    if not len(cuts.counts):
        raise ValueError("there is nothing to draw, because the collection had nothing to select from")
    figure = new_figure(7, 4)
    axes = figure.subplots()
    shown = [count for count in cuts.counts if 0 < count <= max(3 * cuts.chosen, 20)]
    first = next((at for at, count in enumerate(cuts.counts) if count > 0), 0)
    part = slice(first, first + len(shown))
    ends: tuple[tuple[str, str, Sequence[float], Sequence[float]], ...] = (
        ("precision", _PRECISION, cuts.precision, precision),
        ("recall", _RECALL, cuts.recall, recall),
    )
    for name, colour, values, interval in ends:
        axes.plot(shown, values[part], color=colour, label=name)
        _whisker(axes, cuts.chosen, interval, colour)
    axes.axvline(cuts.chosen, color=_INK, linewidth=1, linestyle="--")
    axes.annotate(f"cut at {cuts.chosen}", (cuts.chosen, 0.02), xytext=(4, 0), textcoords="offset points", color=_INK)
    axes.set(xlabel="nodes selected", ylabel="expected", ylim=(0, 1.03), xlim=(0, None))
    axes.legend(loc="lower right")
    return figure


def _whisker(axes: Any, at: int, interval: Sequence[float], colour: str) -> None:
    low, estimate, high = interval
    axes.errorbar(
        [at], [estimate], [[max(estimate - low, 0)], [max(high - estimate, 0)]], color=colour, capsize=4, fmt="o"
    )
