"""Semantic alignment: images of other classes, turned and shifted until they lie as near to an image as they can."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from robustbench_inv.attacks.invariance.donors import pool_of
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.errors import BadParameter
from robustbench_inv.tensors import flatten

__all__ = ["Alignment"]

CHUNK = 8
"""Samples that are aligned at once: 30 MB of turned images at the defaults."""


@dataclass(frozen=True)
class Alignment:
    """The small changes of a donor that leave its class alone, and how many donors are tried.

    All shifts of a sample's donors are compared by one matrix product: a shifted donor's product with an image
    is the donor's with the image shifted back, and its length follows from sums over windows of its squares.

    Args:
        shift: most pixels in each direction, >= 0.
        angle: most degrees to either side, >= 0.
        angles: how many angles from −angle to angle, >= 1; an odd number holds 0.
        neighbours: donors of each other class, the nearest as they are, >= 1.

    References:
        Tramèr et al., Fundamental tradeoffs between invariance and sensitivity to adversarial perturbations, ICML
        2020, section 4 (alignment by spatial transformations); the comparison by products is ours.
    """

    shift: int = 3
    angle: float = 30.0
    angles: int = 13
    neighbours: int = 10

    def __post_init__(self) -> None:
        least = {"shift": 0, "angle": 0, "angles": 1, "neighbours": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise BadParameter(
                    f"unusable {name} of an alignment",
                    got=getattr(self, name),
                    expected=f">= {bound}",
                )

    def targets(self, batch: Batch, low: float) -> tuple[Tensor, Tensor]:
        """Return of each other class the nearest aligned donor, and how far it is in l2.

        Args:
            batch: n samples with their pool; of inputs that are no images (c, h, w) nothing is turned or shifted.
            low: what is shifted in: the least value of an element.

        Returns:
            (n, classes, …) targets and (n, classes) distances, infinite where there is none: for the class of the
            sample itself, and classes that the pool does not have.
        """
        donors = _as_maps(pool_of(batch).images) - low
        spatial = batch.images.ndim == 4
        turned = self._turned(donors) if spatial else donors[:, None]
        reach = min(self.shift, *donors.shape[2:]) if spatial else 0
        rows = torch.arange(len(batch), device=donors.device).split(CHUNK)  # type: ignore[no-untyped-call]
        parts = [
            _align(_as_maps(batch.images[few]) - low, turned, self._nearest(batch[few]), reach)
            for few in rows
        ]
        found, far = (torch.cat(each) for each in zip(*parts, strict=True))
        return (found + low).reshape(*far.shape, *batch.images.shape[1:]), far

    def _nearest(self, batch: Batch) -> Tensor:
        """Return (n, classes, neighbours) positions in the pool, −1 where there is no further donor."""
        pool = pool_of(batch)
        far = torch.cdist(flatten(batch.images), flatten(pool.images))
        far = far.masked_fill(pool.labels == batch.labels[:, None], float("inf"))
        kinds = torch.arange(int(pool.labels.max()) + 1, device=far.device)[:, None] == pool.labels
        of_class = far[:, None].masked_fill(~kinds, float("inf"))
        few = of_class.topk(min(self.neighbours, len(pool.labels)), largest=False)
        return few.indices.where(few.values.isfinite(), -1)

    def _turned(self, donors: Tensor) -> Tensor:
        """Return (m, angles, c, h, w): every donor turned about its centre."""
        angle = torch.linspace(-self.angle, self.angle, self.angles)
        radians = (angle if self.angles > 1 else 0 * angle).to(donors) * (torch.pi / 180)
        cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
        matrices = torch.stack([cos, -sin, zero, sin, cos, zero], 1).reshape(-1, 2, 3)
        m, size = len(donors), donors.shape[1:]
        flat = donors.reshape(1, -1, *size[1:]).expand(self.angles, -1, -1, -1)
        grid = F.affine_grid(matrices, list(flat.shape), align_corners=False)
        turned = F.grid_sample(flat, grid, align_corners=False)
        return turned.reshape(self.angles, m, *size).transpose(0, 1)


def _as_maps(images: Tensor) -> Tensor:
    """Return (n, c, h, w); what is no image becomes one row."""
    return images if images.ndim == 4 else flatten(images)[:, None, None]


def _align(images: Tensor, turned: Tensor, nearest: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Return the nearest turned and shifted donor of each class, (b, classes, c, h, w), and its distance."""
    b, classes, k = nearest.shape
    donors = turned[nearest.clamp_min(0)].flatten(2, 3)
    squares = _distances(images, donors.flatten(1, 2), reach).reshape(b, classes, k, -1)
    squares = squares.masked_fill((nearest < 0)[..., None], float("inf")).flatten(2)
    least, place = squares.min(2)
    which, shift = place // (2 * reach + 1) ** 2, place % (2 * reach + 1) ** 2
    picked = donors.flatten(0, 1)[torch.arange(b * classes, device=place.device), which.flatten()]
    shifted = _shifted(picked, shift.flatten(), reach)
    return shifted.reshape(b, classes, *images.shape[1:]), least.clamp_min(0).sqrt()


def _distances(images: Tensor, donors: Tensor, reach: int) -> Tensor:
    """Return (b, donors, shifts): squared l2 distances of images from their donors, each shifted everywhere."""
    back = _windows(images, reach).flatten(1, 2).flatten(2)
    seen = _windows(torch.ones_like(images[:1]), reach).flatten(1, 2).flatten(2)[0]
    flat = donors.flatten(2)
    products, lengths = flat @ back.transpose(1, 2), flat.square() @ seen.T
    return flatten(images).square().sum(1)[:, None, None] + lengths - 2 * products


def _shifted(images: Tensor, shift: Tensor, reach: int) -> Tensor:
    """Return each image shifted by its own of the (2 reach + 1)² shifts, numbered row by row from (−reach, −reach)."""
    last, side = 2 * reach, 2 * reach + 1
    rows = torch.arange(len(images), device=images.device)
    return _windows(images, reach)[rows, last - shift // side, last - shift % side]


def _windows(images: Tensor, reach: int) -> Tensor:
    """Return (n, side, side, c, h, w): window (u, v) of an image is the image shifted by (reach − u, reach − v)."""
    h, w = images.shape[2:]
    windows: Tensor = F.pad(images, [reach] * 4).unfold(2, h, 1).unfold(3, w, 1)
    return windows.permute(0, 2, 3, 1, 4, 5)
