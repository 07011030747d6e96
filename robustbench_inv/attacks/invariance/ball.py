"""Norm-bounded invariance attack on any classifier: move toward an aligned image of another class while the prediction stays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from robustbench_inv.attacks.invariance.donors import required_pool
from robustbench_inv.attacks.parameters import check_least
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import flatten, norm, where_rows
from robustbench_inv.threat.budgets import LpBall, project_perturbations
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Alignment", "InvarianceBall", "closest_of"]


ALIGNED_AT_ONCE = 8
"""Samples that are aligned at once; 30 MB of rotated images with the default parameters."""


@dataclass(frozen=True)
class Alignment:
    """Rotations and shifts of donors, which do not change their class.

    All shifts of a sample's donors are compared by one matrix product: the product of a shifted donor with an image
    equals that of the donor with the image shifted back. Norms follow from sums of squares over windows.

    Args:
        shift: maximal shift in pixels in each direction, >= 0.
        angle: maximal rotation in degrees to either side, >= 0.
        angles: number of angles from −angle to angle, >= 1; an odd number includes 0.
        neighbours: number of donors of each other class, the closest before alignment, >= 1.

    References:
        Tramèr et al., Fundamental tradeoffs between invariance and sensitivity to adversarial perturbations, ICML
        2020, section 4 (alignment by spatial transformations); the comparison by products is ours.
    """

    shift: int = 3
    angle: float = 30.0
    angles: int = 13
    neighbours: int = 10

    def __post_init__(self) -> None:
        check_least(self, shift=0, angle=0, angles=1, neighbours=1)

    def targets(self, batch: Batch, low: float) -> tuple[Tensor, Tensor]:
        """Return the closest aligned donor of each other class, and its l2 distance.

        Args:
            batch: n samples with their pool; inputs that are not images (c, h, w) are neither rotated nor shifted.
            low: smallest value of an element, which fills the borders of shifted images.

        Returns:
            (n, classes, …) targets and (n, classes) distances, infinite for the sample's own class and for classes
            that are not in the pool.
        """
        donors = _as_images(required_pool(batch).images) - low
        spatial = batch.images.ndim == 4
        turned = self._turned(donors) if spatial else donors[:, None]
        max_shift = min(self.shift, *donors.shape[2:]) if spatial else 0
        rows = torch.arange(len(batch), device=donors.device).split(ALIGNED_AT_ONCE)  # type: ignore[no-untyped-call]
        parts = [
            _align(
                _as_images(batch.images[few]) - low, turned, self._nearest(batch[few]), max_shift
            )
            for few in rows
        ]
        found, distances = (torch.cat(each) for each in zip(*parts, strict=True))
        return (found + low).reshape(*distances.shape, *batch.images.shape[1:]), distances

    def _nearest(self, batch: Batch) -> Tensor:
        """Return (n, classes, neighbours) positions of the closest donors in the pool, −1 where there are fewer."""
        pool = required_pool(batch)
        distances = torch.cdist(flatten(batch.images), flatten(pool.images))
        distances = distances.masked_fill(pool.labels == batch.labels[:, None], float("inf"))
        kinds = (
            torch.arange(int(pool.labels.max()) + 1, device=distances.device)[:, None]
            == pool.labels
        )
        of_class = distances[:, None].masked_fill(~kinds, float("inf"))
        few = of_class.topk(min(self.neighbours, len(pool.labels)), largest=False)
        return few.indices.where(few.values.isfinite(), -1)

    def _turned(self, donors: Tensor) -> Tensor:
        """Return (m, angles, c, h, w): every donor rotated about its centre.

        The grid's coordinates run from −1 to 1 along either side, so both sines are scaled by the ratio of the sides.
        """
        angle = torch.linspace(-self.angle, self.angle, self.angles)
        radians = (angle if self.angles > 1 else 0 * angle).to(donors) * (torch.pi / 180)
        cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
        m, size = len(donors), donors.shape[1:]
        ratio = size[1] / size[2]
        matrices = torch.stack([cos, -sin * ratio, zero, sin / ratio, cos, zero], 1)
        flat = donors.reshape(1, -1, *size[1:]).expand(self.angles, -1, -1, -1)
        grid = F.affine_grid(matrices.reshape(-1, 2, 3), list(flat.shape), align_corners=False)
        turned = F.grid_sample(flat, grid, align_corners=False)
        return turned.reshape(self.angles, m, *size).transpose(0, 1)


def _as_images(images: Tensor) -> Tensor:
    """Return (n, c, h, w); inputs that are not images become one row."""
    return images if images.ndim == 4 else flatten(images)[:, None, None]


def _align(
    images: Tensor, turned: Tensor, nearest: Tensor, max_shift: int
) -> tuple[Tensor, Tensor]:
    """Return the closest rotated and shifted donor of each class, (b, classes, c, h, w), and its distance."""
    b, classes, k = nearest.shape
    donors = turned[nearest.clamp_min(0)].flatten(2, 3)
    squares = _squared_distances(images, donors.flatten(1, 2), max_shift).reshape(b, classes, k, -1)
    squares = squares.masked_fill((nearest < 0)[..., None], float("inf")).flatten(2)
    least, place = squares.min(2)
    which, shift = place // (2 * max_shift + 1) ** 2, place % (2 * max_shift + 1) ** 2
    picked = donors.flatten(0, 1)[torch.arange(b * classes, device=place.device), which.flatten()]
    shifted = _shifted(picked, shift.flatten(), max_shift)
    return shifted.reshape(b, classes, *images.shape[1:]), least.clamp_min(0).sqrt()


def _squared_distances(images: Tensor, donors: Tensor, max_shift: int) -> Tensor:
    """Return (b, donors, shifts): squared l2 distances between images and their donors under all shifts."""
    back = _windows(images, max_shift).flatten(1, 2).flatten(2)
    inside = _windows(torch.ones_like(images[:1]), max_shift).flatten(1, 2).flatten(2)[0]
    flat = donors.flatten(2)
    products, lengths = flat @ back.transpose(1, 2), flat.square() @ inside.T
    return flatten(images).square().sum(1)[:, None, None] + lengths - 2 * products


def _shifted(images: Tensor, shift: Tensor, max_shift: int) -> Tensor:
    """Return each image under its shift, a number from 0 to (2 s + 1)² − 1, row by row from (−s, −s), s = max_shift."""
    last, side = 2 * max_shift, 2 * max_shift + 1
    rows = torch.arange(len(images), device=images.device)
    return _windows(images, max_shift)[rows, last - shift // side, last - shift % side]


def _windows(images: Tensor, max_shift: int) -> Tensor:
    """Return (n, side, side, c, h, w): window (u, v) is the image shifted by (max_shift − u, max_shift − v)."""
    h, w = images.shape[2:]
    windows: Tensor = F.pad(images, [max_shift] * 4).unfold(2, h, 1).unfold(3, w, 1)
    return windows.permute(0, 2, 3, 1, 4, 5)


def closest_of(aligned: Tensor, distances: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the closest aligned donors (n, …), the first of another class each, and their classes (n,).

    Args:
        aligned: (n, classes, …) as ``Alignment.targets`` returns them.
        distances: (n, classes).
        count: number of donors; fewer where there are fewer classes. A sample without one has class −1.
    """
    classes = max(1, int(distances.isfinite().sum(1).max()))
    # stable: which of equal distances comes first must not depend on the number of classes in the batch
    near, order = (each[:, : min(count, classes)] for each in distances.sort(stable=True))
    rows = torch.arange(len(distances), device=distances.device)
    for far, each in zip(near.unbind(1), order.unbind(1), strict=True):
        yield aligned[rows, each], each.where(far.isfinite(), -1)


