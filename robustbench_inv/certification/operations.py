"""The operations of a network that can be bounded: affine maps, activations, max pooling and addition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.nn.grad import conv2d_input

__all__ = [
    "Activation",
    "Add",
    "AffineMap",
    "AveragePool",
    "Convolution",
    "Dense",
    "GlobalMean",
    "Interval",
    "MaxPool",
    "Operation",
    "Owner",
    "Pad",
    "Reshape",
    "Scale",
]

Interval = tuple[Tensor, Tensor]
"""Lower and upper bounds, each (n, …)."""

Coefficients = tuple[tuple[Tensor, ...], Tensor]
"""Coefficients (s, …) of each argument, and a constant (s,)."""

Owner = Tensor | slice
"""The sample of each row of coefficients: its position, (s,), or one sample for all rows."""


class Operation(Protocol):
    """One operation: its value, and what bounds need of it."""

    def value(self, *arguments: Tensor) -> Tensor:
        """Return the value for (n, …) arguments."""
        ...

    def interval(self, *arguments: Interval) -> Interval:
        """Return bounds of the value, given bounds of the arguments, in exact arithmetic."""
        ...

    def rounding(self, unit: float, *arguments: Interval) -> Tensor | None:
        """Return the largest error (n, …) of one evaluation with a unit roundoff; None if it is exact."""
        ...

    def backward(
        self, a: Tensor, owner: Owner, arguments: Sequence[Interval], alphas: Tensor | None
    ) -> Coefficients:
        """Return linear functions of the arguments that are at most a · value on the bounds of the arguments.

        Args:
            a: (s, …) coefficients of the value.
            owner: positions of the samples: (s,), or a slice of one sample.
            arguments: bounds (n, …) of each argument.
            alphas: (s, …) gradients of the lower lines of ReLU; None for the usual ones.
        """
        ...


NARROW = 1e-12
"""Bounds that are closer count as one point for the gradient of a line between them."""


def _gamma(terms: int, unit: float) -> float:
    """Return the relative error of a sum of products in any order (Higham 2002, section 3.1)."""
    return terms * unit / (1 - terms * unit)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row, (s,)."""
    return (a * b).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class AffineMap:
    """An affine map x ↦ W x + b; by default W has no negative elements, so that |W| = W."""

    inputs: tuple[int, ...]
    bias: Tensor | None = field(default=None, kw_only=True)
    terms: int = field(default=0, kw_only=True)

    def linear(self, x: Tensor) -> Tensor:
        """Return W x, (n, …)."""
        raise NotImplementedError

    def absolute(self, x: Tensor) -> Tensor:
        """Return |W| x, (n, …)."""
        return self.linear(x)

    def transpose(self, a: Tensor) -> Tensor:
        """Return Wᵀ a, (s, *inputs)."""
        zeros = a.new_zeros((len(a), *self.inputs))
        found: Tensor = torch.func.vjp(self.linear, zeros)[1](a)[0]
        return found

    def value(self, *arguments: Tensor) -> Tensor:
        product = self.linear(arguments[0])
        return product if self.bias is None else product + self.bias

    def interval(self, *arguments: Interval) -> Interval:
        low, high = arguments[0]
        centre, radius = self.value((low + high) / 2), self.absolute((high - low) / 2)
        return centre - radius, centre + radius

    def rounding(self, unit: float, *arguments: Interval) -> Tensor | None:
        if not self.terms:
            return None
        low, high = arguments[0]
        size = self.absolute(torch.maximum(low.abs(), high.abs()))
        size = size if self.bias is None else size + self.bias.abs()
        return _gamma(self.terms, unit) * size

    def backward(
        self, a: Tensor, owner: Owner, arguments: Sequence[Interval], alphas: Tensor | None
    ) -> Coefficients:
        constant = a.new_zeros(len(a)) if self.bias is None else _inner(a, self.bias)
        return (self.transpose(a),), constant


@dataclass(frozen=True, eq=False)
class Dense(AffineMap):
    """A matrix (out, in), applied to the last dimension."""

    weight: Tensor

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def absolute(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.abs())

    def transpose(self, a: Tensor) -> Tensor:
        return F.linear(a, self.weight.T)


