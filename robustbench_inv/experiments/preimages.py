"""Preimages of ReLU layers: one point, bounded or unbounded, decided by linear programming."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

__all__ = [
    "KINDS",
    "Kind",
    "ReLULayer",
    "hooked",
    "is_omnidirectional",
    "preimage_kind",
    "relu_layers",
]

Matrix = np.typing.NDArray[np.float64]
Kind = Literal["unique", "bounded", "unbounded"]

KINDS: tuple[Kind, ...] = ("unique", "bounded", "unbounded")
"""Kinds of preimages: one point, a bounded set, an unbounded set."""

TIGHT = 1e-9
"""Largest pre-activation, relative to row and input, that counts as zero."""


def is_omnidirectional(rows: Matrix) -> bool:
    """Return whether every open half-space of Rⁿ contains a row, so that A d ≤ 0 has no solution but d = 0.

    That holds if A has full column rank and some λ ≥ 1 solves Aᵀ λ = 0 (Stiemke's theorem), a linear program.

    Args:
        rows: A, (m, n); of n = 0 the answer is yes.

    References:
        Behrmann, thesis, definition 3.1.

    Example:
        >>> is_omnidirectional(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        True
        >>> is_omnidirectional(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        False
    """
    n = rows.shape[1]
    if n == 0:
        return True
    sizes = np.linalg.norm(rows, axis=1)
    rows = rows[sizes > 0] / sizes[sizes > 0, None]
    if len(rows) <= n or np.linalg.matrix_rank(rows) < n:
        return False
    found = linprog(np.ones(len(rows)), A_eq=rows.T, b_eq=np.zeros(n), bounds=(1, None))
    return bool(found.status == 0)


def preimage_kind(weight: Matrix, bias: Matrix, x: Matrix) -> Kind:
    """Return the kind of the set of all inputs with the output ReLU(A x + b).

    With O an orthonormal basis of the null space of the active rows, it is unique if that space is {0}, or if the
    inactive rows whose pre-activation is zero are omnidirectional in it; else it is bounded if all inactive rows are.

    Args:
        weight: A, (m, n).
        bias: b, (m,).
        x: (n,), an input.

    References:
        Behrmann, thesis, theorem 3.3.
    """
    before = weight @ x + bias
    scale = np.linalg.norm(weight, axis=1) * np.linalg.norm(x) + np.abs(bias)
    active = before > TIGHT * scale
    basis = _null_space(weight[active])
    if basis.shape[1] == 0:
        return "unique"
    tight = ~active & (before >= -TIGHT * scale)
    if is_omnidirectional(weight[tight] @ basis):
        return "unique"
    return "bounded" if is_omnidirectional(weight[~active] @ basis) else "unbounded"


def _null_space(rows: Matrix) -> Matrix:
    """Return an orthonormal basis of the null space of (m, n) rows, (n, k)."""
    n = rows.shape[1]
    if not len(rows):
        return np.eye(n)
    _, values, vectors = np.linalg.svd(rows, full_matrices=True)
    rank = int((values > values[0] * max(rows.shape) * np.finfo(np.float64).eps).sum())
    return vectors[rank:].T


@dataclass(frozen=True)
class ReLULayer:
    """A linear layer that is followed by ReLU, at one input.

    Args:
        name: path of the linear layer in the network.
        weight: A, (m, n), of the flat input.
        bias: b, (m,).
        x: (n,), its input.
    """

    name: str
    weight: Matrix
    bias: Matrix
    x: Matrix

    @property
    def kind(self) -> Kind:
        """The kind of preimage."""
        return preimage_kind(self.weight, self.bias, self.x)


@torch.no_grad()
def relu_layers(network: nn.Module, x: Tensor, largest: int = 4_000_000) -> Iterator[ReLULayer]:
    """Yield the linear layers and convolutions of a network that are followed by ReLU, in order.

    Args:
        network: in evaluation mode.
        x: one input.
        largest: elements of the largest matrix A; larger layers are left out.
    """
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append((name, module, inputs[0].clone(), output))

        return hook

    parts = [(name, part) for name, part in network.named_modules() if _is_leaf(part)]
    with hooked([(part, keep(name)) for name, part in parts]):
        network(x[None])
    for (name, part, given, output), (_, following, _, _) in pairwise(calls):
        linear = isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        size = given.numel() * output.numel()
        if linear and isinstance(following, nn.ReLU) and size <= largest:
            yield _as_matrix(name, part, given)


def _as_matrix(name: str, layer: nn.Module, given: Tensor) -> ReLULayer:
    zero = layer(torch.zeros_like(given))
    n = given.numel()
    units = torch.eye(n, dtype=given.dtype, device=given.device).reshape(n, *given.shape[1:])
    columns = (layer(units) - zero).flatten(1)
    arrays = (columns.T, zero.flatten(), given.flatten())
    weight, bias, x = (part.double().cpu().numpy() for part in arrays)
    return ReLULayer(name, weight, bias, x)


def _is_leaf(part: nn.Module) -> bool:
    passing = isinstance(part, nn.Identity | nn.Dropout)
    return not passing and not any(True for _ in part.children())


@contextmanager
def hooked(pairs: Sequence[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    """Call a function after each forward pass of each module while the block runs."""
    handles = [part.register_forward_hook(hook) for part, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
