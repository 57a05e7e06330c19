"""Data sets, by name or from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llama_index_refine.evaluation.datasets import Dataset, load_folder
from llama_index_refine.evaluation.named import NAMED, load_named


def expand(names: Sequence[str]) -> list[str]:
    """Put the parts of a data set that is measured in parts in its place: `followir` is three collections."""
    parts = {"followir": [name for name in NAMED if name.startswith("followir-")]}
    return [part for name in names for part in parts.get(name.lower(), [name])]


def load_dataset(name: str, source: str | None = None) -> Dataset:
    """Load a data set by its name or from a folder.

    :param name: one of `NAMED`, as in `scifact`, or a folder in BEIR's form.
    :param source: where a named data set's files are, if not at its usual place: a repository or a local copy of one.
    :return: the data set.
    :raises ValueError: neither a known name nor a folder.
    :raises DatasetUnavailable: its files could not be fetched.
    """
    if (folder := Path(name)).is_dir():
        return load_folder(folder)
    if name.lower() in NAMED:
        return load_named(name.lower(), source)
    known = ", ".join(sorted(NAMED))
    raise ValueError(f"{name!r} is neither a folder that exists nor a data set known by name, which are {known}")
