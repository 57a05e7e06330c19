"""What halving and doubling each constant of the engine does to the first ten results and to the whole ranking.

    python -m results.constants data/argkp_item data/argkp_item:e5 data/argkp data/argkp:e5 data/cranfield \
        data/cranfield:e5 data/cranfield_item data/clinc150 data/banking77 --out results/constants.md

A folder may carry the name of its vectors. Each row is a process of its own, in which the package is read with one
constant multiplied where it is defined, so that what is made of it at import follows it. Rows that are in the file
beside --out, with the ending .jsonl, are not measured again.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

PACKAGE = "llama_index_refine"
TEACHERS = ("good", "noisy", "strict")
ARGUMENTS = ("temperature", "reach", "own_grade")
# Left out is what says how exactly numbers are worked out, how fine a grid is, or what no plain query meets.
CONSTANTS = {
    "refining.refiner": "FIRST_RANKING OF_SIGNAL OF_MEAN USUAL_MEAN LEAST_PRIOR MOST_PRIOR OF_YES MOST_YES",
    "refining.evidence": "RATIOS AGREEMENT PERMUTATIONS",
    "refining.trust": "CHANCE INVERTED LEAST_CLAIM UNDECIDED WATCHED NARROW",
    "refining.relevance": "STEP ABOVE SLOPES USUAL_SLOPE SLOPE_SPREAD NEGLIGIBLE FALSE_YES FALSE_NO LEAST_CHANCE "
    "BEFOREHAND CHANGE",
    "retrieval.ranking": "WORTH UNMOVED",
}
UNCHANGED = ("as it is", 1.0)
# Less than this is taken for no difference.
NO_DIFFERENCE = 0.002


class Multiplied(importlib.abc.MetaPathFinder):
    """Reads one module of the package with one of its constants multiplied.

    :param module: its name.
    :param constant: the constant; of probabilities, none becomes more than a half.
    :param factor: what it is multiplied by; a whole number stays one.
    """

    def __init__(self, module: str, constant: str, factor: float) -> None:
        self.module = module
        most = ".clip(max=0.5)" if constant.startswith("FALSE") else ""
        value = f"int({constant} * {factor}) if isinstance({constant}, int) else ({constant} * {factor}){most}"
        self.statement = ast.parse(f"{constant} = {value}").body
        self.constant = constant

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Find this one module, and leave all others to Python."""
        spec = importlib.machinery.PathFinder.find_spec(fullname, path) if fullname == self.module else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self)
        return spec

    def changed(self, source: bytes) -> ast.Module:
        """Multiply the constant right after its definition. :raises ValueError: the module does not define it."""
        tree = ast.parse(source)
        for at, node in enumerate(tree.body):
            names = {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
            if isinstance(node, ast.Assign) and self.constant in names:
                tree.body[at + 1 : at + 1] = self.statement
                return tree
        raise ValueError(f"{self.module} does not define {self.constant}")


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, multiplied: Multiplied) -> None:
        super().__init__(name, path)
        self.multiplied = multiplied

    def get_code(self, fullname: str) -> CodeType:
        # Not from the cache of compiled modules, nor into it.
        source = self.get_data(self.get_filename(fullname))
        return compile(self.multiplied.changed(source), self.path, "exec")


def settings() -> Iterator[tuple[str, float]]:
    """Name what is measured: each constant, and what it is multiplied by."""
    yield UNCHANGED
    for module, names in CONSTANTS.items():
        yield from ((f"{module}.{name}", factor) for name in names.split() for factor in (0.5, 2.0))
    yield from ((f"QueryRefiner({name})", factor) for name in ARGUMENTS for factor in (0.5, 2.0))


