"""Sound bounds of a network's outputs on a ball of inputs: interval bounds and linear ones (CROWN)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustbench_inv.certification.operations import (
    Activation,
    AffineMap,
    Coefficients,
    Interval,
    MaxPool,
    Operation,
    Owner,
    Pad,
    Reshape,
    Scale,
)
from robustbench_inv.tensors import broadcast, flatten, norm

__all__ = [
    "Bounds",
    "Input",
    "Network",
    "Region",
    "Step",
    "bound",
    "margins",
    "optimised_margins",
    "wrong_class_rows",
]


@dataclass(frozen=True, eq=False)
class Input:
    """The input of the network, which has no arguments."""

    def value(self, *arguments: Tensor) -> Tensor:
        return arguments[0]

    def interval(self, *arguments: Interval) -> Interval:
        return arguments[0]

    def rounding(self, unit: float, *arguments: Interval) -> Tensor | None:
        return None

    def backward(
        self, a: Tensor, owner: Owner, arguments: Sequence[Interval], alphas: Tensor | None
    ) -> Coefficients:
        raise AssertionError("the input has no arguments")


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a network: its arguments by number, and the shape of its value for one sample."""

    operation: Operation
    arguments: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """Operations in float64, in an order in which arguments come first; the first is the input, the last the logits.

    Args:
        steps: the operations.
        unit: unit roundoff of the network that is judged.
    """

    steps: tuple[Step, ...]
    unit: float

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of (n, …) images."""
        values = [images.double()]
        for step in self.steps[1:]:
            values.append(step.operation.value(*(values[i] for i in step.arguments)))
        return values[-1]


CHUNK = 400_000
"""Numbers of the coefficients that are propagated at once (3 MB, so that they stay in the cache)."""


@dataclass(frozen=True, eq=False)
class Region:
    """The inputs within eps of n clean ones, inside the model's bounds.

    Args:
        clean: (n, …) float64.
        eps: (n,) radii.
        norm: ``linf`` or ``l2``.
        bounds: smallest and largest value of an input element.
    """

    clean: Tensor
    eps: Tensor
    norm: str
    bounds: tuple[float, float]
    box: Interval = field(init=False)

    def __post_init__(self) -> None:
        radius = broadcast(self.eps, self.clean)
        box = tuple((self.clean + s * radius).clamp(*self.bounds) for s in (-1, 1))
        object.__setattr__(self, "box", box)

    @classmethod
    def of(cls, images: Tensor, eps: float, name: str, bounds: tuple[float, float]) -> "Region":
        """Return the ball of a budget, enlarged by the tolerance of the judge (``LpBall.contains``) and its rounding."""
        clean = images.double()
        scale = norm(clean, "linf").clamp_min(max(1.0, eps))
        tolerance = 1e-6 if images.dtype == torch.float32 else 1e-9
        return cls(clean, eps * (1 + 10 * tolerance) + 1.1 * tolerance * scale, name, bounds)

    def minimum(self, a: Tensor, owner: Owner) -> Tensor:
        """Return the smallest value of a · x, (s,), for coefficients (s, …) of the samples ``owner``."""
        rows = a.flatten(1)
        low, high = (flatten(each)[owner] for each in self.box)
        smallest = (rows.clamp_min(0) * low).sum(1) + (rows.clamp_max(0) * high).sum(1)
        if self.norm == "l2":
            inner = (rows * flatten(self.clean)[owner]).sum(1)
            smallest = torch.maximum(smallest, inner - self.eps[owner] * rows.norm(dim=1))
        return smallest


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds of every step of a network on a region, rounding errors included.

    Args:
        network: the network.
        region: its inputs.
        steps: lower and upper bounds (n, …) of each step.
        errors: largest rounding error (n, …) of each step, None for none.
    """

    network: Network
    region: Region
    steps: tuple[Interval, ...]
    errors: tuple[Tensor | None, ...]


@torch.no_grad()
def bound(network: Network, region: Region, *, linear: bool = True) -> Bounds:
    """Return bounds of every step.

    Args:
        network: the network.
        region: its inputs.
        linear: improve the bounds of the arguments of activations by CROWN, where they are not decided.

    References:
        Gowal et al., On the effectiveness of interval bound propagation, arXiv 1810.12715, equations 5 to 7; Zhang et
        al., Efficient neural network robustness certification with general activation functions (CROWN), NeurIPS 2018,
        theorem 3.2. The rounding of the judged network is an error of each step, at most that of Higham, Accuracy and
        stability of numerical algorithms, 2002, section 3.1.
    """
    steps, errors = list[Interval](), list[Tensor | None]()
    users = _users(network)
    for number, step in enumerate(network.steps):
        arguments = [steps[i] for i in step.arguments] or [region.box]
        low, high = step.operation.interval(*arguments)
        error = step.operation.rounding(network.unit, *arguments)
        errors.append(error)
        steps.append((low, high) if error is None else (low - error, high + error))
        user = users[number]
        if (
            linear
            and user is not None
            and step.arguments
            and not _is_exact(network, number, region)
        ):
            found = Bounds(network, region, tuple(steps), tuple(errors))
            steps[number] = _improved(found, user)
    return Bounds(network, region, tuple(steps), tuple(errors))


def _is_exact(network: Network, number: int, region: Region) -> bool:
    """Are the interval bounds of a step those of a box? So they are for one matrix or convolution and scales."""
    mixing = 0
    while number:
        step = network.steps[number]
        if not isinstance(step.operation, AffineMap) or region.norm != "linf":
            return False
        mixing += not isinstance(step.operation, Scale | Reshape | Pad)
        number = step.arguments[0]
    return mixing <= 1


