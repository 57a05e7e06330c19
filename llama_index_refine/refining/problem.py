"""From a caller's arrays to the problem that is solved: tensors, and one form for the three distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama_index_refine.similarity import Metric

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
        tensor = torch.as_tensor(values, dtype=torch.float32, device=device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from error
    got = tensor.shape
    if len(got) != len(shape) or any(want is not None and want != got[at] for at, want in enumerate(shape)):
        wanted = "(" + ", ".join("any" if want is None else str(want) for want in shape) + ")"
        raise ValueError(f"{name} must have the shape {wanted}, got {tuple(got)}")
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
        raise ValueError(
            f"{name} holds a vector of length {longest:.1e}, but float32 cannot compare vectors longer than 1e16"
        )


def like(values: Tensor, example: Any) -> Any:
    """Give a result back in the kind that the caller used, float32.

    :param values: the result.
    :param example: what the caller passed.
    :return: a tensor where the example is one, on its device, else a numpy array.
    """
    if isinstance(example, Tensor):
        # Copied, as autograd takes no tensor of the inference mode.
        with torch.inference_mode(False):
            return values.to(device=example.device, dtype=torch.float32).clone()
    return values.cpu().float().numpy()


@dataclass(frozen=True)
class Problem:
    """B refinements in normal form: document i scores rows_i.x / lengths_i + offset_i, and x starts at start.

    The K graded documents come first, the background after them: M documents. The query is the last row.

    :param metric: the collection's distance.
    :param query: (B, d) float32.
    :param rows: (B, M + 1, d) float32, vectors less `origin`.
    :param lengths: (B, M + 1) float64 as all that follow, what each row is divided by.
    :param kernel: (B, M + 1, M + 1) inner products of the rows over their lengths.
    :param start: (B, M) scores of all documents at the query.
    :param log_weights: (M,) how many documents each one stands for, as a logarithm.
    :param grades: (B, K) in [0, 1].
    :param trust: (B, K) in [0, 1].
    :param certainty: (B, K) in [0, 1].
    :param signal: B numbers above 0.
    :param scatter: (B, 1) standard deviation of the similarities before over the collection; None where not known.
    """

    metric: Metric
    query: Tensor
    rows: Tensor
    lengths: Tensor
    kernel: Tensor
    start: Tensor
    log_weights: Tensor
    grades: Tensor
    trust: Tensor
    certainty: Tensor
    signal: list[float]
    scatter: Tensor | None

    def moved(self, weights: Tensor) -> Tensor:
        """(B, d) the query in the collection's space, x moved by weights, (B, M), of the rows."""
        scaled = (weights * (self.lengths[:, -1:] / self.lengths[:, :-1])).float()
        return torch.baddbmm(self.query[:, None], scaled[:, None], self.rows[:, :-1])[:, 0]

    def scale(self, vectors: Tensor) -> tuple[Tensor, Tensor | float]:
        """(B, 1) each: similarity in the collection's units per score, for queries in its space, (B, d), and the rest.

        The rest is what the similarity has beside that, the same for all documents.
        """
        length = self.lengths[:, -1:]
        if self.metric == "euclid":
            return length.square(), (vectors - self.query).square().sum(-1, keepdim=True) / -2
        if self.metric == "cosine":
            length = length / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        return length, 0.0


def normal_form(
    query: Tensor, documents: Tensor, background: Tensor, metric: Metric
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write the collection's similarity as rows.x / lengths + offset.

    cosine: documents at unit length, so that the order by rows.x is the order by cosine. dot: as it is. In both the
    query's length does not change any order, so it is taken as 1. euclid: -|y - d|^2 / 2 with y = q + r x and
    e = (d - q) / r is r^2 (e.x - |e|^2 / 2) and a term that is the same for all documents; r, the root mean square
    distance from query to graded documents, makes it independent of the vectors' unit.

    :param query: (B, d), not zero for cosine and dot.
    :param documents: (B, K, d), not zero for cosine.
    :param background: (N, d) or (B, N, d), N may be 0.
    :param metric: the collection's distance.
    :return: rows, lengths, kernel and start of a `Problem`.
    :raises ValueError: a zero vector that has no direction.
    """
    count = documents.shape[1]
    rows = torch.cat([documents, background.expand(len(query), -1, -1), query[:, None]], dim=1)
    if metric == "euclid":
        rows -= query[:, None]
    kernel = torch.bmm(rows, rows.mT).double()
    squares = kernel.diagonal(dim1=-2, dim2=-1)
    if metric == "euclid":
        lengths = squares[:, :count].mean(-1, keepdim=True).clamp_min(1e-30).sqrt().expand(squares.shape)
    else:
        lengths = squares.sqrt()
        if metric == "dot":
            lengths = torch.cat([torch.ones_like(lengths[:, :-1]), lengths[:, -1:]], dim=1)
        if not float(lengths.min()) > 0:
            parts = {"query": lengths[:, -1:], "documents": lengths[:, :count], "background": lengths[:, count:]}
            name = next(name for name, part in parts.items() if part.numel() and not float(part.min()) > 0)
            raise ValueError(f"{name} holds a zero vector, which has no direction")
    kernel /= lengths[:, :, None]
    kernel /= lengths[:, None]
    start = kernel.diagonal(dim1=-2, dim2=-1)[:, :-1] / -2 if metric == "euclid" else kernel[:, -1, :-1]
    return rows, lengths, kernel, start
