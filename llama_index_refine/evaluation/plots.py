"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_index_refine.evaluation.results import BASELINE, REFINED, Cell, Run

_COLOURS = {"relevant": "tab:green", "irrelevant": "tab:gray"}
# Shades of one colour are hard to tell apart where lines are thin.
_MARKERS = "vs^DPX*<>p"


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw a run: gain by data set, quality against the number of graded documents, and score distributions.

    :param folder: where to write the PNG files.
    :return: their paths. Quality against graded documents needs more than one number of them.
    :raises ImportError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError('plots need: pip install "llama-index-refine[plot]"') from error
    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_gains(run.cells, folder / "gain.png")]
    if len({cell.feedback_top_k for cell in run.cells}) > 1:
        drawn.append(_by_graded(run.cells, folder / "graded.png"))
    drawn += [_distributions(data, cells, folder) for data, cells in _largest_by_data(run.cells).items()]
    return drawn


def _largest_by_data(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells with the most graded documents, by data set and embedding."""
    most = max(cell.feedback_top_k for cell in cells)
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.feedback_top_k == most and cell.distribution is not None:
            found.setdefault(cell.data, []).append(cell)
    return found


def _gains(cells: Sequence[Cell], path: Path) -> Path:
    """Bars: the gain in MAP of each method, by data set, a panel for each teacher."""
    most = max(cell.feedback_top_k for cell in cells)
    teachers = list(dict.fromkeys(cell.teacher for cell in cells))
    figure, panels = _panels(len(teachers), 1, 9, 3.2)
    for panel, teacher in zip(panels[:, 0], teachers, strict=True):
        own = [cell for cell in cells if cell.teacher == teacher and cell.feedback_top_k == most]
        methods = [name for name in own[0].measured if name != BASELINE]
        width = 0.8 / len(methods)
        for place, method in enumerate(methods):
            heights = [cell.gain(method) if method in cell.measured else np.nan for cell in own]
            at = np.arange(len(own)) + (place - (len(methods) - 1) / 2) * width
            colour = "tab:red" if method == REFINED else _blue(place, len(methods))
            panel.bar(at, heights, width, label=method, color=colour)
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set_xticks(range(len(own)), [cell.data for cell in own], fontsize=8)
        panel.set_ylabel(f"gain in MAP over {BASELINE}", fontsize=8)
        panel.set_title(f"{teacher} teacher, {most} graded", fontsize=9)
    _name_all(figure, panels)
    return _save(figure, path)


def _blue(place: int, count: int) -> tuple[float, float, float]:
    """One of `count` blues, from light to dark, for what is not ours."""
    share = place / max(count - 1, 1)
    return 0.75 - 0.6 * share, 0.85 - 0.5 * share, 0.95 - 0.3 * share


def _by_graded(cells: Sequence[Cell], path: Path) -> Path:
    """Lines: MAP against the number of graded documents, a panel for each data set and teacher."""
    data = list(dict.fromkeys(cell.data for cell in cells))
    teachers = list(dict.fromkeys(cell.teacher for cell in cells))
    figure, panels = _panels(len(data), len(teachers), 3.2, 2.6)
    for row, name in enumerate(data):
        for column, teacher in enumerate(teachers):
            own = sorted(
                (cell for cell in cells if (cell.data, cell.teacher) == (name, teacher)), key=lambda c: c.feedback_top_k
            )
            panel = panels[row, column]
            for place, method in enumerate(own[0].measured if own else ()):
                heights = [cell.measured[method].mean("MAP") for cell in own if method in cell.measured]
                colour, marker = _blue(place, len(own[0].measured)), _MARKERS[place % len(_MARKERS)]
                style: dict[str, Any] = {"color": colour, "linewidth": 1, "marker": marker, "markersize": 4}
                if method == REFINED:
                    style = {"color": "tab:red", "linewidth": 2, "marker": "o", "markersize": 3}
                panel.plot([cell.feedback_top_k for cell in own], heights, label=method, **style)
            panel.set_title(f"{name}, {teacher}", fontsize=8)
            panel.tick_params(labelsize=7)
    _name_all(figure, panels)
    figure.supxlabel("graded documents per query", fontsize=9)
    figure.supylabel("MAP", fontsize=9)
    return _save(figure, path)


def _distributions(data: str, cells: Sequence[Cell], folder: Path) -> Path:
    """Histograms: standardised similarities of relevant and irrelevant documents, before and after."""
    figure, panels = _panels(len(cells), 2, 4, 2.2)
    for row, cell in enumerate(cells):
        assert cell.distribution is not None
        for column, when in enumerate(("before", "after")):
            panel = panels[row, column]
            for kind, colour in _COLOURS.items():
                counts = np.array(cell.distribution.counts[f"{kind} {when}"], dtype=float)
                share = counts / max(counts.sum(), 1)
                panel.stairs(share, cell.distribution.edges, fill=True, alpha=0.55, color=colour, label=kind)
            method = BASELINE if when == "before" else REFINED
            area = cell.measured[method].mean("ROC AUC")
            panel.set_title(f"{cell.teacher} teacher, {when}: area under ROC {area:.3f}", fontsize=8)
            panel.tick_params(labelsize=7)
    panels[0, 0].legend(fontsize=7)
    figure.suptitle(data, fontsize=9)
    figure.supxlabel("similarity to the query, in standard deviations from the mean of all documents", fontsize=8)
    name = "".join(letter if letter.isalnum() else "-" for letter in data).strip("-")
    return _save(figure, folder / f"scores-{name}.png")


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    return plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained", sharey="row"
    )


def _name_all(figure: Any, panels: Any) -> None:
    """One legend above all panels."""
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", fontsize=7, ncols=5)


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