@dataclass(frozen=True, eq=False)
class Convolution(AffineMap):
    """A convolution of maps (c, h, w) with zero padding."""

    weight: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def linear(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight)

    def absolute(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight.abs())

    def transpose(self, a: Tensor) -> Tensor:
        if self.groups == 1:  # in float64 2.5 times as fast
            columns = a.flatten(2).transpose(0, 1).flatten(1)
            products = (self.weight.flatten(1).T @ columns).reshape(-1, len(a), prod(a.shape[2:]))
            kernel = tuple(self.weight.shape[2:])
            places = kernel, self.dilation, self.padding, self.stride
            return F.fold(products.transpose(0, 1), self.inputs[1:], *places)
        size = (len(a), *self.inputs)
        how = self.stride, self.padding, self.dilation, self.groups
        found: Tensor = conv2d_input(size, self.weight, a, *how)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True, eq=False)
class Scale(AffineMap):
    """Multiplication by constants of a shape that fits the input, as in batch norm and normalisation.

    Args:
        factor: the constants.
        shift_size: what the error of computing the shift is relative to, if that is not the shift.
    """

    factor: Tensor
    shift_size: Tensor | None = None

    def linear(self, x: Tensor) -> Tensor:
        return x * self.factor

    def absolute(self, x: Tensor) -> Tensor:
        return x * self.factor.abs()

    def transpose(self, a: Tensor) -> Tensor:
        return a * self.factor

    def rounding(self, unit: float, *arguments: Interval) -> Tensor | None:
        found = super().rounding(unit, *arguments)
        extra = 0 if self.shift_size is None else _gamma(self.terms, unit) * self.shift_size
        return None if found is None else found + extra


@dataclass(frozen=True, eq=False)
class GlobalMean(AffineMap):
    """The mean over both positions of maps (c, h, w), in a shape of c elements."""

    outputs: tuple[int, ...]

    def linear(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).reshape(len(x), *self.outputs)


