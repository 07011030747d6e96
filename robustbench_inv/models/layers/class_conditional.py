"""Invertible layers with parameters per class, fitted in closed form, and a layer conditioned on the predicted class."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import Bijection

__all__ = ["DecisionConditional", "FittedByClass", "GaussianiseByClass", "WhitenByClass"]


class FittedByClass(Bijection):
    """A map of vectors (n, d) under a one-hot condition (n, C); the identity before it is fitted.

    The flag ``fitted`` is a buffer, so that loaded weights are not fitted again.
    """

    fitted: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("fitted", torch.tensor(False))

    @abstractmethod
    def fit(self, vectors: Tensor, labels: Tensor) -> None:
        """Set the parameters from (N, d) vectors and their classes (N,)."""

    @abstractmethod
    def _map(self, x: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """Map (n, d) vectors of one class; return them and the log-determinants (n,)."""

    @abstractmethod
    def _undo(self, y: Tensor, label: int) -> Tensor: ...

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = x.clone(), x.new_zeros(len(x))
        for label, rows in self._groups(condition):
            y[rows], log_det[rows] = self._map(x[rows], label)
        return y, log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        x = y.clone()
        for label, rows in self._groups(condition):
            x[rows] = self._undo(y[rows], label)
        return x

    def _groups(self, condition: Tensor | None) -> list[tuple[int, Tensor]]:
        if condition is None:
            expected = "one-hot classes (n, C)"
            raise BadParameter("a conditional layer needs a condition", expected=expected)
        if not self.fitted:
            return []
        labels = condition.argmax(1)
        return [(k, (labels == k).nonzero()[:, 0]) for k in set(labels.tolist())]


class GaussianiseByClass(FittedByClass):
    """Maps each element of each class to a standard normal distribution: Φ⁻¹ of the empirical distribution function.

    The function is piecewise linear between ``knots``, the quantiles at ``LEVELS``, and has the derivative ``TAIL``
    outside them. It spreads a dequantised background, with nearly all mass on one grey level, over the whole range.

    Args:
        features: d.
        num_classes: C.

    References:
        Chen and Gopinath, Gaussianization, NIPS 2000, section 3, marginal Gaussianization.
    """

    LEVELS = (0.0005, 0.002, 0.007, *(k / 48 for k in range(1, 48)), 0.993, 0.998, 0.9995)
    TAIL = 2.0
    GAP = 1e-6
    """Smallest distance of two knots, so that the function stays invertible when stored knots are rounded."""

    knots: Tensor

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("knots", torch.zeros(num_classes, features, len(self.LEVELS)))

    @torch.no_grad()
    def fit(self, vectors: Tensor, labels: Tensor) -> None:
        levels = torch.tensor(self.LEVELS, dtype=vectors.dtype)
        for label in range(self.num_classes):
            self.knots[label] = torch.quantile(vectors[labels == label], levels, dim=0).T
        self.fitted.fill_(True)

    def _map(self, x: Tensor, label: int) -> tuple[Tensor, Tensor]:
        knots, values = self._curve(label, x)
        columns = x.T.contiguous()
        piece, derivative = self._pieces(knots, values, torch.searchsorted(knots, columns))
        y = values[piece] + (columns - knots.gather(1, piece)) * derivative
        return y.T, derivative.log().sum(0)

    def _undo(self, y: Tensor, label: int) -> Tensor:
        knots, values = self._curve(label, y)
        columns = y.T.contiguous()
        piece, derivative = self._pieces(knots, values, torch.searchsorted(values, columns))
        return (knots.gather(1, piece) + (columns - values[piece]) / derivative).T

    def _curve(self, label: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the knots (d, K) and their images, the normal quantiles (K,)."""
        values = torch.special.ndtri(torch.tensor(self.LEVELS, dtype=torch.float64))
        gaps = self.GAP * torch.arange(len(self.LEVELS), device=like.device)
        return self.knots[label].to(like.dtype) + gaps.to(like.dtype), values.to(like)

    def _pieces(self, knots: Tensor, values: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """Return the knot below each position and the derivative there, each (d, n)."""
        last = knots.shape[1] - 1
        inside = (values[1:] - values[:-1]) / (knots[:, 1:] - knots[:, :-1])
        derivative = inside.gather(1, (above - 1).clamp(0, last - 1))
        derivative = derivative.where((above > 0) & (above <= last), self.TAIL)
        return (above - 1).clamp(0, last), derivative


class WhitenByClass(FittedByClass):
    """y = W_k (x − μ_k) with W_k = Σ_k^(−½): each class gets mean 0 and unit covariance.

    W_k is symmetric: its state holds the upper triangles, (C, d (d + 1) / 2).

    Args:
        features: d.
        num_classes: C.
    """

    LEAST = 1e-4
    """Lower limit of a covariance's eigenvalues."""

    mean: Tensor
    weight: Tensor

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mean", torch.zeros(num_classes, features))
        self.register_buffer("weight", torch.zeros(num_classes, features, features))
        self._solved: tuple[object, Tensor, Tensor] | None = None

    @torch.no_grad()
    def fit(self, vectors: Tensor, labels: Tensor) -> None:
        for label in range(self.num_classes):
            members = vectors[labels == label].double()
            values, axes = torch.linalg.eigh(torch.cov(members.T))
            self.mean[label] = members.mean(0)
            root = axes * values.clamp_min(self.LEAST).rsqrt() @ axes.T
            self.weight[label] = (root + root.T) / 2
        self.fitted.fill_(True)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        whole = destination[f"{prefix}weight"]
        rows, columns = torch.triu_indices(*whole.shape[1:], device=whole.device)
        destination[f"{prefix}weight"] = whole[:, rows, columns]

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:  # noqa: ANN401 - of torch
        found = state.get(f"{prefix}weight")
        if isinstance(found, Tensor) and found.ndim == 2:
            rows, columns = torch.triu_indices(*self.weight.shape[1:], device=found.device)
            if found.shape[1] == len(rows):  # else torch reports the shape
                whole = found.new_zeros(len(found), *self.weight.shape[1:])
                whole[:, rows, columns] = whole[:, columns, rows] = found
                state = {**state, f"{prefix}weight": whole}
        super()._load_from_state_dict(state, prefix, *rest)

    def _map(self, x: Tensor, label: int) -> tuple[Tensor, Tensor]:
        log_dets, _ = self._solve()
        with torch.autocast(x.device.type, enabled=False):
            y = (x - self.mean[label]) @ self.weight[label].T
        return y, log_dets[label].expand(len(x))

    def _undo(self, y: Tensor, label: int) -> Tensor:
        _, inverses = self._solve()
        with torch.autocast(y.device.type, enabled=False):
            return y @ inverses[label].T + self.mean[label]

    def _solve(self) -> tuple[Tensor, Tensor]:
        """Return log |det W| (C,) and W⁻¹ (C, d, d) of the current weights, computed in float64."""
        state = (self.weight.data_ptr(), self.weight._version, self.weight.dtype)
        if self._solved is None or self._solved[0] != state:
            exact = self.weight.detach().double()
            log_dets = torch.linalg.slogdet(exact).logabsdet.to(self.weight.dtype)
            inverses = torch.linalg.inv(exact).to(self.weight.dtype)
            self._solved = (state, log_dets, inverses)
        return self._solved[1], self._solved[2]


class DecisionConditional(Bijection):
    """(z_s, z_n) ↦ (z_s, G(z_n)), where G has the predicted class argmax z_s as a one-hot condition.

    z_s does not change, so the inverse has the same condition.

    Args:
        rest: G, a bijection of vectors (n, d − C) under a condition (n, C).
        num_classes: C.
    """

    def __init__(self, rest: Bijection, num_classes: int) -> None:
        super().__init__()
        self.rest, self.num_classes = rest, num_classes

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        nuisance, log_det = self.rest(*self.parts(x))
        return torch.cat([x[:, : self.num_classes], nuisance], 1), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.cat([y[:, : self.num_classes], self.rest.inverse(*self.parts(y))], 1)

    def parts(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nuisances (n, d − C) of codes (n, d), and the one-hot predictions (n, C)."""
        semantic, nuisance = code[:, : self.num_classes], code[:, self.num_classes :]
        return nuisance, one_hot(semantic.argmax(1), self.num_classes).to(code.dtype)
