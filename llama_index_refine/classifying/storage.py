"""A classifier in a file: tensors by safetensors, and JSON in its header. Reading it runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY = "llama_index_refine.classifier"


def write(path: str | Path, tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write a file, or replace it.

    :param path: where.
    :param tensors: arrays by name.
    :param facts: what JSON knows.
    :raises OSError: it cannot be written.
    """
    from safetensors.numpy import save

    path = Path(path)
    content = save({name: np.ascontiguousarray(one) for name, one in tensors.items()}, {KEY: json.dumps(facts)})
    # Whoever reads it meanwhile finds the old file or the new one.
    with NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def read(path: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write` wrote.

    :param path: the file.
    :return: tensors and facts.
    :raises OSError: it cannot be read.
    :raises ValueError: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    with path.open("rb"):
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"path {path} is no file that RefinedClassifier.save wrote: {error}") from error
    if not isinstance(facts, dict) or not all(np.isfinite(one).all() for one in tensors.values()):
        raise ValueError(f"path {path} is no file that RefinedClassifier.save wrote: its numbers are not finite")
    return tensors, facts
