"""LocalSearch: a greedy search for the few pixels that count, by scores alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.losses import check_losses, losses_for
from robustbench_inv.attacks.parameters import check_least
from robustbench_inv.attacks.protocol import Batch, Kind, Loss, Queries
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import where_rows
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["LocalSearch"]

MAX_IMAGES_PER_QUERY = 2048
"""Images that the model is asked about at once: a round asks about up to 128 for each sample."""


@dataclass(frozen=True)
class LocalSearch:
    """Tries a change of single pixels, keeps the changes that help most, and goes on around these.

    Values are counted from the middle of the box, in widths of it: −½ to ½. A candidate pixel v is tried at
    p·sign(v); the t best become r·v. Both are wrapped into the box, as the paper's CYCLIC does with the second
    alone: what would lie beyond one end enters at the other, so that no question leaves the model's bounds and a
    pixel of exactly 0 or 1, as most of a digit's, is tried at another value. A pixel in the very middle stays.

    Besides the paper: a question that is answered by a success ends the search, and instead of the true class's
    probability its log-odds are compared, which are in the same order and differ where probabilities are all 1.

    Args:
        probe: p, > 0. With r / 2 a pixel at an end of the box is tried at what it would become.
        factor: r, 0 to 2.
        half_side: d, half the side of the squares around changed pixels in which the next round looks, >= 0.
        pixels: t, changed in each round, >= 1.
        rounds: R, >= 1.
        candidates: pixels tried in each round at most, drawn at random from those that may be, >= 1.
        initial_share: share of all pixels that the first round may try, 0 to 1.
        loss: what tells which change is best; one of ``losses.LOSSES``.

    References:
        Narodytska and Kasiviswanathan, Simple black-box adversarial perturbations for deep networks, 2016
        (arXiv 1612.06299), algorithms 1 and 2 with k = 1.
    """

    probe: float = 0.75
    factor: float = 1.5
    half_side: int = 5
    pixels: int = 5
    rounds: int = 150
    candidates: int = 128
    initial_share: float = 0.1
    loss: str = "log-odds"

    kind: ClassVar[Kind] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset({"l0"})

    def __post_init__(self) -> None:
        check_losses(self.loss, most=1)
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
            single = search.changed(images, pixels.gather(1, hits.argmax(1, keepdim=True)))
            images = where_rows(hits.amax(1) > 0, single, written)
            left = ~(search.nearest.update(images, model(images, rows), rows) > 0)
            left |= not model.success_is_final
            rows, images, allowed = rows[left], images[left], search.around(chosen)[left]
            if not len(rows):
                break
        return search.nearest.images


class _Search:
    """What the rounds of n samples share: the grid of pixels, the loss, the nearest successes.

    Args:
        model: answers.
        batch: the samples.
        threat: says what a success is.
        settings: of the attack.
    """

    def __init__(
        self, model: Queries, batch: Batch, threat: ThreatModel, settings: LocalSearch
    ) -> None:
        self.model, self.batch, self.settings = model, batch, settings
        self.nearest = ClosestAdversarial(batch, threat)
        self.loss: Loss = losses_for(settings.loss, threat.goal)[0]
        # an input without channels or without height is a picture with one of them
        shape = (1, 1, *batch.images.shape[1:])[-3:]
        self.channels, self.height, self.width = shape

    @property
    def count(self) -> int:
        """Number of pixels."""
        return int(self.height * self.width)

    def first(self, rng: SampleRNG) -> Tensor:
        """Return which pixels the first round may try, (n, count): a share of them at random."""
        keys = rng.named("seeds").uniform((self.count,))
        some = keys.topk(max(1, round(self.settings.initial_share * self.count))).indices
        return torch.zeros_like(keys, dtype=torch.bool).scatter(1, some, value=True)

    def draw(self, allowed: Tensor, rng: SampleRNG, step: int) -> Tensor:
        """Return the pixels that a round tries, (m, q), of those allowed, (m, count); −1 for none."""
        keys = rng.uniform((self.count,), step=step).where(allowed, -1.0)
        most = min(self.settings.candidates, self.count)
        found = keys.topk(most)
        return found.indices.where(found.values > 0, -1)

    def try_each(self, images: Tensor, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss with each pixel (m, q) changed alone, and the goal's margin; −inf where there is none."""
        scores = torch.full_like(pixels, -torch.inf, dtype=torch.float64)
        hits = scores.clone()
        for places in torch.split((pixels >= 0).nonzero(), MAX_IMAGES_PER_QUERY):
            sample, column = places.T
            shown = self.changed(images[sample], pixels[sample, column][:, None])
            output = self.model(shown, rows[sample])
            labels = self.batch.labels[rows[sample]]
            scores[sample, column] = self.loss(output, labels).double()
            goal = self.nearest.threat.goal
            hits[sample, column] = goal.margin(output, labels).double()
        return scores, hits

    def changed(self, images: Tensor, pixels: Tensor) -> Tensor:
        """Return images (m, …) with some pixels (m, k) as they are tried."""
        return self._replaced(images, pixels, lambda v: self.settings.probe * v.sign())

    def write(self, images: Tensor, pixels: Tensor) -> Tensor:
        """Return images (m, …) with some pixels (m, k) changed for good."""
        return self._replaced(images, pixels, lambda v: self.settings.factor * v)

    def around(self, pixels: Tensor) -> Tensor:
        """Return which pixels lie in the squares around some (m, k), (m, count)."""
        marks = torch.zeros(len(pixels), self.count + 1, device=pixels.device)
        marks.scatter_(1, pixels.where(pixels >= 0, self.count), 1.0)
        grid = marks[:, :-1].reshape(-1, 1, self.height, self.width)
        half_side = self.settings.half_side
        return max_pool2d(grid, 2 * half_side + 1, 1, half_side).flatten(1) > 0

    def _replaced(
        self, images: Tensor, pixels: Tensor, change: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return images with the values v of some pixels, centred, changed and wrapped into the box."""
        low, high = self.model.bounds
        flat = images.reshape(len(images), self.channels, self.count)
        flat = torch.cat([flat, flat[:, :, :1]], 2)  # a place to write what stands for no pixel
        places = pixels.where(pixels >= 0, self.count)[:, None].expand(-1, self.channels, -1)
        new = _wrap_around(change((flat.gather(2, places) - low) / (high - low) - 0.5))
        new = (low + (high - low) * (new + 0.5)).clamp(low, high)
        return flat.scatter(2, places, new)[:, :, :-1].reshape(images.shape)


def _wrap_around(values: Tensor) -> Tensor:
    """Return values from −½ to ½: what lies beyond one end enters at the other."""
    above, below = (values - 0.5).clamp_min(0).ceil(), (-0.5 - values).clamp_min(0).ceil()
    return values - above + below