def measure(data: Sequence[str], queries: int, teachers: Sequence[str], name: str, factor: float) -> dict[str, Any]:
    """Measure one row; nothing of the package may have been imported before.

    :return: for each teacher the means over the collections of nDCG@10, MAP, and the grades a query asked for.
    """
    options: dict[str, Any] = {}
    module, _, constant = name.rpartition(".")
    if module:
        sys.meta_path.insert(0, Multiplied(f"{PACKAGE}.{module}", constant, factor))
    from llama_index_refine import QueryRefiner, Reliability
    from llama_index_refine.evaluation.corpus import same_samples
    from llama_index_refine.evaluation.metrics import score_rankings
    from llama_index_refine.evaluation.teachers import make_teacher
    from results.recorded import opened, retriever

    if name.startswith("QueryRefiner"):
        argument = name[len("QueryRefiner(") : -1]
        usual = inspect.signature(QueryRefiner).parameters[argument].default
        options["refiner"] = QueryRefiner(**{argument: factor * usual})
    row: dict[str, Any] = {"constant": name, "factor": factor, **{teacher: [] for teacher in teachers}}
    for spec in data:
        corpus = opened(spec, queries)
        store = corpus.store()
        for teacher in teachers:
            grader, record = make_teacher(teacher, corpus.dataset), Reliability()
            first, whole, asked = {}, {}, []
            for at, query in enumerate(corpus.queries):
                with same_samples(at):
                    found = retriever(corpus, store, at, grader, trust=record, **options).refine(corpus.bundle(at))
                first[query.id] = [str(entry.node.metadata["document"]) for entry in found.nodes]
                whole[query.id] = ranked(corpus, at, found)
                asked.append(len(found.grades) + found.ungraded)
            scores = [score_rankings(rankings, corpus.dataset.qrels) for rankings in (first, whole)]
            means = [
                np.mean(list(each[metric].values())) for each, metric in zip(scores, ("nDCG@10", "MAP"), strict=True)
            ]
            row[teacher].append([*means, np.mean(asked)])
    return row | {teacher: np.mean(row[teacher], axis=0).round(5).tolist() for teacher in teachers}


def ranked(corpus: Any, row: int, found: Any) -> list[str]:
    """Rank all documents by the refined vector, and the graded ones by their place."""
    rows, vectors = corpus.searched(corpus.queries[row])
    near = vectors @ (found.vector / np.linalg.norm(found.vector))
    places = {corpus.dataset.documents[at].id: place for place, at in enumerate(rows)}
    for entry, similarity in zip(found.graded_nodes, found.fused, strict=True):
        near[places[str(entry.node.metadata["document"])]] = similarity
    return [corpus.dataset.documents[rows[at]].id for at in np.argsort(-near, kind="stable")]


def table(rows: Sequence[dict[str, Any]], told: str) -> str:
    """Write the rows as a page, those that matter most first."""
    usual, cells = rows[0], {}
    teachers = [key for key in usual if key not in ("constant", "factor")]
    for at, row in enumerate(rows):
        changes = [(np.array(row[teacher]) - (usual[teacher] if at else 0)).tolist() for teacher in teachers]
        most = max(abs(change) for each in changes for change in each[:2])
        signs = "+" if at else ""
        texts = [f"{ndcg:{signs}.3f}, {precision:{signs}.3f}, {asked:{signs}.1f}" for ndcg, precision, asked in changes]
        cells[at] = (most, f"| {row['constant']} | {row['factor']:g} | {' | '.join(texts)} | ")
    order = sorted(range(1, len(rows)), key=lambda at: (-cells[at][0], at))
    lines = [cells[0][1] + "|", *(f"{cells[at][1]}{cells[at][0]:.3f} |" for at in order)]
    less = sum(cells[at][0] < NO_DIFFERENCE for at in order)
    head = ["# What the constants of the engine are worth", told, f"{less} of {len(order)} rows change less than .002."]
    titles = f"| constant | times | {' | '.join(teachers)} | most |\n|---|---:|{'---:|' * len(teachers)}---:|"
    return "\n\n".join([*head, "\n".join([titles, *lines])]) + "\n"


def main() -> None:
    """Measure what is not yet measured, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--teachers", nargs="+", default=TEACHERS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--row", nargs=2, metavar=("CONSTANT", "TIMES"), help="print this row alone, as JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.data, args.queries, args.teachers, args.row[0], float(args.row[1]))))
        return
    if args.out is None:
        parser.error("--out is missing")
    kept = args.out.with_suffix(".jsonl")
    read = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(row["constant"], row["factor"]): row for row in read}

    def measured(setting: tuple[str, float]) -> str:
        command = [sys.executable, "-m", "results.constants", *args.data, "--queries", str(args.queries)]
        row = ["--row", setting[0], str(setting[1])]
        return subprocess.run(
            [*command, "--teachers", *args.teachers, *row], check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    with ThreadPoolExecutor(args.processes) as pool:
        for line in pool.map(measured, [setting for setting in settings() if setting not in known]):
            row = json.loads(line)
            known[row["constant"], row["factor"]] = row
            with kept.open("a") as file:
                file.write(line)
            print(line, end="", flush=True)
    names = " ".join(f"data/{Path(name).name}" for name in args.data)
    told = (
        f"`python -m results.constants {names} --queries {args.queries} --teachers "
        f"{' '.join(args.teachers)}`: means over the collections of nDCG@10 of ten "
        "nodes, MAP of the whole collection ranked by the refined vector, and grades a query, and how they change when "
        "a constant is halved or doubled. The last column is the greatest change of nDCG@10 and MAP."
    )
    args.out.write_text(table([known[setting] for setting in settings()], told))


if __name__ == "__main__":
    main()
