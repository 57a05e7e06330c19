"""What a run measured, as it is kept on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

REFINED = "refined"
"""What this library is called beside its peers."""

BASELINE = "no feedback"
"""What all are measured against."""


@dataclass
class Measured:
    """One method on all queries of a cell.

    :param per_query: metric to one value per query, in the order of the cell's queries; NaN where it is not defined.
    :param per_stem: p-MRR, one value per changed instruction.
    :param settings: what was picked in hindsight, empty where nothing was.
    :param llm_calls: the mean over queries, as are the tokens.
    :param seconds: stage to mean seconds per query.
    """

    per_query: dict[str, list[float]]
    per_stem: dict[str, float] = field(default_factory=dict)
    settings: str = ""
    llm_calls: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """The mean over the queries for which the metric is defined; NaN where there is none."""
        if metric == "p-MRR":
            values = list(self.per_stem.values())
        else:
            values = [value for value in self.per_query[metric] if not math.isnan(value)]
        return float(np.mean(values)) if values else float("nan")


@dataclass
class Distribution:
    """Similarities to the query, standardised within each query, before and after refinement.

    :param edges: (n + 1,) of the bins, in standard deviations from the mean of all documents.
    :param counts: "relevant before", "irrelevant before", ... to (n,) counts over all queries.
    """

    edges: list[float]
    counts: dict[str, list[int]]


@dataclass
class Cell:
    """One data set with one embedding, one teacher and one number of graded documents."""

    dataset: str
    embedding: str
    teacher: str
    feedback_top_k: int
    documents: int
    queries: list[str]
    measured: dict[str, Measured]
    distribution: Distribution | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """Data set and embedding, as the tables name them."""
        return f"{self.dataset} ({self.embedding})"

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from the other cells of a run."""
        return self.dataset, self.embedding, self.teacher, self.feedback_top_k

    def gain(self, method: str, metric: str = "MAP") -> float:
        """How much better than no feedback."""
        return self.measured[method].mean(metric) - self.measured[BASELINE].mean(metric)


@dataclass
class Run:
    """All cells of a run, and what it was run with and on."""

    settings: dict[str, Any]
    machine: dict[str, str]
    cells: list[Cell]

    def save(self, folder: Path) -> Path:
        """Write `run.json`. :return: its path."""
        path = folder / "run.json"
        _write(path, {"settings": self.settings, "machine": self.machine, "cells": [asdict(c) for c in self.cells]})
        return path

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read a run from its folder or its `run.json`.

        :raises FileNotFoundError: there is none.
        :raises ValueError: it cannot be read.
        """
        path = folder / "run.json" if folder.is_dir() else folder
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: give the folder that `bench --out` wrote")
        found = _read(path)
        try:
            return cls(found["settings"], found["machine"], [_cell(cell) for cell in found["cells"]])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a run of this benchmark: {error!r}") from error


def save_cell(path: Path, cell: Cell) -> None:
    """Keep a finished cell."""
    _write(path, asdict(cell))


def load_cell(path: Path) -> Cell:
    """Read a cell that `save_cell` wrote."""
    return _cell(_read(path))


def _cell(found: dict[str, Any]) -> Cell:
    measured = {name: Measured(**{**m, "per_query": _numbers(m["per_query"])}) for name, m in found["measured"].items()}
    distribution = Distribution(**found["distribution"]) if found["distribution"] else None
    return Cell(**{**found, "measured": measured, "distribution": distribution})


def _numbers(per_query: dict[str, Sequence[float | None]]) -> dict[str, list[float]]:
    return {name: [float("nan") if v is None else v for v in values] for name, values in per_query.items()}


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(_without_nan(content), indent=1, allow_nan=False), encoding="utf-8")
    unfinished.replace(path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _without_nan(content: Any) -> Any:
    """JSON knows no NaN: null stands for it. Rounded to seven digits, below any difference that means something."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    if isinstance(content, float):
        return None if math.isnan(content) else round(content, 7)
    return content
