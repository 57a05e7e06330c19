"""The edge between a caller's arrays and float32 torch tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_tensor(
    name: str, values: Any, shape: tuple[int | None, ...], device: torch.device | str | None = None
) -> Tensor:
    """Convert to float32.

    :param name: the argument's name, for the error.
    :param values: a numpy array, a torch tensor or nested lists.
    :param shape: the shape it must have, None for a dimension of any length.
    :param device: where the tensor shall be; None leaves it where it is.
    :return: the tensor, detached.
    :raises ValueError: another shape, or a value that is not finite.
    """
    try:
        tensor = torch.as_tensor(values).detach().to(device=device, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from error
    fits = tensor.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    if not fits:
        wanted = "(" + ", ".join("any" if want is None else str(want) for want in shape) + ")"
        raise ValueError(f"{name} must have the shape {wanted}, got {tuple(tensor.shape)}")
    # A sum is finite if all is; only where it is not, overflow has to be told from NaN and infinity.
    if not math.isfinite(float(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinity")
    return tensor


def to_numpy(tensor: Tensor) -> NDArray[np.float64]:
    """Convert to float64 on the CPU."""
    return np.asarray(tensor.cpu().numpy(), dtype=np.float64)


def like(values: Tensor | NDArray[Any], example: Any) -> Any:
    """Give a result back in the kind that the caller used, float32.

    :param values: the result.
    :param example: what the caller passed.
    :return: a tensor where the example is one, on its device, else a numpy array.
    """
    if isinstance(example, Tensor):
        return torch.as_tensor(values, dtype=torch.float32, device=example.device)
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float32)
