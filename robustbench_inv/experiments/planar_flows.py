"""Figure 5.2 and Table 5.2 of the thesis: densities in the plane, and properties of invertible networks."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.layers.bijection import Bijection, Chain
from robustbench_inv.models.layers.coupling import Additive, Affine, Coupling, Transform
from robustbench_inv.models.layers.linear import ActNorm, Mixing
from robustbench_inv.models.layers.residual import (
    LogDeterminant,
    ResidualBlock,
    linear_residual,
    power_series,
)
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    ImageGrid,
    MeasuredNumber,
)

__all__ = [
    "PLANE_DATA",
    "measure_densities",
    "measure_properties",
    "planar_log_determinant",
]


def _eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    angles = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    centres = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    return centres + 0.2 * torch.randn(n, 2, generator=generator)


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    x = 4 * torch.rand(n, generator=generator) - 2
    row = torch.randint(2, (n,), generator=generator) * 2 + x.floor() % 2
    return torch.stack([x, row - 2 + torch.rand(n, generator=generator)], 1)


PLANE_DATA: Mapping[str, Callable[[int, torch.Generator], Tensor]] = {
    "eight Gaussians": _eight_gaussians,
    "checkerboard": _checkerboard,
}
"""Samples (n, 2) by name of the density."""


def planar_log_determinant(block: ResidualBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x + g(x) and log |det(I + J)| of each point, (n,), from the whole 2 × 2 Jacobian.

    Args:
        block: a residual block of vectors of two elements.
        x: (n, 2).
    """
    training = torch.is_grad_enabled()
    with torch.enable_grad():
        points = x if x.requires_grad else x.detach().requires_grad_()
        moved = block.residual(points)
        rows = [
            torch.autograd.grad(
                moved[:, i].sum(), points, create_graph=training, retain_graph=True
            )[0]
            for i in (0, 1)
        ]
        first, second = rows
        determinant = (1 + first[:, 0]) * (1 + second[:, 1]) - first[:, 1] * second[:, 0]
        return points + moved, determinant.abs().log()


