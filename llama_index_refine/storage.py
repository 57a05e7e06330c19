"""What is kept in a file: tensors by safetensors, and JSON in its header. Reading it runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The header's key for what each class writes.
KEYS = {
    "Calibration": "llama_index_refine.calibration",
    "RefinedClassifier": "llama_index_refine.classifier",
    "Selection": "llama_index_refine.selection",
}


def write(path: str | Path, kind: str, tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write a file, or replace it.

    :param path: where.
    :param kind: the class whose `save` it is, of `KEYS`.
    :param tensors: arrays by name.
    :param facts: what JSON knows.
    :raises OSError: it cannot be written.
    """
    from safetensors.numpy import save

    path = Path(path)
    content = save({name: np.ascontiguousarray(one) for name, one in tensors.items()}, {KEYS[kind]: json.dumps(facts)})
    # Whoever reads it meanwhile finds the old file or the new one.
    with NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def read(path: str | Path, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write` wrote.

    :param path: the file.
    :param kind: the class whose `save` it has to be, of `KEYS`.
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
            facts = json.loads((file.metadata() or {})[KEYS[kind]])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"path {path} is not a file that {kind}.save wrote: {error}") from error
    if not isinstance(facts, dict) or not all(np.isfinite(one).all() for one in tensors.values()):
        raise ValueError(f"path {path} is not a file that {kind}.save wrote: its numbers are not finite")
    return tensors, facts
