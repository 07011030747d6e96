"""Analytic invariance attack on adversarial spheres: the class changes, the decision stays."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.attacks.spheres import on_sphere, spheres_model, split_used
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import NORMS, flatten
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["SpheresInvariance"]


@dataclass(frozen=True)
class SpheresInvariance:
    """Moves points of the inner sphere to the outer one along the coordinates that the model does not see.

    With u and v the norms of the used and the unused coordinates and R2 the outer radius, the unused ones are
    scaled to √(R2² − u²), at a distance of √(R2² − u²) − v. Points on which this is not possible stay as they
    are: those of the outer sphere, those with v = 0, and all if no dimension is unused.

    References:
        Behrmann, thesis, section 6.2.1, analytic invariance-based attack.
    """

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def demand(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Refuse a model of which the closed form is not known."""
        spheres_model(model)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        classifier = spheres_model(model.model)
        (inner, outer), points = classifier.radii, flatten(batch.images)
        used, unused, u, v = split_used(points, classifier.unused_dimensions)
        moved = torch.cat([used, unused * ((outer**2 - u**2).clamp_min(0).sqrt() / v)], 1)
        possible = on_sphere(points, inner) & (v[:, 0] > 0)
        return torch.where(possible[:, None], moved, points).reshape(batch.images.shape)
