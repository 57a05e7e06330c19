"""Write measured tables into pages, from the runs that `llama-index-refine bench run --out` kept here.

A page holds the marks; what stands between them is replaced:

    <!-- begin measured: NAME -->
    <!-- end measured -->

`NAME brief` draws the most telling rows and columns only.

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

from llama_index_refine.evaluation.results import BASELINE, REFINED, Cell, Run

_MARKED = re.compile(r"(<!-- begin measured: (\S+)( brief)? -->\n).*?(<!-- end measured -->)", re.DOTALL)
_METRICS = ("nDCG@10", "recall@10", "MAP")
_BRIEF_METHODS = (BASELINE, "rerank", "rerank 40", "rerank 100", "paper", REFINED)
_BRIEF_TEACHERS = ("good", "strict", "noisy", "gold")


def table(run: Run, name: str, brief: bool = False) -> str:
    """Draw every method on every data set and teacher, with where it was measured; a table for each metric."""
    methods = list(dict.fromkeys(method for cell in run.cells for method in cell.measured if method != REFINED))
    methods = [BASELINE, *(method for method in methods if method != BASELINE), REFINED]
    cells = list(run.cells)
    if brief:
        methods = [method for method in _BRIEF_METHODS if method in methods]
        cells = [cell for cell in cells if cell.teacher in _BRIEF_TEACHERS and cell.embedding == "minilm"]
    tables = []
    for metric in _METRICS[:1] if brief else _METRICS:
        lines = [["data", "teacher", *methods], ["---", "---", *["---:"] * len(methods)]]
        lines += [[_data(cell, brief), cell.teacher, *_row(cell, methods, metric)] for cell in cells]
        title = "" if brief else f"{metric}:\n\n"
        tables.append(title + "\n".join(f"| {' | '.join(row)} |" for row in lines))
    queries = sorted({len(cell.queries) for cell in run.cells})
    graded = sorted({cell.feedback_top_k for cell in run.cells})
    about = (
        f"{'nDCG@10; ' if brief else ''}{_range(queries)} queries a row, {_range(graded)} documents graded for each; "
        f"{_machine(run)}. Every figure, with intervals, is in `results/{name}`, and the command in "
        "`results/README.md`."
    )
    return "\n" + "\n\n".join([*tables, about]) + "\n\n"


def _data(cell: Cell, brief: bool) -> str:
    return cell.dataset if brief else f"{cell.dataset} ({cell.embedding})"


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
    return mark[1] + table(Run.load(results / mark[2]), mark[2], brief=bool(mark[3])) + mark[4]


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
