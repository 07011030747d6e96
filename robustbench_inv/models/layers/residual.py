"""Invertible residual blocks: fixed-point inverse, and log-determinant by a power series of the Jacobian."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import Bijection
from robustbench_inv.models.layers.spectral import SpectralConv2d, SpectralLayer, SpectralLinear
from robustbench_inv.tensors import flatten

__all__ = [
    "ITERATIONS",
    "LogDeterminant",
    "ResidualBlock",
    "convolutional_residual",
    "error_bound",
    "exact_log_determinant",
    "fixed_point",
    "fixed_point_iterates",
    "linear_residual",
    "neumann_series",
    "power_series",
    "truncation_bound",
    "truncation_terms",
]

ITERATIONS = 100
"""Fixed-point iterations without a Lipschitz bound below 1, as in the thesis, section 4.3.1."""


class ResidualBlock(Bijection):
    """y = x + g(x); a bijection if g is a contraction.

    Args:
        residual: g, elementwise 1-Lipschitz activations and spectrally normalised layers.
        log_determinant: estimator of the log-determinant; without one it is nan.
        seed: of the estimator's draws.

    References:
        Behrmann, thesis, theorem 4.1; Behrmann et al., Invertible residual networks, ICML 2019.
    """

    step: Tensor

    def __init__(
        self,
        residual: nn.Sequential,
        log_determinant: "LogDeterminant | None" = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.residual, self.log_determinant, self.seed = residual, log_determinant, seed
        self.register_buffer("step", torch.tensor(0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tangent = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
        if self.log_determinant is None or tangent is not None:  # no forward derivative of it
            return x + self.residual(x), x.new_full((len(x),), math.nan)
        if self.training:
            self.step += 1  # seeds the draws, so that a resumed training repeats them
            return self._estimate(x, self.log_determinant)
        return self._evaluate(x, self.log_determinant)

    def _estimate(self, x: Tensor, plan: "LogDeterminant") -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed((self.seed << 32) + int(self.step))
        probes = torch.randn(plan.probes, *x.shape, generator=generator).to(x)
        return neumann_series(self.residual, x, probes, plan.factors(generator))

    def _evaluate(self, x: Tensor, plan: "LogDeterminant") -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (plan.evaluation_probes, 1, *x.shape[1:])
        probes = torch.randn(shape, generator=generator).to(x)
        terms = truncation_terms(self.lipschitz(), plan.evaluation_tolerance)
        graph = torch.is_grad_enabled() and x.requires_grad
        return power_series(self.residual, x, probes, [1.0] * terms, graph=graph)

    def inverse(self, y: Tensor) -> Tensor:
        return fixed_point(self.residual, y, self.lipschitz())

    def iterate(self, y: Tensor, iterations: int) -> Tensor:
        """Return the iterate x_k of algorithm 1, whether g is a contraction or not."""
        return next(islice(fixed_point_iterates(self.residual, y), iterations, None))

    def lipschitz(self) -> float:
        """Return L, the product of the norms of the layers of g, a Lipschitz constant of g in l2."""
        return math.prod(layer.lipschitz() for layer in self.layers())

    def layers(self) -> Iterator[SpectralLayer]:
        """Yield the linear layers of g."""
        return (layer for layer in self.residual if isinstance(layer, SpectralLayer))


def convolutional_residual(
    channels: int,
    width: int,
    size: tuple[int, int],
    coefficient: float | None,
    *,
    activate_first: bool = True,
    boundary: str = "zeros",
) -> nn.Sequential:
    """Return g = A₃ φ(A₂ φ(A₁ φ(x))) with ELU φ and convolutions 3×3, 1×1 and 3×3.

    Args:
        channels: channels of x.
        width: channels of the two hidden layers.
        size: (h, w) of x.
        coefficient: c of each convolution; None without normalisation.
        activate_first: use the first φ.
        boundary: of the convolutions, ``zeros`` or ``circular``.

    References:
        Behrmann, thesis, equation 4.5 and appendix A.1.
    """
    shapes = ((channels, width, 3), (width, width, 1), (width, channels, 3))
    convolutions = [
        SpectralConv2d(inputs, outputs, kernel, size, coefficient, boundary=boundary)
        for inputs, outputs, kernel in shapes
    ]
    return _with_activations(convolutions, activate_first)


def linear_residual(widths: Sequence[int], coefficient: float | None) -> nn.Sequential:
    """Return linear layers of these widths, first and last the dimension of x, with ELU between them."""
    layers = [SpectralLinear(before, after, coefficient) for before, after in pairwise(widths)]
    return _with_activations(layers, activate_first=False)


def _with_activations(layers: Sequence[SpectralLayer], activate_first: bool) -> nn.Sequential:
    parts: list[nn.Module] = [nn.ELU()] if activate_first else []
    for layer in layers:
        parts += [layer, nn.ELU()]
    return nn.Sequential(*parts[:-1])


def error_bound(lipschitz: float, iteration: int, first_step: Tensor) -> Tensor:
    """Return Lᵏ/(1 − L) · ‖x₁ − x₀‖ ≥ ‖x − x_k‖, the error of the k-th iterate.

    Args:
        lipschitz: L, in [0, 1).
        iteration: k.
        first_step: ‖x₁ − x₀‖, of any shape.

    References:
        Behrmann, thesis, lemma 4.5.

    Example:
        >>> error_bound(0.5, 3, torch.tensor(2.0)).item()
        0.5
    """
    return first_step * (lipschitz**iteration / (1 - lipschitz))


def fixed_point_iterates(residual: Callable[[Tensor], Tensor], y: Tensor) -> Iterator[Tensor]:
    """Yield x₀ = y, x₁ = y − g(x₀), x₂ = y − g(x₁) … without end.

    References:
        Behrmann, thesis, algorithm 1.
    """
    x = y
    while True:
        yield x
        x = y - residual(x)


def fixed_point(
    residual: Callable[[Tensor], Tensor],
    y: Tensor,
    lipschitz: float,
    tolerance: float | None = None,
) -> Tensor:
    """Return x with x + g(x) = y, by fixed-point iteration of each sample by itself.

    A sample stops when its error is at most the tolerance, by the bound L/(1 − L) · ‖x_k − x_(k−1)‖, and at the latest
    when lemma 4.5 guarantees it. Without a bound (L ≥ 1) all samples get ``ITERATIONS``, and x may be wrong.

    Args:
        residual: g.
        y: (n, …).
        lipschitz: L, a Lipschitz constant of g in l2.
        tolerance: largest l2 error of a sample; by default 4 times the rounding error of y.

    References:
        Behrmann, thesis, algorithm 1 and lemma 4.5.
    """
    limit = torch.full((len(y),), tolerance or 0.0, dtype=y.dtype, device=y.device)
    if tolerance is None:
        limit = 4 * torch.finfo(y.dtype).eps * flatten(y).norm(dim=1)
    x, rows, last = y, torch.arange(len(y), device=y.device), None
    for number in range(1, 10 * ITERATIONS if lipschitz < 1 else ITERATIONS + 1):
        before = x[rows]
        after = y[rows] - residual(before)
        x = x.index_copy(0, rows, after)
        step = flatten((after - before).detach()).norm(dim=1)
        if lipschitz < 1:
            last = _guaranteed(lipschitz, step, limit) if last is None else last
            far = step * (lipschitz / (1 - lipschitz)) > limit[rows]
            rows = rows[far & (number < last[rows])]
        if not len(rows):
            break
    return x


def _guaranteed(lipschitz: float, first_step: Tensor, limit: Tensor) -> Tensor:
    """Return for each sample the first k whose error bound is at most the limit."""
    tiny = torch.finfo(limit.dtype).tiny
    ratio = (limit * (1 - lipschitz) / first_step.clamp_min(tiny)).clamp(tiny, 1)
    return (ratio.log() / math.log(max(lipschitz, 1e-12))).ceil()


def truncation_bound(lipschitz: float, terms: int, dimensions: int = 1) -> float:
    """Return −d (log(1 − L) + Σ Lᵏ/k, k ≤ n), a bound of the error of n terms of the power series, in nats.

    Args:
        lipschitz: L of g, in [0, 1).
        terms: n.
        dimensions: d.

    References:
        Behrmann, thesis, theorem 5.8.

    Example:
        >>> truncation_bound(0.5, 1) > truncation_bound(0.5, 2) > 0
        True
    """
    whole = -math.log1p(-lipschitz)
    rest = whole - math.fsum(lipschitz**k / k for k in range(1, terms + 1))
    if rest > 1e-6 * whole:
        return dimensions * rest
    # a small rest is lost in the rounding of the difference: sum the terms beyond n
    tail, k = 0.0, terms
    while (term := lipschitz ** (k := k + 1) / k) > 1e-17 * tail:
        tail += term
    return dimensions * tail


def truncation_terms(lipschitz: float, tolerance: float, most: int = 1_000) -> int:
    """Return the number of terms after which the error per dimension is at most the tolerance, in nats."""
    return bisect_left(range(most), x=-tolerance, key=lambda n: -truncation_bound(lipschitz, n))


@dataclass(frozen=True)
class LogDeterminant:
    """log det(I + J) = Σ (−1)ᵏ⁺¹ tr(Jᵏ)/k, with J = ∂g/∂x and Hutchinson's estimate vᵀ Jᵏ v of each trace.

    Args:
        terms: n, number of terms that are always summed.
        estimator: ``truncated`` stops after n terms, with a bias of at most ``truncation_bound``. ``roulette``
            continues with probability q after each further term and divides the j-th of them by qʲ, which removes the
            bias; the variance is finite if L² < q.
        probes: number of v in training.
        continuation: q.
        evaluation_tolerance: largest bias per dimension in evaluation mode, in nats, which is always truncated.
        evaluation_probes: number of v in evaluation mode, the same for all samples and calls.

    References:
        Behrmann, thesis, algorithm 2 and lemma 5.6; Chen et al., Residual flows for invertible generative modeling,
        NeurIPS 2019, equation 6, for the roulette.
    """

    terms: int = 10
    estimator: str = "truncated"
    probes: int = 1
    continuation: float = 0.5
    evaluation_tolerance: float = 1e-4
    evaluation_probes: int = 1

    def __post_init__(self) -> None:
        if self.estimator not in ("truncated", "roulette"):
            raise BadParameter(
                "unknown estimator", got=self.estimator, expected="truncated or roulette"
            )
        if (
            min(self.terms, self.probes, self.evaluation_probes) < 1
            or not 0 < self.continuation < 1
        ):
            raise BadParameter(
                "invalid log-determinant",
                got=self,
                expected="positive numbers, continuation below 1",
            )

    def factors(self, generator: torch.Generator) -> list[float]:
        """Return the factors of the terms: 1 for the first n, then q⁻ʲ for as many as the roulette draws."""
        if self.estimator == "truncated":
            return [1.0] * self.terms
        more = 0
        while float(torch.rand((), generator=generator)) < self.continuation:
            more += 1
        return [1.0] * self.terms + [self.continuation**-j for j in range(1, more + 1)]


def power_series(
    residual: nn.Module, x: Tensor, probes: Tensor, factors: Sequence[float], *, graph: bool
) -> tuple[Tensor, Tensor]:
    """Return x + g(x) and Σ factorₖ (−1)ᵏ⁺¹ vᵀ Jᵏ v / k, (n,), the mean over the probes v.

    Args:
        residual: g.
        x: (n, …).
        probes: (m, n or 1, …) vectors v with unit covariance.
        factors: of the terms.
        graph: keep the graph, for gradients of the result.

    References:
        Behrmann, thesis, algorithm 2.
    """
    with torch.inference_mode(False), torch.enable_grad():
        inputs = x if x.requires_grad and graph else x.detach().clone().requires_grad_()
        copies = inputs.repeat(len(probes), *[1] * (x.ndim - 1))
        outputs = residual(copies)
        fixed = probes.expand(len(probes), *x.shape).reshape(copies.shape)
        product, total = fixed, inputs.new_zeros(len(copies))
        for k, factor in enumerate(factors, 1):
            (product,) = torch.autograd.grad(
                outputs, copies, product, retain_graph=True, create_graph=graph
            )
            total = total + (-1) ** (k + 1) * factor / k * flatten(product * fixed).sum(1)
        estimate, values = total.reshape(len(probes), -1).mean(0), outputs[: len(x)]
    return (inputs + values, estimate) if graph else (x + values.detach(), estimate.detach())


def neumann_series(
    residual: nn.Module, x: Tensor, probes: Tensor, factors: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the same as ``power_series``; its gradient is that of Σ factorₖ (−1)ᵏ⁺¹ vᵀ Jᵏ⁻¹ ∂J v, with v and J fixed.

    Both gradients have the same expectation, since a trace does not change when its factors are rotated. This one needs
    the graph of one product alone, whatever the number of terms.

    Args:
        residual: g.
        x: (n, …).
        probes: (m, n or 1, …) vectors v with unit covariance.
        factors: of the terms.

    References:
        Chen et al., Residual flows for invertible generative modeling, NeurIPS 2019, equation 8.
    """
    with torch.enable_grad():
        inputs = x if x.requires_grad else x.detach().clone().requires_grad_()
        copies = inputs.repeat(len(probes), *[1] * (x.ndim - 1))
        outputs = residual(copies)
        fixed = probes.expand(len(probes), *x.shape).reshape(copies.shape)
        product, weights, total = fixed, torch.zeros_like(fixed), copies.new_zeros(len(copies))
        for k, factor in enumerate(factors, 1):
            signed = (-1) ** (k + 1) * factor
            weights = weights + signed * product
            (product,) = torch.autograd.grad(outputs, copies, product, retain_graph=True)
            total = total + signed / k * flatten(product * fixed).sum(1)
        (product,) = torch.autograd.grad(outputs, copies, weights, create_graph=True)
        surrogate = flatten(product * fixed).sum(1)
        estimate = (total + surrogate - surrogate.detach()).reshape(len(probes), -1).mean(0)
    return inputs + outputs[: len(x)], estimate


def exact_log_determinant(residual: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return log |det(I + J)| of each sample from its whole Jacobian, (n,); d backward passes per sample.

    Args:
        residual: g.
        x: (n, …) with few elements d.
    """

    def jacobian(point: Tensor) -> Tensor:
        one = point.reshape(1, *x.shape[1:])
        found = torch.func.jacrev(residual)(one)
        matrix: Tensor = found.reshape(point.numel(), point.numel())
        return matrix

    matrices = torch.stack([jacobian(point) for point in x.flatten(1)])
    log_dets: Tensor = torch.linalg.slogdet(torch.eye(matrices.shape[-1]).to(x) + matrices)[1]
    return log_dets
