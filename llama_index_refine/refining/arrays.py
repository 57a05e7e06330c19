"""The edge between a caller's arrays and those that are computed with.

Vectors are numpy arrays on the CPU, where a problem is so small that what it costs is the number of calls, of which
numpy's are the cheapest, and torch tensors on every other device. What works on them is written in what both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Sums of products of longer vectors would leave the range of float32, which ends at 3e38.
MOST_LENGTH = 1e16


def to_tensor(
    name: str, values: Any, shape: tuple[int | None, ...], device: torch.device | str | None = None
) -> Tensor:
    """Convert to float32.

    :param name: the argument's name, for the error.
    :param values: a numpy array, a torch tensor or nested lists.
    :param shape: the shape it must have, None for a dimension of any length.
    :param device: where the tensor shall be; None leaves it where it is.
    :return: the tensor, detached.
    :raises ValueError: another shape, a value that is not finite, or a vector longer than 1e16.
    """
    try:
        tensor = torch.as_tensor(values).detach().to(device=device, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from error
    if tensor.ndim != len(shape) or not _fits(tensor, shape):
        wanted = "(" + ", ".join("any" if want is None else str(want) for want in shape) + ")"
        raise ValueError(f"{name} must have the shape {wanted}, got {tuple(tensor.shape)}")
    flat = tensor.reshape(-1)
    if not float(flat @ flat) <= MOST_LENGTH**2:
        _check_lengths(name, tensor)
    return tensor


def _check_lengths(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinity")
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
    longest = float(torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).max())
    if longest > MOST_LENGTH:
        raise ValueError(f"{name} holds a vector of length {longest:.1e}, and float32 can compare none over 1e16")


def _fits(values: Any, shape: tuple[int | None, ...]) -> bool:
    return all(want in (None, got) for want, got in zip(shape, values.shape, strict=True))


# (..., d) float32: an array on the CPU, a tensor on another device.
Rows = Any


def to_rows(name: str, values: Any, shape: tuple[int | None, ...], device: torch.device | str | None = None) -> Rows:
    """Convert to what is computed with. See `to_tensor`.

    :return: a float32 array where it is to be on the CPU, else a tensor.
    """
    if isinstance(values, float | int):
        values = np.array(values, dtype=np.float64)
    # What is an array of numbers already need not be a tensor on the way.
    if not (isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.ndim == len(shape)):
        return rows_of(to_tensor(name, values, shape, device))
    rows = values.astype(np.float32, order="C", copy=False)
    here = device is None or torch.device(device).type == "cpu"
    if here and _fits(rows, shape) and np.vdot(rows, rows) <= MOST_LENGTH**2:
        return rows
    return rows_of(to_tensor(name, values, shape, device))


def rows_of(tensor: Tensor) -> Rows:
    """Return what is computed with: on the CPU the same numbers as an array, elsewhere the tensor."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def device_of(rows: Rows) -> torch.device | None:
    """Return where rows are, None for the CPU."""
    return rows.device if isinstance(rows, Tensor) else None


def rows_like(values: NDArray[Any], example: Rows) -> Rows:
    """Bring an array to where other rows are."""
    if isinstance(example, Tensor):
        return torch.from_numpy(values).to(example)
    return np.asarray(values, dtype=np.float32)


def joined(parts: Sequence[Rows], axis: int) -> Rows:
    """Put arrays or tensors one after the other along an axis."""
    return torch.cat(list(parts), dim=axis) if isinstance(parts[0], Tensor) else np.concatenate(parts, axis=axis)


def lengths_of(rows: Rows) -> Rows:
    """(...) lengths of (..., d) vectors."""
    if isinstance(rows, Tensor):
        return torch.linalg.vector_norm(rows, dim=-1)
    return np.einsum("...i,...i->...", rows, rows) ** 0.5


def to_numpy(values: Rows) -> NDArray[np.float64]:
    """Convert to float64 on the CPU."""
    return np.asarray(values.cpu().numpy() if isinstance(values, Tensor) else values, dtype=np.float64)


def like(values: Rows, example: Any) -> Any:
    """Give a result back in the kind that the caller used, float32.

    :param values: the result.
    :param example: what the caller passed.
    :return: a tensor where the example is one, on its device, else a numpy array.
    """
    if isinstance(example, Tensor):
        return torch.as_tensor(values, dtype=torch.float32, device=example.device)
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float32)