@dataclass(frozen=True, eq=False)
class AveragePool(AffineMap):
    """A mean over windows, (kernel, stride, padding), the border counting as zeros."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def linear(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel, self.stride, self.padding)


@dataclass(frozen=True, eq=False)
class Pad(AffineMap):
    """A border of zeros, widths as ``torch.nn.functional.pad`` takes them."""

    widths: tuple[int, ...]

    def linear(self, x: Tensor) -> Tensor:
        return F.pad(x, self.widths)


@dataclass(frozen=True, eq=False)
class Reshape(AffineMap):
    """The same numbers in another shape."""

    outputs: tuple[int, ...]

    def linear(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.outputs)

    def transpose(self, a: Tensor) -> Tensor:
        return a.reshape(len(a), *self.inputs)


@dataclass(frozen=True, eq=False)
class Add:
    """x + sign · y, of equal shapes."""

    sign: int = 1

    def value(self, *arguments: Tensor) -> Tensor:
        return arguments[0] + self.sign * arguments[1]

    def interval(self, *arguments: Interval) -> Interval:
        (low, high), (below, above) = arguments
        if self.sign < 0:
            below, above = -above, -below
        return low + below, high + above

    def rounding(self, unit: float, *arguments: Interval) -> Tensor | None:
        first, second = (torch.maximum(low.abs(), high.abs()) for low, high in arguments)
        return _gamma(2, unit) * (first + second)

    def backward(
        self, a: Tensor, owner: Owner, arguments: Sequence[Interval], alphas: Tensor | None
    ) -> Coefficients:
        return (a, self.sign * a), a.new_zeros(len(a))


@dataclass(frozen=True, eq=False)
class Activation:
    """An increasing function of each element, with lines below and above it.

    Args:
        name: as torch calls it.
        function: f.
        stationary: returns the points at which f has the gradient k > 0, for (n, …) k; None for a function of two linear
            parts that meet at 0.
        leak: gradient of the negative part of such a function.
        ulps: error of one evaluation in units of the last place; 0 for comparisons.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    stationary: Callable[[Tensor], Sequence[Tensor]] | None = None
    leak: float = 0.0
    ulps: int = 0

    def value(self, *arguments: Tensor) -> Tensor:
        return self.function(arguments[0])

    def interval(self, *arguments: Interval) -> Interval:
        low, high = arguments[0]
        return self.function(low), self.function(high)

    def rounding(self, unit: float, *arguments: Interval) -> Tensor | None:
        if not self.ulps:
            return None
        size = torch.maximum(*(self.function(bound).abs() for bound in arguments[0]))
        return 2 * self.ulps * unit * size.clamp_min(1e-3)

    def undecided(self, low: Tensor, high: Tensor) -> Tensor:
        """Return where the function is not linear between two bounds, (n, …)."""
        return (low < 0) & (high > 0) if self.stationary is None else low < high

    def lines(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return leak and intercept of a line below the function between two bounds, then of one above."""
        width = (high - low).clamp_min(NARROW)
        below, above = self.function(low), self.function(high)
        secant = ((above - below) / width).clamp_min(0)
        if self.stationary is None:
            return self._two_parts(low, high, secant)
        points = [low, high, *(torch.clamp(p, low, high) for p in self.stationary(secant))]
        gaps = torch.stack([self.function(p) - secant * p for p in points])
        guard = 1e-9 * (1 + gaps.abs().amax(0))
        return secant, gaps.amin(0) - guard, secant, gaps.amax(0) + guard

    def _two_parts(
        self, low: Tensor, high: Tensor, secant: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        open_ = self.undecided(low, high)
        secant = torch.where(
            high - low < NARROW, 1.0, secant
        )  # divided by more than their distance
        straight = torch.where(low >= 0, 1.0, self.leak).to(low)
        steep = torch.where(high > -low, 1.0, self.leak).to(low)
        lower, upper = torch.where(open_, steep, straight), torch.where(open_, secant, straight)
        intercept = torch.where(open_, self.function(low) - secant * low, 0.0)
        return lower, torch.zeros_like(low), upper, intercept

    def backward(
        self, a: Tensor, owner: Owner, arguments: Sequence[Interval], alphas: Tensor | None
    ) -> Coefficients:
        low, high = arguments[0]
        lower, base, upper, roof = (line[owner] for line in self.lines(low, high))
        if alphas is not None and self.stationary is None:
            lower = torch.where(self.undecided(low, high)[owner], alphas, lower)
        up, down = a.clamp_min(0), a.clamp_max(0)
        return (up * lower + down * upper,), _inner(up, base) + _inner(down, roof)


@dataclass(frozen=True, eq=False)
class MaxPool:
    """The maximum over windows of maps (c, h, w), (kernel, stride, padding)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def value(self, *arguments: Tensor) -> Tensor:
        return F.max_pool2d(arguments[0], self.kernel, self.stride, self.padding)

    def interval(self, *arguments: Interval) -> Interval:
        return self.value(arguments[0][0]), self.value(arguments[0][1])

    def rounding(self, unit: float, *arguments: Interval) -> Tensor | None:
        return None

    def undecided(self, low: Tensor, high: Tensor) -> Tensor:
        """Return where a bound can matter, (n, …): everywhere that is not a single number."""
        return low < high

    def _windows(self, maps: Tensor, outside: float) -> Tensor:
        """Return the windows of (n, c, h, w) maps, (n, c, positions, elements)."""
        rows, columns = self.padding
        framed = F.pad(maps, (columns, columns, rows, rows), value=outside)
        parts = framed.unfold(2, self.kernel[0], self.stride[0]).unfold(
            3, self.kernel[1], self.stride[1]
        )
        return parts.flatten(4).flatten(2, 3)

    def backward(
        self, a: Tensor, owner: Owner, arguments: Sequence[Interval], alphas: Tensor | None
    ) -> Coefficients:
        low, high = arguments[0]
        size = prod(low.shape[2:])
        places = torch.arange(size, device=low.device).reshape(1, 1, *low.shape[2:]).double()
        lows, highs = self._windows(low, -torch.inf), self._windows(high, -torch.inf)
        best, pick = lows.max(3)
        others = highs.scatter(3, pick[..., None], -torch.inf).amax(3)
        decided, roof = (best >= others)[owner], highs.amax(3)[owner]
        index = self._windows(places, -1).long().expand(*lows.shape).gather(3, pick[..., None])
        rows = a.flatten(2)
        passed = torch.where(decided, rows, rows.clamp_min(0))
        back = a.new_zeros(len(a), a.shape[1], size).scatter_add(
            2, index[..., 0][owner].expand_as(passed), passed
        )
        return (back.reshape(len(a), *low.shape[1:]),), _inner(rows - passed, roof)
