"""The picture: how well similarity tells relevant from irrelevant documents, before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llama_index_refine.demo.measure import Gain

_COLOURS = {"irrelevant": "#b0b7c3", "relevant": "#0b7a75"}


def draw(gain: Gain, path: Path) -> None:
    """Draw the distributions of similarity, both panels on the same axes.

    :param gain: what was measured.
    :param path: the PNG file.
    :raises ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the picture needs: pip install "llama-index-refine[demo]"') from error
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    edges = np.array(gain.distribution.edges)
    for panel, when, measured in zip(panels, ("before", "after"), (gain.plain, gain.refined), strict=True):
        for kind, colour in _COLOURS.items():
            counts = np.array(gain.distribution.counts[f"{kind} {when}"], dtype=float)
            share = counts / max(counts.sum(), 1)
            panel.stairs(share, edges, fill=True, alpha=0.75, color=colour, label=f"{kind} documents")
        title = "First search" if when == "before" else "Refined query"
        panel.set_title(f"{title}: area under ROC {measured.mean('ROC AUC'):.3f}", fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(-3, 8)
    panels[0].set_ylabel("share of documents")
    panels[0].legend(frameon=False, loc="upper right")
    figure.supxlabel("similarity to the query, in standard deviations from the mean of all documents", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
