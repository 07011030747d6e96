"""Closed-form perturbation and invariance attacks on adversarial spheres."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, flatten, norm
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "NormThresholdModel",
    "SpheresInvariance",
    "SpheresPerturbation",
    "on_sphere",
    "spheres_model",
    "split_used",
]


RELATIVE_SLACK = 1e-12
"""Relative distance below the classifier's bias at which the prediction is the inner sphere for certain."""


@runtime_checkable
class NormThresholdModel(Protocol):
    """A classifier that compares the l2 norm of all but the last coordinates with a bias.

    ``unused_dimensions`` is the number of coordinates that it ignores; ``radii`` are those of the two spheres.
    """

    @property
    def unused_dimensions(self) -> int: ...

    @property
    def bias(self) -> float: ...

    @property
    def radii(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class SpheresPerturbation:
    """Moves points along the outer sphere until the norm of their used coordinates is below the bias.

    With u and v the norms of the used and the unused coordinates, b the bias and R2 the outer radius, the
    used ones are scaled to norm b and the unused ones to √(R2² − b²). The distance is
    √((u − b)² + (√(R2² − b²) − v)²). Points where this is impossible do not change: those of the inner sphere, those
    with v = 0 or u < b, and all points if no dimension is unused.

    References:
        Behrmann, thesis, section 6.2.1, analytic perturbation-based attack.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a model without a closed form."""
        spheres_model(model)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        classifier = spheres_model(model.model)
        outer, points = classifier.radii[1], flatten(batch.images)
        used, unused, u, v = split_used(points, classifier.unused_dimensions)
        shorter = classifier.bias * (1 - _relative_slack(points.dtype))
        longer = max(outer**2 - shorter**2, 0.0) ** 0.5
        moved = torch.cat([used * (shorter / u), unused * (longer / v)], 1)
        possible = on_sphere(points, outer) & (v[:, 0] > 0) & (u[:, 0] >= classifier.bias)
        return torch.where(possible[:, None], moved, points).reshape(batch.images.shape)


def spheres_model(model: object) -> NormThresholdModel:
    """Return the model if it has a closed form.

    Raises:
        CapabilityMismatch: if it does not declare the dimensions that it uses.
    """
    if not isinstance(model, NormThresholdModel):
        raise CapabilityMismatch(
            "a closed-form attack on spheres needs a classifier of the norm of some dimensions",
            got=type(model).__name__,
            expected="unused_dimensions, bias and radii",
            remedy="use spheres-misaligned or spheres-max-margin",
        )
    return model


def split_used(points: Tensor, unused_dimensions: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the used (n, d − k) and unused (n, k) coordinates and their norms u and v, both (n, 1)."""
    border = points.shape[1] - unused_dimensions
    used, unused = points[:, :border], points[:, border:]
    return used, unused, norm(used, "l2")[:, None], norm(unused, "l2")[:, None]


def on_sphere(points: Tensor, radius: float) -> Tensor:
    """Return (n,): whether the point lies on the sphere, up to rounding."""
    slack = 1e3 * torch.finfo(points.dtype).eps
    return (norm(points, "l2") - radius).abs() <= slack * radius


def _relative_slack(dtype: torch.dtype) -> float:
    """Return the slack of a dtype: float32 does not resolve the norm of many coordinates to RELATIVE_SLACK."""
    return max(RELATIVE_SLACK, 100 * torch.finfo(dtype).eps if dtype != torch.float64 else 0.0)


@dataclass(frozen=True)
class SpheresInvariance:
    """Moves points of the inner sphere to the outer one along the coordinates that the model ignores.

    With u and v the norms of the used and the unused coordinates and R2 the outer radius, the unused ones are
    scaled to norm √(R2² − u²). The distance is √(R2² − u²) − v. Points where this is impossible do not change: those
    of the outer sphere, those with v = 0, and all points if no dimension is unused.

    References:
        Behrmann, thesis, section 6.2.1, analytic invariance-based attack.
    """

    kind: ClassVar[Kind] = "invariance"
    runs_once: ClassVar[bool] = True
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a model without a closed form."""
        spheres_model(model)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        classifier = spheres_model(model.model)
        (inner, outer), points = classifier.radii, flatten(batch.images)
        used, unused, u, v = split_used(points, classifier.unused_dimensions)
        moved = torch.cat([used, unused * ((outer**2 - u**2).clamp_min(0).sqrt() / v)], 1)
        possible = on_sphere(points, inner) & (v[:, 0] > 0)
        return torch.where(possible[:, None], moved, points).reshape(batch.images.shape)
