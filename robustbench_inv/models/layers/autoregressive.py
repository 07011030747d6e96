"""An autoregressive flow: each element to a standard normal variable, given the elements before it and the class."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import Bijection

__all__ = ["Autoregressive"]


class Autoregressive(Bijection):
    """z_i = Φ⁻¹(F(x_i | x_1 … x_{i−1}, condition)), F piecewise linear between fixed edges.

    The probabilities between the edges come from a masked network of two hidden layers, which sees the condition
    whole. Encoding takes one pass of it, decoding one for each element. If F is the true distribution, z is
    standard normal under every condition, and so says nothing of it. Beyond the outer edges z goes on with slope TAIL.
    Computed in float64 whatever the type of x, so that decoding finds the same probabilities again; under autocast, in
    training, the network in less.

    Args:
        edges: (d, B + 1) ascending, between which the B pieces of each element lie.
        condition: size k of the condition.
        hidden: units of each hidden layer.

    References:
        Germain, Gregor, Murray and Larochelle, MADE, ICML 2015, section 4; Papamakarios, Pavlakou and Murray, Masked
        autoregressive flow, NIPS 2017; Müller et al., Neural importance sampling, 2019, section 4.1 (the pieces).
    """

    TAIL = 2.0
    OUTSIDE = 1e-4
    """Probability beyond either outer edge, so that z is finite between them."""
    UNIFORM = 1e-3
    """Share of a uniform distribution in F, so that no piece is so unlikely that rounding of z loses its x."""

    edges: Tensor
    degrees: Tensor

    def __init__(self, edges: Tensor, condition: int, hidden: int) -> None:
        super().__init__()
        features, pieces = edges.shape[0], edges.shape[1] - 1
        if features < 2 or pieces < 1 or not (edges.diff(dim=1) > 0).all():
            raise BadParameter(
                "unusable edges of an autoregressive flow", expected="(d, B + 1) ascending"
            )
        self.pieces = pieces
        self.register_buffer("edges", edges, persistent=False)
        # unit j sees elements 1 … degree_j; an output sees units of lower degree than its element's
        degrees = torch.linspace(1, features - 1, hidden).round().long()
        self.register_buffer("degrees", degrees, persistent=False)
        self.first = nn.Linear(features, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, features * pieces)
        self.given_first = nn.Linear(condition, hidden, bias=False)
        self.given_second = nn.Linear(condition, hidden, bias=False)
        self.given_last = nn.Linear(condition, features * pieces, bias=False)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.given_last.weight)
        with torch.no_grad():
            self.last.bias.copy_(edges.diff(dim=1).log().flatten())

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        given, dtype = _known(condition), x.dtype
        if not torch.is_autocast_enabled(x.device.type):
            x, given = x.double(), given.double()
        weights = _Weights(self, given)
        units = relu(linear(x, weights.first) + weights.seen)
        units = relu(linear(units, weights.second) + weights.ready)
        logits = linear(units, weights.last) + weights.offset
        shares = self._shares(
            logits.reshape(*x.shape, self.pieces).to(x.dtype), self.edges.to(x.dtype)
        )
        z, slopes = self._transform(x, shares, self.edges.to(x.dtype))
        return z.to(dtype), slopes.sum(1).to(dtype)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        z, edges = y.double(), self.edges.double()
        weights, x = _Weights(self, _known(condition).double()), torch.zeros_like(z)
        seen = weights.seen
        rows = weights.last.reshape(-1, self.pieces, weights.last.shape[1])
        offset = weights.offset.reshape(len(y), -1, self.pieces)
        for i in range(y.shape[1]):
            units = relu(linear(relu(seen), weights.second) + weights.ready)
            shares = self._shares(
                (linear(units, rows[i]) + offset[:, i])[:, None], edges[i : i + 1]
            )
            x[:, i] = self._undo(z[:, i], shares[:, 0], edges[i])
            seen = seen + x[:, i : i + 1] * weights.first[:, i]
        return x.to(y.dtype)

    def _shares(self, logits: Tensor, edges: Tensor) -> Tensor:
        """Return the probabilities (n, m, B) of the pieces of m elements with edges (m, B + 1)."""
        widths = edges.diff(dim=1)
        uniform = widths / widths.sum(1, keepdim=True)
        return (1 - self.UNIFORM) * logits.softmax(2) + self.UNIFORM * uniform

    def _transform(self, x: Tensor, shares: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (n, d) and the logarithms of its slopes (n, d)."""
        piece = torch.searchsorted(edges, x.T.contiguous()).T.sub(1).clamp(0, self.pieces - 1)
        at, widths = _pick(edges, piece), _pick(edges.diff(dim=1), piece)
        share = shares.gather(2, piece[..., None])[..., 0]
        below = shares.cumsum(2).gather(2, piece[..., None])[..., 0] - share
        level = below + share * ((x - at) / widths).clamp(0, 1)
        scale = 1 - 2 * self.OUTSIDE
        z = torch.special.ndtri(
            (self.OUTSIDE + scale * level).clamp(self.OUTSIDE, 1 - self.OUTSIDE)
        )
        slope = (scale * share / widths).log() + z**2 / 2 + math.log(2 * math.pi) / 2
        beyond = x - x.clamp(edges[:, 0], edges[:, -1])
        return z + self.TAIL * beyond, slope.where(beyond == 0, math.log(self.TAIL))

    def _undo(self, z: Tensor, shares: Tensor, edges: Tensor) -> Tensor:
        """Return one element x (n,) from z (n,), its probabilities (n, B) and its edges (B + 1,)."""
        above = shares.cumsum(1)
        most = torch.special.ndtri(torch.full_like(z[0], 1 - self.OUTSIDE))
        beyond = z - z.clamp(-most, most)
        level = (torch.special.ndtr(z) - self.OUTSIDE) / (1 - 2 * self.OUTSIDE)
        piece = torch.searchsorted(above, level[:, None]).clamp(0, self.pieces - 1)
        share = shares.gather(1, piece)[:, 0]
        inside = ((level - above.gather(1, piece)[:, 0] + share) / share).clamp(0, 1)
        found: Tensor = edges[piece[:, 0]] + inside * edges.diff()[piece[:, 0]] + beyond / self.TAIL
        return found


class _Weights:
    """A flow's weights in the type of its condition, everything masked that a unit may not see."""

    def __init__(self, flow: Autoregressive, given: Tensor) -> None:
        order = torch.arange(1, flow.first.in_features + 1, device=given.device)
        degrees, pieces = flow.degrees, order.repeat_interleave(flow.pieces)
        layers = (flow.first, flow.second, flow.last)
        masks = (degrees[:, None] >= order, degrees[:, None] >= degrees, pieces[:, None] > degrees)
        self.first, self.second, self.last = (
            (layer.weight * mask).to(given.dtype) for layer, mask in zip(layers, masks, strict=True)
        )
        self.seen, self.ready, self.offset = (
            linear(given, by.weight.to(given.dtype), layer.bias.to(given.dtype))
            for layer, by in zip(
                layers, (flow.given_first, flow.given_second, flow.given_last), strict=True
            )
        )


def _known(condition: Tensor | None) -> Tensor:
    if condition is None:
        raise BadParameter("a conditional layer without its condition", expected="(n, k)")
    return condition


def _pick(table: Tensor, piece: Tensor) -> Tensor:
    """Return for (n, d) pieces their entries in a table (d, B)."""
    return table.expand(len(piece), -1, -1).gather(2, piece[..., None])[..., 0]
