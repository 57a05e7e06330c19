"""Tables of a run, and of two runs compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from llama_index_refine.evaluation.metrics import Difference, paired_bootstrap
from llama_index_refine.evaluation.results import BASELINE, REFINED, Cell, Measured, Run


def markdown(run: Run) -> str:
    """Everything a run measured, as Markdown.

    :return: a table of MAP over all cells, one of the gains, and one of all metrics, intervals and costs per cell.
    """
    queries = sorted({len(cell.queries) for cell in run.cells})
    parts = [
        "# Benchmark",
        f"Settings: {_settings(run)}. Queries per data set: {', '.join(map(str, queries))}. "
        f"Machine: {', '.join(run.machine.values())}. "
        "Differences are means over queries with 95 % intervals from a paired bootstrap.",
        "## MAP\n\n" + _overview(run.cells, lambda cell, name: cell.measured[name].mean("MAP")),
        f"## Gain in MAP over {BASELINE}\n\n"
        + _overview(run.cells, lambda cell, name: cell.gain(name), [n for n in _methods(run.cells) if n != BASELINE]),
        _ratios(run.cells),
        *(_details(cell) for cell in run.cells),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def compare(before: Run, after: Run) -> str:
    """What changed from one run to another, as Markdown.

    :return: for each cell and method in both, the differences over the queries in both.
    :raises ValueError: the runs have no cell in common.
    """
    old = {cell.key: cell for cell in before.cells}
    pairs = [(old[cell.key], cell) for cell in after.cells if cell.key in old]
    if not pairs:
        raise ValueError("the two runs have no data set, embedding, teacher and number of graded documents in common")
    header = ["data", "teacher", "graded", "method", "queries", "MAP before", "after", "difference", "nDCG@10", "P@10"]
    rows = []
    for first, second in pairs:
        shared = [query for query in second.queries if query in set(first.queries)]
        for method in [name for name in second.measured if name in first.measured]:
            a, b = _chosen(first, method, shared), _chosen(second, method, shared)
            rows.append(
                [
                    *(second.data, second.teacher, str(second.feedback_top_k), method, str(len(shared))),
                    *(_number(a.mean("MAP")), _number(b.mean("MAP"))),
                    *(_interval(_difference(b, a, metric)) for metric in ("MAP", "nDCG@10", "P@10")),
                ]
            )
    return "# Comparison\n\n" + _table(header, rows) + "\n"


def _chosen(cell: Cell, method: str, queries: Sequence[str]) -> Measured:
    """A method's values for some of the queries, in their order."""
    place = {query: row for row, query in enumerate(cell.queries)}
    values = cell.measured[method].per_query
    return Measured({metric: [own[place[query]] for query in queries] for metric, own in values.items()})


def _difference(ours: Measured, theirs: Measured, metric: str) -> Difference:
    return paired_bootstrap(ours.per_query[metric], theirs.per_query[metric])


def _methods(cells: Iterable[Cell]) -> list[str]:
    """All methods, ours last."""
    found = dict.fromkeys(name for cell in cells for name in cell.measured)
    found.pop(REFINED, None)
    return [*found, REFINED]


def _overview(cells: Sequence[Cell], value: object, methods: Sequence[str] | None = None) -> str:
    assert callable(value)
    methods = methods or _methods(cells)
    rows = []
    for cell in cells:
        values = [value(cell, name) if name in cell.measured else float("nan") for name in methods]
        best = max((v for v in values if not math.isnan(v)), default=float("nan"))
        marked = [f"**{_number(v)}**" if v == best else _number(v) for v in values]
        rows.append([cell.data, cell.teacher, str(cell.feedback_top_k), *marked])
    return _table(["data", "teacher", "graded", *methods], rows)


def _ratios(cells: Sequence[Cell]) -> str:
    """Our gain divided by that of the published procedure, by teacher, where it gains at all."""
    rivals = [name for name in ("paper", "paper tuned") if any(name in cell.measured for cell in cells)]
    rows = []
    for teacher in dict.fromkeys(cell.teacher for cell in cells):
        own = [cell for cell in cells if cell.teacher == teacher]
        ratios = []
        for rival in rivals:
            found = [c.gain(REFINED) / c.gain(rival) for c in own if rival in c.measured and c.gain(rival) > 1e-4]
            ratios.append(f"{np.mean(found):.2f} ({len(found)} of {len(own)})" if found else "")
        rows.append([teacher, *ratios])
    if not rivals:
        return ""
    header = ["teacher", *(f"gain / gain of {rival}, mean (rows)" for rival in rivals)]
    return "## Gain beside the published procedure\n\n" + _table(header, rows)


def _details(cell: Cell) -> str:
    metrics = list(cell.measured[BASELINE].per_query)
    pmrr = any(measured.per_stem for measured in cell.measured.values())
    header = ["method", *metrics, *(["p-MRR"] if pmrr else []), f"MAP - {BASELINE}", f"MAP {REFINED} - this"]
    header += ["LLM calls", "tokens", "ms"]
    rows = []
    for name in [method for method in _methods([cell]) if method in cell.measured]:
        measured = cell.measured[name]
        values = [_number(measured.mean(metric)) for metric in [*metrics, *(["p-MRR"] if pmrr else [])]]
        gained = _difference(measured, cell.measured[BASELINE], "MAP") if name != BASELINE else None
        lead = _difference(cell.measured[REFINED], measured, "MAP") if name != REFINED else None
        label = f"{name} ({measured.settings})" if measured.settings else name
        times = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in measured.seconds.items())
        tokens = measured.prompt_tokens + measured.completion_tokens
        rows.append(
            [label, *values, _interval(gained), _interval(lead), f"{measured.llm_calls:.1f}", f"{tokens:.0f}", times]
        )
    title = f"## {cell.data}, {cell.teacher} teacher, {cell.feedback_top_k} graded"
    skipped = "".join(f"\n\nWithout {name}: {reason}." for name, reason in cell.skipped.items())
    about = f"{len(cell.queries)} queries, {cell.documents} documents; costs and times are means per query."
    return f"{title}\n\n{about}\n\n{_table(header, rows)}{skipped}"


def _settings(run: Run) -> str:
    shown = {name: value for name, value in run.settings.items() if value not in (None, {}, [])}
    return "; ".join(f"{name} {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in shown.items())


def _interval(difference: Difference | None) -> str:
    if difference is None or math.isnan(difference.mean):
        return ""
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
