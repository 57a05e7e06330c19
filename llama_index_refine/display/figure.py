"""A refinement as a figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llama_index_refine.display.moves import clean
from llama_index_refine.display.record import as_array, as_rows
from llama_index_refine.similarity import Metric, score_of_similarity, similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from llama_index_refine.refinement import Refinement

_GRADES = "RdYlBu"
_BACKGROUND = "#b5b5b5"
_INK = "#111111"
_DOT: dict[str, Any] = {"cmap": _GRADES, "vmin": 0, "vmax": 1, "edgecolor": "0.3", "linewidth": 0.5, "zorder": 3}
_SCORE = {"cosine": "cosine similarity", "dot": "inner product", "euclid": "distance (nearer to the right)"}


def new_figure(width: float, height: float) -> Figure:
    """Begin a figure, in inches.

    :raises ImportError: matplotlib is missing.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError('plotting needs matplotlib: pip install "llama-index-refine[plot]"') from error
    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    # The figure is the caller's: pyplot shall neither keep it alive nor show it a second time in a notebook.
    pyplot.close(figure)
    return figure


def draw(refinement: Refinement) -> Figure:
    """Draw a refinement. See `Refinement.plot`."""
    if not refinement.refined:
        raise ValueError(f"there is nothing to draw, because nothing was refined: {refinement.reason}")
    figure = new_figure(13, 4.4)
    from matplotlib import colormaps

    refinement = as_rows(refinement)
    columns = figure.add_gridspec(1, 3, width_ratios=[1, 1.15, 1])
    halves = columns[0].subgridspec(2, 1)
    above = figure.add_subplot(halves[0])
    below = figure.add_subplot(halves[1], sharex=above, sharey=above)
    path, student = figure.add_subplot(columns[1]), figure.add_subplot(columns[2])
    _scores(refinement, above, below, colormaps[_GRADES])
    dots = _path(refinement, path)
    _student(refinement, student)
    figure.colorbar(dots, ax=[student], label="grade")
    if refinement.query_str:
        # A dollar sign would begin a formula.
        figure.suptitle(f"“{clean(refinement.query_str, 100)}”".replace("$", r"\$"), fontsize=11)
    return figure


def _scores(refinement: Refinement, above: Axes, below: Axes, colour: Callable[[float], Any]) -> None:
    """Histograms of the documents' scores at the query and at the refined vector."""
    grades, metric = as_array(refinement.grades), refinement.metric
    documents, background = as_array(refinement.documents), as_array(refinement.background)
    groups = [("background", background, _BACKGROUND)] if len(background) else []
    groups += [
        ("grade below ½", documents[grades < 0.5], colour(0.1)),
        ("grade ½ and above", documents[grades >= 0.5], colour(0.9)),
    ]
    shown = [group for group in groups if len(group[1])]
    for axes, vector, when in ((above, refinement.query, "before"), (below, refinement.vector, "after")):
        scores = [_score(vector, rows, metric) for _, rows, _ in shown]
        low, high = min(map(np.min, scores)), max(map(np.max, scores))
        bins = np.linspace(low, max(high, low + 1e-6), 21).tolist()
        axes.hist(scores, bins=bins, stacked=True, color=[colour for *_, colour in shown])
        axes.margins(y=0.3)
        axes.text(0.03, 0.93, when, transform=axes.transAxes, va="top", fontweight="bold")
    above.tick_params(labelbottom=False)
    if metric == "euclid":
        above.invert_xaxis()
    below.set_xlabel(_SCORE[metric])
    below.set_ylabel("documents")
    above.set_title("Scores")


def _score(query: Any, documents: np.ndarray, metric: Metric) -> np.ndarray:
    vector, rows = torch.from_numpy(as_array(query)), torch.from_numpy(documents)
    return score_of_similarity(similarity(vector, rows, metric), metric).numpy()


def _path(refinement: Refinement, axes: Axes) -> Any:
    """The query's way among the documents, in their first two principal components."""
    documents, background = as_array(refinement.documents), as_array(refinement.background)
    stops = np.stack([as_array(stop) for stop in (refinement.query, *(refinement.path or [refinement.vector]))])
    if refinement.metric != "euclid":
        # Only their direction counts, so they are drawn where documents of that direction lie.
        stops = stops / np.linalg.norm(stops, axis=1, keepdims=True)
        if refinement.metric == "dot":
            stops = stops * np.linalg.norm(documents, axis=1).mean()
    if refinement.metric == "cosine":
        documents, background = _unit(documents), _unit(background)
    centre = documents.mean(0)
    _, sizes, components = np.linalg.svd(documents - centre, full_matrices=False)
    # A single dimension has no second component.
    plane = np.pad(components[:2], ((0, 2 - len(components[:2])), (0, 0))).T
    shares = [*(sizes**2 / max((sizes**2).sum(), 1e-12)), 0.0]
    flat, around, way = ((rows - centre) @ plane for rows in (documents, background, stops))
    axes.scatter(around[:, 0], around[:, 1], s=12, color=_BACKGROUND, label="background")
    dots = axes.scatter(flat[:, 0], flat[:, 1], c=as_array(refinement.grades), s=42, **_DOT)
    axes.plot(way[:, 0], way[:, 1], ".-", color=_INK, linewidth=1.2, zorder=3)
    axes.plot(*way[0], "o", markerfacecolor="white", markeredgecolor=_INK, markersize=9, zorder=4, label="query")
    axes.plot(*way[-1], "*", color=_INK, markersize=15, zorder=4, label="refined")
    axes.set_title("Path of the query")
    axes.set_xlabel(f"first principal component of the graded documents ({shares[0]:.0%})")
    axes.set_ylabel(f"second ({shares[1]:.0%})")
    axes.legend(loc="best", fontsize=8, framealpha=0.8)
    return dots


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    return unit


def _student(refinement: Refinement, axes: Axes) -> None:
    """What share each graded document should have and has, before and after."""
    count = len(refinement.grades)
    target, before, after = (
        as_array(shares)[:count].clip(1e-6)
        for shares in (refinement.target, refinement.student_before, refinement.student_after)
    )
    axes.vlines(target, before, after, color="0.8", linewidth=1, zorder=1)
    axes.scatter(target, before, s=26, facecolor="white", edgecolor="0.4", label="before", zorder=2)
    axes.scatter(target, after, c=as_array(refinement.grades), s=42, **_DOT)
    axes.scatter([], [], s=42, color="0.4", label="after")
    every = np.concatenate([target, before, after])
    ends = [every.min() / 2, every.max() * 2]
    axes.plot(ends, ends, ":", color="0.5", linewidth=1, zorder=0)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="target", ylabel="student")
    axes.set_title(f"Target and student: KL {refinement.kl_before:.2f} → {refinement.kl_after:.2f}")
    axes.legend(loc="upper left", fontsize=8, framealpha=0.8)
