"""Budgets: the inputs that an attack may return for each clean input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_inv.errors import BadParameter
from robustbench_inv.tensors import NORMS, broadcast, flatten, norm, where_rows

__all__ = [
    "Budget",
    "LpBall",
    "OnSphere",
    "Unbounded",
    "add_inward",
    "describe_budget",
    "inside_box",
    "project_perturbations",
]

ORDERS = {"l1": 1.0, "l2": 2.0}

ROUNDS_SAFELY = 49_152
"""Elements up to which no l2 projection of float32 inputs left its ball by more than the tolerance, of 128 × 128 × 3."""

TOLERANCE = {torch.float64: 1e-9}
"""Tolerance of distances for rounding, by dtype, relative to the larger of eps, the clean input and 1."""


@runtime_checkable
class Budget(Protocol):
    """A set of allowed inputs around each clean one; ``norm`` is the norm of its distances."""

    @property
    def norm(self) -> str: ...

    def distance(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Return (n,) distances of (n, …) adversarial from (n, …) clean inputs."""
        ...

    def contains(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Return (n,) booleans: whether the input is allowed, up to rounding."""
        ...

    def project(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """Return the closest allowed input of each sample, (n, …)."""
        ...


@dataclass(frozen=True)
class LpBall:
    """All inputs within ``eps`` of the clean one in the l0, l1, l2 or linf norm, in input units."""

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise BadParameter("unknown norm", got=self.norm, expected="one of " + ", ".join(NORMS))
        if not 0 <= self.eps < float("inf"):
            raise BadParameter("unusable eps", got=self.eps, expected="a finite number >= 0")

    def distance(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        return norm(adversarial - clean, self.norm)

    def contains(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        slack = TOLERANCE.get(adversarial.dtype, 1e-6) * _rounding_scale(clean).clamp_min(self.eps)
        if self.norm == "l0":  # a count has no rounding
            slack = torch.zeros_like(slack)
        if self.norm in ("l0", "linf"):
            return self.distance(clean, adversarial) <= self.eps + slack
        # a sum of 150,528 elements is wrong by up to 4e-6 in float32
        length: Tensor = torch.linalg.vector_norm(
            flatten(adversarial - clean), ORDERS[self.norm], dim=1, dtype=torch.float64
        )
        return length <= self.eps + slack.double()

    def project(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        delta = adversarial - clean
        if self.norm == "linf":  # six times as fast as with one radius per sample
            return delta.clamp_(-self.eps, self.eps).add_(clean)
        radii = torch.full_like(flatten(delta)[:, 0], self.eps)
        if self.norm == "l0":
            return clean + project_perturbations(delta, radii, "l0")
        if self.norm == "l2":
            shorter = project_perturbations(delta, radii, "l2")
            if radii.numel() * ROUNDS_SAFELY >= delta.numel():
                return clean + shorter
        else:
            # Adding the clean input rounds each element, so the radius is reduced by the sum of d roundings. Without that,
            # 5 % of projected images of 784 elements were outside an eps of 1 in float32.
            rounding = (
                flatten(delta).shape[1] ** 0.5
                * torch.finfo(delta.dtype).eps
                * _rounding_scale(clean)
            )
            shorter = project_perturbations(delta, (radii - rounding).clamp_min(0), "l1")
            shorter = where_rows(norm(delta.double(), "l1") > self.eps, shorter, delta)
        projected = clean + shorter
        rows = (~self.contains(clean, projected)).nonzero()[:, 0]
        if len(rows):
            shorter = project_perturbations(delta[rows].double(), radii[rows].double(), self.norm)
            projected[rows] = add_inward(clean[rows], shorter)
        return projected


@dataclass(frozen=True)
class Unbounded:
    """Every input is allowed; distances are measured in ``norm``."""

    norm: str = "l2"

    def distance(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        return norm(adversarial - clean, self.norm)

    def contains(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        return torch.ones(len(clean), dtype=torch.bool, device=clean.device)

    def project(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        return adversarial


@dataclass(frozen=True)
class OnSphere:
    """All inputs whose l2 norm is ``radius`` (up to a relative 1e-9 in float64)."""

    radius: float
    norm: str = "l2"

    def distance(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        return norm(adversarial - clean, self.norm)

    def contains(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        slack = 1e-9 if adversarial.dtype == torch.float64 else 1e-5
        return (norm(adversarial, "l2") - self.radius).abs() <= slack * self.radius

    def project(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        return adversarial * broadcast(self.radius / norm(adversarial, "l2"), adversarial)


def inside_box(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return for each input (n, …) whether every element is finite and inside the bounds, (n,)."""
    flat = flatten(images)
    return ((flat >= bounds[0]) & (flat <= bounds[1])).all(1)


def describe_budget(budget: Budget, content: Callable[[object], object]) -> dict[str, Any]:
    """Return a budget as plain values; ``content`` returns the identity of a user's own."""
    if type(budget) is LpBall:
        return {"type": "ball", "norm": budget.norm, "eps": budget.eps}
    if type(budget) is Unbounded:
        return {"type": "unbounded", "norm": budget.norm}
    if type(budget) is OnSphere:
        return {"type": "sphere", "norm": budget.norm, "radius": budget.radius}
    return {"type": "other", "content": content(budget)}


def project_perturbations(delta: Tensor, radii: Tensor, name: str) -> Tensor:
    """Return perturbations projected onto balls around 0, one radius per sample, (n, …).

    Args:
        delta: (n, …) perturbations; those inside their balls do not change.
        radii: (n,) >= 0; in l0 the number of elements that may differ from 0, rounded down.
        name: of the norm.

    Example:
        >>> project_perturbations(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([1.0, 9.0]), "l2")
        tensor([[0.6000, 0.8000],
                [3.0000, 4.0000]])
    """
    if name == "linf":
        most = broadcast(radii, delta)
        return delta.clamp(-most, most)
    if name == "l2":
        length = norm(delta, "l2").clamp_min(torch.finfo(delta.dtype).tiny)
        return delta * broadcast((radii / length).clamp_max(1), delta)
    shorter = _project_l1 if name == "l1" else _project_l0
    return shorter(flatten(delta), radii.floor() if name == "l0" else radii).reshape(delta.shape)


def add_inward(clean: Tensor, delta: Tensor) -> Tensor:
    """Return clean + delta (n, …) in the type of clean, rounded so that no element moves by more than delta.

    Rounding to the nearest number returns to the unprojected input where a projection shortens an element by less than half
    the spacing of numbers.

    Args:
        clean: (n, …).
        delta: (n, …) in float64.
    """
    moved = (clean.double() + delta).to(clean)
    too_far = (moved.double() - clean.double()).abs() > delta.abs()
    return torch.where(too_far, torch.nextafter(moved, clean), moved)


def _rounding_scale(clean: Tensor) -> Tensor:
    """Return the scale of rounding errors: the largest absolute element of each input, (n,), at least 1.

    Adding 1 to an input of 200 rounds by 8e-6 in float32, eight times the tolerance of an input of 1.
    """
    return norm(clean, "linf").clamp_min(1)


def _project_l1(delta: Tensor, radii: Tensor) -> Tensor:
    """Project (n, d) by the sorted threshold (Duchi et al., ICML 2008, figure 1)."""
    sizes = delta.abs().double().sort(dim=1, descending=True).values
    excess = sizes.cumsum(1) - radii[:, None]
    counts = torch.arange(1, delta.shape[1] + 1, device=delta.device, dtype=sizes.dtype)
    last = (sizes * counts > excess).sum(1, keepdim=True).clamp_min(1)
    threshold = (excess.gather(1, last - 1) / last).clamp_min(0).to(delta.dtype)
    return delta.sign() * (delta.abs() - threshold).clamp_min(0)


def _project_l0(delta: Tensor, counts: Tensor) -> Tensor:
    """Keep the (n,) largest elements of each row of (n, d), of equal ones the first.

    The indices of ``topk`` are not used: which of equal elements it returns depends on its number, the largest count of
    the batch. A stable sort is 4 to 15 times as slow.
    """
    most = min(int(counts.max()) if len(counts) else 0, delta.shape[1])
    if not most:
        return torch.zeros_like(delta)
    sizes = delta.abs()
    last = counts.long().clamp(1, most)[:, None] - 1
    least = sizes.topk(most, dim=1).values.gather(1, last)
    kept = ~(sizes < least) & (sizes != 0)  # not a number counts as the largest
    rows = (kept.sum(1) > counts).nonzero()[:, 0]
    if len(rows):
        some, limit = (each[rows].nan_to_num(torch.inf, torch.inf) for each in (sizes, least))
        larger, equal = some > limit, some == limit
        places = counts[rows, None] - larger.sum(1, keepdim=True)
        kept[rows] = larger | (equal & (equal.cumsum(1, dtype=torch.int32) <= places))
    return delta.where(kept, 0)
