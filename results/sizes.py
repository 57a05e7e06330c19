"""Which size of a local model is enough, from grades that are kept.

    python -m results.sizes data/argkp data/banking77 --model smollm2-135m-instruct-q4_1 \
        --model qwen2.5-coder-1.5b-q4_k_m --out results/llm/sizes.md --plot docs/images/local-models.png

Every model is measured on the same queries: those whose first documents all of them have graded.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from results.llm import SETTINGS, Measured, measure, table
from results.recorded import GRADES, Kept, graded_rows, opened

PLAIN = ("no feedback", "reranked", "published")
DRAWN = ("reranked", "published", "refined", "refined, one round")


def shared_rows(spec: str, models: Sequence[str], grades: Path, many: int) -> list[int]:
    """Return the rows of the queries whose first documents every model has graded."""
    corpus = opened(spec, many)
    rows = [graded_rows(corpus, Kept.load(grades, model, corpus.dataset.name)) for model in models]
    return sorted(set[int].intersection(*map(set, rows)))


def area_within(measured: Sequence[Measured]) -> float:
    """Return the area under the ROC curve within a query, mean of the collections."""
    return float(np.nanmean([one.area_within for one in measured]))


def gains(measured: Sequence[Measured], method: str) -> list[float]:
    """Return a method's gain of nDCG@10 over the first search, for each collection."""
    return [one.scores[method]["nDCG@10"] - one.scores["no feedback"]["nDCG@10"] for one in measured]


def page(sizes: Mapping[str, Sequence[Measured]], specs: Sequence[str], command: str) -> str:
    """Write a row for each model: what its grades are worth, and what is made of them."""
    first = next(iter(sizes.values()))
    queries = ", ".join(f"{Path(spec).name} {len(one.rows)}" for spec, one in zip(specs, first, strict=True))
    methods = [*PLAIN, *list(SETTINGS)[:3]]
    rows = []
    for model, measured in sizes.items():
        means = [float(np.mean([one.scores[name]["nDCG@10"] for one in measured])) for name in methods]
        asked = np.mean([one.asked["refined"] / len(one.rows) for one in measured])
        rows.append([model, f"{area_within(measured):.2f}", *(f"{mean:.3f}" for mean in means), f"{asked:.1f}"])
    return "\n\n".join(
        [
            "# Which size is enough",
            f"nDCG@10, mean of the collections; queries of each: {queries}. Made from `grades/` without a model by "
            f"`{command}`.",
            table(["model", "area within a query", *methods, "grades a query, refined"], rows),
        ]
    )


def draw(sizes: Mapping[str, Sequence[Measured]], path: Path) -> None:
    """Draw area and gain by model; a dot is a collection, a line the mean."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 2), layout="constrained")
    places = np.arange(len(sizes))
    left.plot(places, [area_within(one) for one in sizes.values()], marker="o", color="tab:gray")
    left.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    left.set_ylabel("area under ROC within a query")
    for number, method in enumerate(DRAWN):
        found = [gains(one, method) for one in sizes.values()]
        at = places + 0.12 * (number - (len(DRAWN) - 1) / 2)
        colour = f"C{number}"
        for place, values in zip(at, found, strict=True):
            right.scatter([place] * len(values), values, color=colour, s=8, alpha=0.5)
        right.plot(at, [np.mean(values) for values in found], marker="_", markersize=12, color=colour, label=method)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylabel("gain of nDCG@10 over no feedback")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.set_xticks(places, list(map(short_name, sizes)), fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def short_name(model: str) -> str:
    """Return a model's name without its quantisation."""
    return model.replace("-instruct", "").rsplit("-q", 1)[0]


def main() -> None:
    """Measure every model, and write the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders of collections; a name may carry its vectors")
    parser.add_argument("--model", action="append", required=True, help="smallest first; may be repeated")
    parser.add_argument("--grades", type=Path, default=GRADES)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    sizes: dict[str, list[Measured]] = {model: [] for model in given.model}
    specs = []
    for spec in given.data:
        if rows := shared_rows(spec, given.model, given.grades, given.queries):
            specs.append(spec)
            for model in given.model:
                sizes[model].append(measure(spec, given.grades, model, given.queries, rows))
    if not specs:
        parser.error(f"no query of these collections was graded by all of {', '.join(given.model)} in {given.grades}")
    data = " ".join(f"data/{Path(spec).name}" for spec in specs)
    models = " ".join(f"--model {model}" for model in given.model)
    text = page(sizes, specs, f"python -m results.sizes {data} {models}") + "\n"
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    if given.plot:
        draw(sizes, given.plot)
    print(text)


if __name__ == "__main__":
    main()
