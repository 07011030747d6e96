"""What the thesis computes exactly: preimages of ReLU layers, errors of log-determinants, bins of isotope patterns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from robustbench_inv.data.isotopes import MassAxis, isotope_pattern, pattern_bins
from robustbench_inv.experiments.protocol import ExperimentRequest, counted_lines
from robustbench_inv.models.layers.residual import (
    ResidualBlock,
    convolutional_residual,
    exact_log_determinant,
    power_series,
    truncation_bound,
)
from robustbench_inv.models.spectra import receptive_field
from robustbench_inv.results.experiment_result import ExperimentResult, LinePanels, MeasuredNumber

__all__ = [
    "KINDS",
    "Kind",
    "ReLULayer",
    "hooked",
    "is_omnidirectional",
    "measure_isotope_bins",
    "measure_log_determinants",
    "measure_preimages",
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
    if is_omnidirectional(_projected(weight[tight], basis)):
        return "unique"
    return "bounded" if is_omnidirectional(_projected(weight[~active], basis)) else "unbounded"


def _projected(rows: Matrix, basis: Matrix) -> Matrix:
    """Return the coordinates of rows in a subspace, without those of rows orthogonal to it: they are rounding errors."""
    found = rows @ basis
    kept: Matrix = found[np.linalg.norm(found, axis=1) > TIGHT * np.linalg.norm(rows, axis=1)]
    return kept


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
    """Yield the linear layers and convolutions of a network whose output is the input of a ReLU, in order.

    Args:
        network: in evaluation mode.
        x: one input.
        largest: elements of the largest matrix A; larger layers are left out.
    """
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            # other layers may have keywords alone, or outputs of several parts
            ends = (each if isinstance(each, Tensor) else x[:0] for each in (*inputs[:1], output))
            given, *found = (each.clone() for each in ends)
            calls.append((name, module, given, found[-1] if found else given))

        return hook

    parts = [(name, part) for name, part in network.named_modules() if _is_leaf(part)]
    with hooked([(part, keep(name)) for name, part in parts]):
        network(x[None])
    for (name, part, given, output), (_, following, before, _) in pairwise(calls):
        linear = isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if not isinstance(following, nn.ReLU):
            continue
        # a shortcut may be added between the two; a ReLU in place has changed its input
        expected = output.relu() if following.inplace else output
        fits = torch.equal(before.flatten(), expected.flatten())
        if linear and fits and given.numel() * output.numel() <= largest:
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


CASES: Mapping[str, tuple[Matrix, Matrix]] = {
    "(a) hyperplanes meet in p, omnidirectional": (
        np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]]),
        np.zeros(3),
    ),
    "(b) hyperplanes meet in p, two free half-planes": (
        np.array([[1.0, 0.0], [0.8, 0.6]]),
        np.zeros(2),
    ),
    "(c) hyperplanes meet in p, one free half-plane": (
        np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.2]]),
        np.zeros(3),
    ),
    "(d) no common point, omnidirectional": (
        np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]]),
        np.full(3, -0.4),
    ),
}
"""Rows of A, and the pre-activations at p, for the four drawings of figure 3.2."""


def measure_preimages(
    request: ExperimentRequest, points: int = 60, network: int = 2
) -> ExperimentResult:
    """Return the preimage of p in the cases of figure 3.2, and the kinds of preimages of a small trained network.

    The network has one hidden layer of 3 neurons and separates two circles, as in figure 3.1.

    Args:
        request: seed of network and data.
        points: per axis of the grid on [−2, 2]², at which the kinds are determined.
        network: number of the network, added to the seed; with 2 and seed 0 all kinds occur.

    References:
        Behrmann, thesis, figures 3.1 and 3.2.
    """
    numbers, p = list[MeasuredNumber](), np.array([0.3, -0.2])
    for title, (rows, at_p) in CASES.items():
        kind = preimage_kind(rows, at_p - rows @ p, p)
        numbers.append(MeasuredNumber(title, "omnidirectional", float(is_omnidirectional(rows))))
        numbers += [MeasuredNumber(title, each, float(kind == each)) for each in KINDS]
    layer = _trained_layer(request.seed + network)
    weight, bias = (part.detach().double().numpy() for part in (layer.weight, layer.bias))
    axis = np.linspace(-2, 2, points)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    kinds = np.array([preimage_kind(weight, bias, x) for x in grid])
    ranks = np.array([np.linalg.matrix_rank(weight[weight @ x + bias > 0]) for x in grid])
    for kind in KINDS:
        here = kinds == kind
        numbers.append(MeasuredNumber("Part of the square", kind, float(here.mean())))
        values = [_condition(weight[weight @ x + bias > 0]) for x in grid[here]]
        numbers.append(
            MeasuredNumber("Largest condition number", kind, max(values, default=np.nan))
        )
        numbers.append(
            MeasuredNumber("Smallest condition number", kind, min(values, default=np.nan))
        )
        assert kind != "unique" or (ranks[here] == 2).all()
    return ExperimentResult("two circles", len(grid), {}, tuple(numbers))


def _condition(rows: Matrix) -> float:
    """Return largest over smallest non-zero singular value, 0 without rows."""
    values = np.linalg.svd(rows, compute_uv=False) if len(rows) else np.zeros(1)
    values = values[values > values.max() * 1e-12]
    return float(values.max() / values.min()) if len(values) else 0.0


def _trained_layer(seed: int) -> nn.Linear:
    """Return the hidden layer of a network of 3 neurons, trained on two circles of radius 0.6 and 1.4."""
    torch.manual_seed(seed)
    angles, labels = 2 * torch.pi * torch.rand(400), torch.arange(400) % 2
    radii = 0.6 + 0.8 * labels + 0.05 * torch.randn(400)
    points = torch.stack([radii * angles.cos(), radii * angles.sin()], 1)
    hidden = nn.Linear(2, 3)
    network = nn.Sequential(hidden, nn.ReLU(), nn.Linear(3, 2))
    optimiser = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(300):
        loss = nn.functional.cross_entropy(network(points), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return hidden


def measure_isotope_bins(request: ExperimentRequest, masses: Sequence[int]) -> ExperimentResult:
    """Return the number of bins of isotope patterns and the width of a bin, by mass.

    Args:
        request: its progress callback.
        masses: in Da.

    References:
        Behrmann, thesis, figures 7.3 and 7.4.
    """
    axis, numbers = MassAxis(), list[MeasuredNumber]()
    request.report(f"{axis.bins:,} bins from {axis.lowest:g} Da")
    for mass in masses:
        width = float(axis.widths[int(axis.position(mass))])
        for column, value in (
            ("bins per pattern", pattern_bins(axis, mass)),
            ("isotopes", float(len(isotope_pattern(mass)))),
            ("width of a bin in Da", width),
            ("bins per Da", 1 / width),
            ("receptive field in bins", float(receptive_field())),
        ):
            numbers.append(MeasuredNumber(f"{mass:,} Da", column, value))
    return ExperimentResult("averagine model", len(masses), {}, tuple(numbers))


ROUNDING = 1e-12
"""Biases are compared with bounds above it, in nats: below, they are rounding errors."""


def measure_log_determinants(
    request: ExperimentRequest,
    coefficients: Mapping[str, float],
    terms: Sequence[int],
    draws: int = 1_000,
) -> ExperimentResult:
    """Return bias and deviation of estimated log-determinants of small blocks with random weights, per dimension.

    Args:
        request: seed of weights and draws.
        coefficients: c by column; the blocks map (1, 4, 4) with spectral norms of c.
        terms: numbers of terms of the power series.
        draws: of the random vector, for the deviation. The bias is that of the exact trace.

    References:
        Behrmann, thesis, figure 5.3 and theorem 5.8.
    """
    numbers = list[MeasuredNumber]()
    for column, coefficient in coefficients.items():
        torch.manual_seed(request.seed)
        residual = convolutional_residual(1, 16, (4, 4), coefficient, boundary="circular")
        block = ResidualBlock(residual).double().eval().requires_grad_(False)
        x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
        truth = exact_log_determinant(residual, x)
        units = 4 * torch.eye(16, dtype=torch.float64).reshape(16, 1, 1, 4, 4)
        vectors = torch.randn(draws, 1, 1, 4, 4, dtype=torch.float64)
        for count in terms:
            trace = power_series(residual, x, units, [1.0] * count, graph=False)[1]
            copies = x.expand(draws, 1, 4, 4)
            found = power_series(residual, copies, vectors[None, :, 0], [1.0] * count, graph=False)
            bound = truncation_bound(block.lipschitz(), count)
            bias = float((trace - truth).abs()) / 16
            for row, value in (
                ("Bias", bias),
                ("Bound of the bias", bound),
                ("Bias over its bound", bias / bound if bound > ROUNDING else np.nan),
                ("Deviation", float(found[1].std()) / 16),
            ):
                terms_of = f"{count} term{'s' * (count > 1)}"
                numbers.append(MeasuredNumber(f"{row}, {terms_of}", column, value))
    lines = LinePanels(
        name="log-determinant",
        title="Error of the log-determinant by number of terms",
        caption="Bias of the truncated power series, its bound of theorem 5.8, and deviation of Hutchinson's estimator with one random vector.",
        x="terms",
        y="nats per dimension",
        panels=tuple(
            counted_lines(row, numbers) for row in ("Bias", "Bound of the bias", "Deviation")
        ),
        log=True,
    )
    return ExperimentResult("random blocks", draws, {}, tuple(numbers), lines=(lines,))