def _users(network: Network) -> list[Activation | MaxPool | None]:
    """Return for each step the activation or pooling that takes it, None without any."""
    users: list[Activation | MaxPool | None] = [None] * len(network.steps)
    for step in network.steps:
        if isinstance(step.operation, Activation | MaxPool):
            users[step.arguments[0]] = step.operation
    return users


def _improved(bounds: Bounds, user: Activation | MaxPool) -> Interval:
    """Return the bounds of the last step, those by CROWN where the activation is not decided by the others."""
    low, high = (flatten(each).clone() for each in bounds.steps[-1])
    for sample in range(len(low)):
        below, above = low[sample], high[sample]
        nearer = below.abs() <= above.abs()
        for first in (True, False):
            todo = user.undecided(below, above)
            for side in (nearer, ~nearer):
                units = (todo & side).nonzero()[:, 0]
                if not len(units):
                    continue
                is_lower = (side is nearer) == first
                found = _unit_bounds(bounds, units, sample, 1 if is_lower else -1)
                if is_lower:
                    below[units] = torch.maximum(below[units], found)
                else:
                    above[units] = torch.minimum(above[units], -found)
    shape = bounds.network.steps[len(bounds.steps) - 1].shape
    return low.reshape(-1, *shape), high.reshape(-1, *shape)


def _unit_bounds(bounds: Bounds, units: Tensor, sample: int, sign: int) -> Tensor:
    """Return lower bounds (u,) of sign times some units of the last step, for one sample."""
    shape = bounds.network.steps[len(bounds.steps) - 1].shape
    size = max(1, CHUNK // max(each[0][0].numel() for each in bounds.steps))
    found = []
    for part in torch.split(units, size):
        rows = torch.zeros(len(part), bounds.steps[-1][0][0].numel(), dtype=torch.float64)
        rows[torch.arange(len(part)), part] = sign
        found.append(lower_bounds(bounds, rows.reshape(-1, *shape), slice(sample, sample + 1)))
    return torch.cat(found)


def lower_bounds(
    bounds: Bounds, rows: Tensor, owner: Owner, alphas: dict[int, Tensor] | None = None
) -> Tensor:
    """Return lower bounds (s,) of linear functions of the last bounded step.

    Args:
        bounds: of the steps up to that one.
        rows: (s, …) coefficients of that step.
        owner: positions of the samples.
        alphas: (s, …) alphas of the lower lines of ReLU, by step; None for the usual ones.
    """
    last = len(bounds.steps) - 1
    waiting = {last: rows}
    total = rows.new_zeros(len(rows))
    for number in range(last, 0, -1):
        a = waiting.pop(number, None)
        if a is None:
            continue
        step, error = bounds.network.steps[number], bounds.errors[number]
        if error is not None:
            total = total - (a.abs() * error[owner]).flatten(1).sum(1)
        arguments = [bounds.steps[i] for i in step.arguments]
        chosen = (alphas or {}).get(number)
        parts, constant = step.operation.backward(a, owner, arguments, chosen)
        total = total + constant
        for argument, part in zip(step.arguments, parts, strict=True):
            waiting[argument] = waiting[argument] + part if argument in waiting else part
    return total + bounds.region.minimum(waiting[0], owner)


def wrong_class_rows(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the differences z_y − z_j for every j ≠ y, rows (n (C − 1), C), and the sample of each row."""
    unit = torch.eye(num_classes, dtype=torch.float64)
    others = torch.ones(len(labels), num_classes, dtype=torch.bool).scatter(
        1, labels[:, None], False
    )
    owner, classes = others.nonzero(as_tuple=True)
    return unit[labels[owner]] - unit[classes], owner


def margins(bounds: Bounds, labels: Tensor, *, linear: bool = True) -> Tensor:
    """Return lower bounds of z_y − z_j for every j ≠ y in ascending order, (n, C − 1)."""
    rows, owner = wrong_class_rows(labels, bounds.steps[-1][0].shape[1])
    if linear:
        found = lower_bounds(bounds, rows, owner)
    else:
        low, high = (each[owner] for each in bounds.steps[-1])
        found = (rows.clamp_min(0) * low + rows.clamp_max(0) * high).sum(1)
    return found.reshape(len(labels), -1)


def optimised_margins(bounds: Bounds, labels: Tensor, steps: int = 20, rate: float = 0.1) -> Tensor:
    """Return margins as ``margins`` does, with alphas of ReLU that are chosen by gradient steps; any leak is sound.

    Args:
        bounds: of all steps.
        labels: (n,) true classes.
        steps: gradient steps.
        rate: step length of Adam.

    References:
        Xu et al., Fast and complete: Enabling complete verification with rapid and massively parallel incomplete
        verifiers (alpha-CROWN), ICLR 2021, equation 7; the bounds of the steps in between stay.
    """
    rows, owner = wrong_class_rows(labels, bounds.steps[-1][0].shape[1])
    best = lower_bounds(bounds, rows, owner)
    alphas = dict(_initial_alphas(bounds, owner))
    if not alphas:
        return best.reshape(len(labels), -1)
    optimiser = torch.optim.Adam(alphas.values(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        with torch.enable_grad():
            found = lower_bounds(bounds, rows, owner, alphas)
            torch.autograd.backward(-found.sum())
        best = torch.maximum(best, found.detach())
        optimiser.step()
        for leak in alphas.values():
            leak.data.clamp_(0, 1)
    return best.reshape(len(labels), -1)


def _initial_alphas(bounds: Bounds, owner: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield number and alphas (s, …) of each ReLU."""
    for number, step in enumerate(bounds.network.steps):
        operation = step.operation
        if (
            isinstance(operation, Activation)
            and operation.stationary is None
            and operation.leak == 0
        ):
            lower = operation.lines(*bounds.steps[step.arguments[0]])[0]
            yield number, lower[owner].clone().requires_grad_()
