"""Write measured tables into pages, from the runs that `llama-index-refine bench run --out` kept here.

A page holds the marks; what stands between them is replaced:

    <!-- begin measured: NAME -->
    <!-- end measured -->

`NAME brief llm/MODEL.md` draws four rows instead: what each way to use a teacher costs and gains, on average over the
collections, with exact labels as the teacher in the run and with the LLM of that file.

    python results/tables.py docs/comparison.md            # write
    python results/tables.py --check docs/comparison.md    # only say whether the pages are up to date
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from functools import partial
from pathlib import Path
from statistics import fmean

from llama_index_refine.evaluation.results import BASELINE, REFINED, Cell, Run

_MARKED = re.compile(r"(<!-- begin measured: (\S+)(?: brief (\S+))? -->\n).*?(<!-- end measured -->)", re.DOTALL)
_METRICS = ("nDCG@10", "recall@10", "MAP")
_BRIEF = {
    "no feedback": (BASELINE, 0),
    "reranked": ("rerank", 1),
    "refined": (REFINED, 1),
    "reranked, five times the calls": ("rerank 100", 5),
}
"""Rows of the brief table: the method's name in a run, and how many times `feedback_top_k` it has graded at most."""


def brief(run: Run, name: str, llm: Path) -> str:
    """Draw what each way costs and gains, nDCG@10 on average over the collections.

    :param run: its exact teacher is drawn.
    :param name: the run's folder in `results/`.
    :param llm: the table of an LLM as the teacher, as `results/llm.py` writes it.
    """
    cells = [cell for cell in run.cells if cell.teacher == "gold"]
    graded, measured_by_llm = cells[0].feedback_top_k, _llm_means(llm.read_text(encoding="utf-8"))
    lines = [["", "LLM calls a query", "exact labels", llm.stem], ["---", "---:", "---:", "---:"]]
    for label, (method, times) in _BRIEF.items():
        mean = fmean(cell.measured[method].mean("nDCG@10") for cell in cells)
        most = "at most " if method == REFINED else ""
        lines.append([label, f"{most}{times * graded}", f"{mean:.3f}", measured_by_llm.get(label, "not measured")])
    about = (
        f"nDCG@10. Exact labels: mean of {len(cells)} collections, {_range(_queries(run))} queries each "
        f"(`results/{name}`). {llm.stem}: mean of its collections (`results/llm/{llm.name}`). The commands are in "
        "`results/README.md`."
    )
    return "\n" + "\n\n".join(["\n".join(f"| {' | '.join(row)} |" for row in lines), about]) + "\n\n"


def _llm_means(text: str) -> dict[str, str]:
    """Read the mean of each method from the first table of nDCG@10."""
    rows = [
        [field.strip("* ") for field in line.split("|")[1:-1]] for line in text.partition("nDCG@10:")[2].split("\n")
    ]
    head = next(row for row in rows if row)
    means = next(row for row in rows if row and row[0] == "mean")
    return dict(zip(head, means, strict=True))


def table(run: Run, name: str) -> str:
    """Draw every method on every data set and teacher, with where it was measured; a table for each metric."""
    methods = list(dict.fromkeys(method for cell in run.cells for method in cell.measured if method != REFINED))
    methods = [BASELINE, *(method for method in methods if method != BASELINE), REFINED]
    tables = []
    for metric in _METRICS:
        lines = [["data", "teacher", *methods], ["---", "---", *["---:"] * len(methods)]]
        lines += [
            [f"{cell.dataset} ({cell.embedding})", cell.teacher, *_row(cell, methods, metric)] for cell in run.cells
        ]
        tables.append(f"{metric}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in lines))
    graded = sorted({cell.feedback_top_k for cell in run.cells})
    about = (
        f"{_range(_queries(run))} queries a row, {_range(graded)} documents graded for each; {_machine(run)}. Every "
        f"figure, with intervals, is in `results/{name}`, and the command in `results/README.md`."
    )
    return "\n" + "\n\n".join([*tables, about]) + "\n\n"


def _queries(run: Run) -> list[int]:
    return sorted({len(cell.queries) for cell in run.cells})


def _machine(run: Run) -> str:
    return ", ".join(f"{part} {value}" if part == "python" else value for part, value in run.machine.items())


def _row(cell: Cell, methods: list[str], metric: str) -> list[str]:
    measured = [cell.measured.get(name) for name in methods]
    values = [each.mean(metric) if each and metric in each.per_query else math.nan for each in measured]
    best = max((value for value in values if not math.isnan(value)), default=math.nan)
    return [_number(value, value == best) for value in values]


def _number(value: float, best: bool) -> str:
    if math.isnan(value):
        return ""
    return f"**{value:.3f}**" if best else f"{value:.3f}"


def _range(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _filled(results: Path, mark: re.Match[str]) -> str:
    run = Run.load(results / mark[2])
    drawn = brief(run, mark[2], results / mark[3]) if mark[3] else table(run, mark[2])
    return mark[1] + drawn + mark[4]


def main() -> int:
    """Write or check the pages. :return: 0 where all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent, help="folder of the runs")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is not up to date")
    arguments = parser.parse_args()
    status = 0
    for page in arguments.pages:
        text = page.read_text(encoding="utf-8")
        try:
            fresh = _MARKED.sub(partial(_filled, arguments.results), text)
        except (FileNotFoundError, ValueError) as error:
            print(f"{page}: {error}", file=sys.stderr)
            return 1
        if fresh != text and arguments.check:
            print(f"{page} is not up to date: run python results/tables.py {page}", file=sys.stderr)
            status = 1
        elif fresh != text:
            page.write_text(fresh, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