@dataclass(frozen=True)
class InvarianceBall:
    """Moves x toward an aligned image of another class, as far as the budget allows and the prediction stays.

    The targets are the closest aligned images of the other classes, those first that the budget brings x closest to. The
    first target toward which x can move to the end of the budget with its prediction is used. If there is none, a
    bisection moves x toward the first target, along the projections onto growing balls, as far as the prediction
    stays. Without a budget x becomes the target itself. The oracle decides whether the class changed.

    Args:
        shift: maximal shift of a donor in pixels in each direction, >= 0.
        angle: maximal rotation of a donor in degrees, >= 0.
        angles: number of rotation angles, >= 1.
        neighbours: number of donors of each other class that are aligned, >= 1.
        targets: number of target classes tried, >= 1.
        halvings: steps of the bisection, >= 0.

    References:
        Tramèr, Behrmann, Carlini, Papernot and Jacobsen, Fundamental tradeoffs between invariance and sensitivity
        to adversarial perturbations, ICML 2020, section 4. Their attack queries no model; keeping the prediction is
        our addition.
    """

    shift: int = 3
    angle: float = 30.0
    angles: int = 13
    neighbours: int = 10
    targets: int = 3
    halvings: int = 8

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset({"l0", "l2", "linf"})

    def __post_init__(self) -> None:
        check_least(self, targets=1, halvings=0)
        self._alignment  # noqa: B018 - checks its parameters

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        return next(self.proposals(model, batch, threat, rng))

    @torch.no_grad()
    def _moved(
        self, model: Queries, batch: Batch, threat: ThreatModel, found: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return the attack's result (n, …) with targets and distances of ``Alignment.targets``."""
        paths, possible = self._ranked(batch, threat, found)
        model.report_failure((~possible).nonzero()[:, 0], "no_start")
        decisions = model(batch.images).decision
        results, rows = batch.images.clone(), possible.nonzero()[:, 0]
        for path in paths:
            if not len(rows):
                break
            end = path[rows].at(1.0)
            kept = model(end, rows).predicts(decisions[rows])
            results[rows[kept]] = end[kept]
            rows = rows[~kept]
        results[rows] = self._furthest(model, paths[0][rows], decisions[rows], rows)
        return results.clamp(*model.bounds)

    def proposals(
        self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG
    ) -> Iterator[Tensor]:
        """Yield the attack's result (n, …), and the targets themselves, whatever the budget."""
        found = self._alignment.targets(batch, model.bounds[0])
        yield self._moved(model, batch, threat, found)
        for images, classes in closest_of(*found, self.targets):
            yield where_rows(classes >= 0, images, batch.images)

    @property
    def _alignment(self) -> Alignment:
        return Alignment(self.shift, self.angle, self.angles, self.neighbours)

    def _ranked(
        self, batch: Batch, threat: ThreatModel, found: tuple[Tensor, Tensor]
    ) -> tuple[list["_Path"], Tensor]:
        """Return paths to the targets, ordered by their final distance to the target, and (n,) whether there is one."""
        aligned, distances = found
        n, classes = distances.shape
        everyone = torch.arange(n, device=distances.device)
        ends = [_Path(batch.images, aligned[:, k], threat).at(1.0) for k in range(classes)]
        gaps = [norm(end - aligned[:, k], "l2") for k, end in enumerate(ends)]
        # among targets inside the budget the closest comes first
        order = torch.stack(gaps, 1) + 1e-3 * distances
        first = order.topk(min(self.targets, classes), largest=False)
        count = max(1, int(first.values.isfinite().any(0).sum()))
        ranks = first.indices.where(first.values.isfinite(), first.indices[:, :1])[:, :count]
        paths = [_Path(batch.images, aligned[everyone, each], threat) for each in ranks.unbind(1)]
        return paths, distances.isfinite().any(1)

    def _furthest(self, model: Queries, path: "_Path", decisions: Tensor, rows: Tensor) -> Tensor:
        """Return the last point on each path with the initial prediction, up to the bisection's resolution."""
        results, kept_share = path.clean, torch.zeros_like(norm(path.clean, "l2"))
        for halving in range(self.halvings if len(rows) else 0):
            share = kept_share + 0.5 ** (halving + 1)
            moved = path.at(share)
            kept = model(moved, rows).predicts(decisions)
            results, kept_share = where_rows(kept, moved, results), share.where(kept, kept_share)
        return results


@dataclass(frozen=True)
class _Path:
    """Paths from inputs to the projections of targets, along projections onto growing balls.

    Args:
        clean: (n, …) the starts.
        targets: (n, …) the ends without a budget.
        threat: its budget bounds the paths.
    """

    clean: Tensor
    targets: Tensor
    threat: ThreatModel

    def __getitem__(self, rows: Tensor) -> "_Path":
        return _Path(self.clean[rows], self.targets[rows], self.threat)

    def at(self, share: Tensor | float) -> Tensor:
        """Return the points (n, …) at a share of the path, one number or (n,) numbers from 0 to 1."""
        delta, budget = self.targets - self.clean, self.threat.budget
        whole = norm(delta, self.threat.norm)
        if isinstance(budget, LpBall):
            whole = torch.full_like(whole, budget.eps)
        return self.clean + project_perturbations(delta, share * whole, self.threat.norm)
