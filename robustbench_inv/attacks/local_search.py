"""LocalSearch: a greedy search for the few most influential pixels, from scores alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.losses import losses_for
from robustbench_inv.attacks.parameters import check_least
from robustbench_inv.attacks.protocol import Batch, Kind, Loss, Queries
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import image_shape, where_rows
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["LocalSearch"]

SCORES = ("probability", "log-odds")

MAX_IMAGES_PER_QUERY = 2048
"""Maximal number of images per query; a round needs up to 128 per sample."""


@dataclass(frozen=True)
class LocalSearch:
    """Probes changes of single pixels, keeps the best ones, and continues around them.

    Pixel values are relative to the middle of the box, in widths of the box: −½ to ½. A candidate pixel v is probed
    at p·sign(v); the t best candidates become r·v. Both values are wrapped into the box, as the paper's CYCLIC does
    for r·v alone, so that no query leaves the box. A pixel at exactly the middle does not change.

    The defaults are the paper's. Two settings are stronger: a probe that reaches the goal ends the search, and the
    log-odds of the true class replace its probability; they give the same ranking and still differ where all
    probabilities are 1.

    Args:
        probe: p, > 0. 1 is the paper's: a pixel is probed at the middle of the box, by the wrapping. With r / 2 a pixel
            at a bound is probed at its changed value.
        factor: r, 0 to 2.
        half_side: d, half the side of the squares around changed pixels that the next round searches, >= 0.
        pixels: t, number of pixels changed in each round, >= 1.
        rounds: R, >= 1.
        candidates: maximal number of pixels probed in each round, drawn at random, >= 1; 128 in public implementations.
        initial_share: share of all pixels that the first round may probe, 0 to 1.
        score: ranks the changes: the true class's ``probability``, which float32 rounds to 1 from a margin of 17 nats on,
            or its ``log-odds``.
        ends_on_probe: does a probe that reaches the goal end the search?

    References:
        Narodytska and Kasiviswanathan, Simple black-box adversarial perturbations for deep networks, 2016
        (arXiv 1612.06299), algorithms 1 and 2 with k = 1.
    """

    probe: float = 1.0
    factor: float = 1.5
    half_side: int = 5
    pixels: int = 5
    rounds: int = 150
    candidates: int = 128
    initial_share: float = 0.1
    score: str = "probability"
    ends_on_probe: bool = False

    kind: ClassVar[Kind] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset({"l0"})

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise BadParameter(
                "unknown score", got=self.score, expected="one of " + ", ".join(SCORES)
            )
        check_least(self, half_side=0, pixels=1, rounds=1, candidates=1)
        for name, most in (("probe", math.inf), ("factor", 2.0), ("initial_share", 1.0)):
            value = getattr(self, name)
            if not 0 < value <= most:
                raise BadParameter(f"unusable {name}", got=value, expected=f"> 0 and <= {most:g}")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        search = _Search(model, batch, threat, self)
        images, rows = batch.images, torch.arange(len(batch), device=batch.labels.device)
        allowed = search.first(rng)
        for step in range(self.rounds):
            pixels = search.draw(allowed, rng.rows(rows), step)
            scores, hits = search.try_each(images, pixels, rows)
            chosen = pixels.gather(1, scores.topk(min(self.pixels, scores.shape[1])).indices)
            written = search.write(images, chosen)
            if self.ends_on_probe:
                single = search.changed(images, pixels.gather(1, hits.argmax(1, keepdim=True)))
                written = where_rows(hits.amax(1) > 0, single, written)
            images = written
            active = ~(search.closest.update(images, model(images, rows), rows) > 0)
            active |= not model.success_is_final
            rows, images, allowed = rows[active], images[active], search.around(chosen)[active]
            if not len(rows):
                break
        return search.closest.images


class _Search:
    """The searches of n samples: the pixel grid, the loss, the closest adversarial examples.

    Args:
        model: the queried model.
        batch: the samples.
        threat: its goal defines success.
        settings: of the attack.
    """

    def __init__(
        self, model: Queries, batch: Batch, threat: ThreatModel, settings: LocalSearch
    ) -> None:
        self.model, self.batch, self.settings = model, batch, settings
        self.closest = ClosestAdversarial(batch, threat, model)
        self.loss: Loss = losses_for("log-odds", threat.goal)[0]
        self.channels, self.height, self.width = image_shape(batch.images.shape[1:])

    @property
    def count(self) -> int:
        """Number of pixels."""
        return int(self.height * self.width)

    def first(self, rng: SampleRNG) -> Tensor:
        """Return which pixels the first round may probe, (n, count): a random share of them."""
        keys = rng.named("seeds").uniform((self.count,))
        some = keys.topk(max(1, round(self.settings.initial_share * self.count))).indices
        return torch.zeros_like(keys, dtype=torch.bool).scatter(1, some, value=True)

    def draw(self, allowed: Tensor, rng: SampleRNG, step: int) -> Tensor:
        """Return the pixels that a round probes, (m, q), from those allowed, (m, count); −1 for none."""
        keys = rng.uniform((self.count,), step=step).where(allowed, -1.0)
        most = min(self.settings.candidates, self.count)
        found = keys.topk(most)
        return found.indices.where(found.values > 0, -1)

    def try_each(self, images: Tensor, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the goal's margin with each pixel (m, q) changed alone; −inf where there is no pixel."""
        scores = torch.full_like(pixels, -torch.inf, dtype=torch.float64)
        hits = scores.clone()
        for places in torch.split((pixels >= 0).nonzero(), MAX_IMAGES_PER_QUERY):
            sample, column = places.T
            probed = self.changed(images[sample], pixels[sample, column][:, None])
            output = self.model(probed, rows[sample])
            labels = self.batch.labels[rows[sample]]
            scores[sample, column] = self.score(self.loss(output, labels))
            goal = self.closest.threat.goal
            hits[sample, column] = goal.margin(output, labels).double()
        return scores, hits

    def score(self, against: Tensor) -> Tensor:
        """Return what ranks the changes, from the log-odds against the true class (or for the target)."""
        saturates = self.settings.score == "probability"
        return (-(-against).sigmoid() if saturates else against).double()

    def changed(self, images: Tensor, pixels: Tensor) -> Tensor:
        """Return images (m, …) with the pixels (m, k) at their probed values."""
        return self._replaced(images, pixels, lambda v: self.settings.probe * v.sign())

    def write(self, images: Tensor, pixels: Tensor) -> Tensor:
        """Return images (m, …) with the pixels (m, k) at their changed values."""
        return self._replaced(images, pixels, lambda v: self.settings.factor * v)

    def around(self, pixels: Tensor) -> Tensor:
        """Return which pixels lie in the squares around the pixels (m, k), (m, count)."""
        marks = torch.zeros(len(pixels), self.count + 1, device=pixels.device)
        marks.scatter_(1, pixels.where(pixels >= 0, self.count), 1.0)
        grid = marks[:, :-1].reshape(-1, 1, self.height, self.width)
        half_side = self.settings.half_side
        return max_pool2d(grid, 2 * half_side + 1, 1, half_side).flatten(1) > 0

    def _replaced(
        self, images: Tensor, pixels: Tensor, change: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return images in which ``change`` is applied to the centred values of some pixels, wrapped into the box."""
        low, high = self.model.bounds
        flat = images.reshape(len(images), self.channels, self.count)
        flat = torch.cat([flat, flat[:, :, :1]], 2)  # a dummy pixel for the index −1
        places = pixels.where(pixels >= 0, self.count)[:, None].expand(-1, self.channels, -1)
        new = _wrap_around(change((flat.gather(2, places) - low) / (high - low) - 0.5))
        new = (low + (high - low) * (new + 0.5)).clamp(low, high)
        return flat.scatter(2, places, new)[:, :, :-1].reshape(images.shape)


def _wrap_around(values: Tensor) -> Tensor:
    """Return values wrapped into −½ to ½."""
    above, below = (values - 0.5).clamp_min(0).ceil(), (-0.5 - values).clamp_min(0).ceil()
    return values - above + below