@dataclass(frozen=True)
class PlaneFlow:
    """A density in the plane: steps to a standard normal distribution."""

    steps: nn.ModuleList

    @classmethod
    def residual(cls, blocks: int, width: int, coefficient: float) -> "PlaneFlow":
        """Return an i-ResNet with ActNorm before each block."""
        steps: list[nn.Module] = []
        for _ in range(blocks):
            block = ResidualBlock(linear_residual((2, width, width, 2), coefficient))
            steps += [ActNorm(2), block]
        return cls(nn.ModuleList([*steps, ActNorm(2)]))

    @classmethod
    def glow(cls, blocks: int, width: int) -> "PlaneFlow":
        """Return a Glow of vectors: ActNorm, a linear map and an affine coupling in turns."""
        steps: list[nn.Module] = []
        for _ in range(blocks):
            steps += [ActNorm(2), Mixing(2), Coupling(_perceptron(1, width, 2), Affine())]
        return cls(nn.ModuleList([*steps, ActNorm(2)]))

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (n,); the log-determinant of a residual block is exact."""
        total = x.new_zeros(len(x))
        for step in self.steps:
            if isinstance(step, ResidualBlock):
                x, change = planar_log_determinant(step, x)
            else:
                x, change = step(x)
            total = total + change
        return total - x.square().sum(1) / 2 - math.log(2 * math.pi)


def _perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    layers = (nn.Linear(inputs, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
    return nn.Sequential(*layers, nn.Linear(width, outputs))


GRID = 96
"""Points per axis of a drawn density."""


def measure_densities(
    request: ExperimentRequest, steps: int = 600, blocks: int = 10, width: int = 48
) -> ExperimentResult:
    """Train a Glow and an i-ResNet flow on densities in the plane, and draw them.

    Args:
        request: seed of weights and samples; its number of samples is that of the held-out ones.
        steps: of Adam, with 256 points each.
        blocks: couplings or residual blocks.
        width: hidden units.

    References:
        Behrmann, thesis, figure 5.2.
    """
    numbers, images = list[MeasuredNumber](), list[list[np.typing.NDArray[np.uint8]]]()
    axis = torch.linspace(-3, 3, GRID)
    points = torch.cartesian_prod(axis, axis).reshape(GRID, GRID, 2).transpose(0, 1).flip(0)
    count = request.samples if isinstance(request.samples, int) else 5_000
    flows: Mapping[str, Callable[[], PlaneFlow]] = {
        "Glow": partial(PlaneFlow.glow, blocks, width),
        "i-ResNet": partial(PlaneFlow.residual, blocks, width, 0.9),
    }
    for row, draw in PLANE_DATA.items():
        held_out = draw(count, torch.Generator().manual_seed(request.seed + 1))
        shown = [_histogram(draw(40_000, torch.Generator().manual_seed(request.seed + 2)))]
        for column, build in flows.items():
            request.report(f"{row}, {column}: {steps} steps")
            torch.manual_seed(request.seed)
            flow = _fit_density(build(), draw, steps, request.seed)
            with torch.no_grad():
                nats = -flow.log_density(held_out).mean()
                density = flow.log_density(points.reshape(-1, 2)).exp().reshape(GRID, GRID)
            share = float(density.sum()) * float(axis[1] - axis[0]) ** 2
            numbers.append(MeasuredNumber(f"{row}: nats per point", column, float(nats)))
            numbers.append(MeasuredNumber(f"{row}: mass of the drawn density", column, share))
            shown.append(_grey(density))
        images.append(shown)
    grid = ImageGrid(
        name="densities",
        title="Samples and densities",
        caption="Left: a histogram of samples. Then the densities of both flows on [-3, 3] × [-3, 3]; dark is large.",
        rows=tuple(PLANE_DATA),
        groups=(("data", 1), ("Glow", 1), ("i-ResNet", 1)),
        images=np.stack([np.stack(row) for row in images])[:, :, None],
    )
    return ExperimentResult("plane", count, {}, tuple(numbers), image_grids=(grid,))


def _fit_density(
    flow: PlaneFlow, draw: Callable[[int, torch.Generator], Tensor], steps: int, seed: int
) -> PlaneFlow:
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(flow.steps.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss = -flow.log_density(draw(256, generator)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(flow.steps.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    flow.steps.eval()
    return flow


def _histogram(points: Tensor) -> np.typing.NDArray[np.uint8]:
    edges = np.linspace(-3, 3, GRID + 1)
    counts, _, _ = np.histogram2d(points[:, 1].numpy(), points[:, 0].numpy(), bins=(edges, edges))
    return _grey(torch.from_numpy(counts[::-1].copy()))


def _grey(density: Tensor) -> np.typing.NDArray[np.uint8]:
    """Return grey levels of a density; the largest per cent is black."""
    top = density.flatten().double().quantile(0.99).clamp_min(1e-12)
    shades: np.typing.NDArray[np.uint8] = (
        (255 * (1 - (density / top).clamp(0, 1))).round().numpy().astype(np.uint8)
    )
    return shades


ROWS = (
    "Free-form",
    "Analytic forward",
    "Analytic inverse",
    "Non-volume preserving",
    "Exact likelihood",
    "Unbiased stochastic log-determinant",
)
"""Rows of table 5.2."""


def measure_properties(request: ExperimentRequest) -> ExperimentResult:
    """Decide the properties of table 5.2 by measurements on layers with random weights; 1 stands for yes.

    The ResNet is a residual block without a bound of its norms, so that only its first two rows are measured.

    Args:
        request: seed of the weights.

    References:
        Behrmann, thesis, table 5.2.
    """
    torch.manual_seed(request.seed)
    numbers = list[MeasuredNumber]()
    plans: Mapping[str, Bijection] = {
        "NICE": _couplings(Additive(), mixed=False),
        "Real-NVP": _couplings(Affine(), mixed=False),
        "Glow": _couplings(Affine(), mixed=True),
        "i-ResNet": ResidualBlock(linear_residual((4, 32, 4), 0.9), LogDeterminant()),
        "ResNet": ResidualBlock(linear_residual((4, 32, 4), None)),
    }
    for column, flow in plans.items():
        rows = ROWS[:2] if column == "ResNet" else ROWS
        for row, holds in zip(rows, _properties(flow.double().eval()), strict=False):
            if holds is not None:
                numbers.append(MeasuredNumber(row, column, float(holds)))
    left_out = {"FFJORD": "neural differential equations are not part of this package"}
    return ExperimentResult("vectors", 1, {}, tuple(numbers), left_out=left_out)


def _couplings(transform: Transform, *, mixed: bool) -> Chain:
    parts: list[Bijection] = []
    for swap in (False, True):
        network = _perceptron(2, 16, 2 * transform.parameters)
        parts += [Mixing(4)] * mixed + [Coupling(network, transform, swap=swap)]
    return Chain(*parts)


def _properties(flow: Bijection) -> Iterator[bool | None]:
    """Yield the rows of the table: yes, no, or None where a row does not apply."""
    x = torch.randn(64, 4, dtype=torch.float64)
    block = flow if isinstance(flow, ResidualBlock) else None
    first = next(part for part in flow.modules() if isinstance(part, Coupling | ResidualBlock))
    with torch.no_grad():
        jacobians = _jacobians(first, x)
        y, log_det = flow(x)
    fixed = (jacobians == jacobians[0]).all(0)
    yield not bool(fixed.any())  # a coupling leaves its passive half unchanged
    calls = _calls(first, lambda: flow(x))
    yield calls == 1
    yield _calls(first, lambda: flow.inverse(y)) == 1
    exact = torch.linalg.slogdet(_jacobians(flow, x))[1].detach()
    yield bool((exact.abs() > 1e-9).any())
    yield bool((log_det - exact).abs().max() < 1e-9)
    yield None if block is None else _is_unbiased(block, x[:1], exact[:1])


def _jacobians(part: Bijection, x: Tensor) -> Tensor:
    """Return the Jacobians (n, d, d) at points (n, d); the estimator of a residual block is not called."""

    def move(point: Tensor) -> Tensor:
        inputs = point[None]
        moved = (
            inputs + part.residual(inputs) if isinstance(part, ResidualBlock) else part(inputs)[0]
        )
        return moved[0]

    found: Tensor = torch.func.vmap(torch.func.jacrev(move))(x)
    return found


def _calls(part: nn.Module, run: Callable[[], object]) -> int:
    """Return how often the network inside a coupling or residual block is evaluated."""
    inner = part.residual if isinstance(part, ResidualBlock) else part.network
    assert isinstance(inner, nn.Module)
    count = list[int]()
    handle = inner.register_forward_hook(lambda *_: count.append(1))
    with torch.no_grad():
        run()
    handle.remove()
    return len(count)


@torch.no_grad()
def _is_unbiased(block: ResidualBlock, x: Tensor, truth: Tensor) -> bool:
    """Return whether the mean of roulette estimates is within three standard errors of the truth.

    The same test must find the bias of the series that is cut after the first term, or it has no power.
    """
    roulette = LogDeterminant(terms=1, estimator="roulette", continuation=0.7)
    generator = torch.Generator().manual_seed(0)

    def deviates(plan: LogDeterminant) -> bool:
        found = list[Tensor]()
        for _ in range(200):
            probes = torch.randn(1, 500, 4, generator=generator, dtype=x.dtype)
            points, factors = x.expand(500, -1), plan.factors(generator)
            found.append(
                power_series(block.residual, points, probes, factors, graph=False)[1].mean()
            )
        means = torch.stack(found)
        return bool((means.mean() - truth[0]).abs() > 3 * means.std() / len(found) ** 0.5)

    return deviates(LogDeterminant(terms=1)) and not deviates(roulette)
