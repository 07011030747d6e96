"""Points moved to the outer sphere at constant predictions: metamers of Figure 3 and Example 6 of Excessive invariance."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from scipy.special import betaincc
from torch import Tensor

from robustbench_inv.data.spheres import Spheres
from robustbench_inv.errors import BadParameter
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.protocol import Classifier, require_split_code, swap_nuisance
from robustbench_inv.models.spheres import NormThresholdClassifier
from robustbench_inv.results.experiment_result import ExperimentResult, MeasuredNumber
from robustbench_inv.tensors import blocks, norm
from robustbench_inv.training.nuisance_probe import encode_nuisance

__all__ = [
    "ScoreFunction",
    "expected_errors",
    "measure_ignored_coordinate",
    "metamer_numbers",
    "metamers_on_path",
    "raw_metamers",
]


ScoreFunction = Callable[[Tensor], Tensor]
"""Maps points or nuisances (n, …) to scores (n, classes)."""

METAMER_PAIRS = 1000
"""Number of metamers, each with the logits of an inner and the nuisances of an outer point."""

NEAR = 0.1
"""A raw metamer lies near the outer sphere if its norm differs from the radius by at most this share."""

DOUBLINGS, HALVINGS = 20, 60
"""Steps of the search along the nuisances: until the norm exceeds the radius, then until it equals it."""

BLOCK_POINTS = 10_000
"""Points that are drawn and classified at a time."""


def raw_metamers(model: Classifier, spheres: Spheres, pairs: int) -> Tensor:
    """Return metamers as decoded, (pairs, d): logits of the first inner points, nuisances of as many outer points.

    Raises:
        BadModel: for a model without nuisance variables.
    """
    sources, donors = _pairs(model, spheres, pairs)
    return swap_nuisance(require_split_code(model), sources, donors)


def metamers_on_path(model: Classifier, spheres: Spheres, pairs: int) -> tuple[Tensor, Tensor]:
    """Return points on the outer sphere with the logits of inner points, and where on their path they lie.

    The nuisances go from those of the inner point (t = 0) in the direction of those of an outer point (t = 1), while
    the logits stay. The norm is continuous in t and starts at the inner radius. We double t until the norm exceeds
    the outer radius, and bisect. No point is rescaled.

    Returns:
        Points (n, d), one for each pair whose path reaches the sphere, and their t (n,), which may exceed 1.

    Raises:
        BadModel: for a model without nuisance variables.
    """
    network = require_split_code(model)
    sources, donors = _pairs(model, spheres, pairs)
    semantic, start = network.split(network.encode(sources))
    _, end = network.split(network.encode(donors))

    def points(t: Tensor) -> Tensor:
        return network.decode(network.join(semantic, start + t[:, None] * (end - start)))

    low, high = torch.zeros_like(semantic[:, 0]), torch.ones_like(semantic[:, 0])
    for _ in range(DOUBLINGS):
        high = torch.where(norm(points(high), "l2") < spheres.r2, 2 * high, high)
    reached = norm(points(high), "l2") >= spheres.r2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        outside = norm(points(middle), "l2") >= spheres.r2
        low, high = torch.where(outside, low, middle), torch.where(outside, middle, high)
    return points(high)[reached], high[reached]


@torch.no_grad()
def metamer_numbers(
    column: str, model: Classifier, spheres: Spheres, nuisance: ScoreFunction
) -> Iterator[MeasuredNumber]:
    """Yield norms of raw metamers, and accuracies on metamers that are rescaled to the outer sphere or walked there.

    Args:
        column: column of the table.
        model: a model with semantic and nuisance variables.
        spheres: the data set.
        nuisance: maps nuisances z_n (n, d − C) to scores.
    """
    raw = raw_metamers(model, spheres, METAMER_PAIRS)
    length = norm(raw, "l2")
    for name, value in (
        ("smallest", length.min()),
        ("median", length.quantile(0.5)),
        ("largest", length.max()),
    ):
        yield MeasuredNumber(f"Norm of raw metamers, {name}", column, value.item())
    near = (length - spheres.r2).abs() <= NEAR * spheres.r2
    yield MeasuredNumber.of("Raw metamers within 10 % of R2", column, near.numpy())
    walked, position = metamers_on_path(model, spheres, METAMER_PAIRS)
    placed = {
        "projected to the outer sphere": raw * (spheres.r2 / length)[:, None],
        "where their path meets the outer sphere": walked,
    }
    for where, points in placed.items():
        scores = {
            "logits": model(points).logits,
            "nuisance classifier": nuisance(encode_nuisance(model, points)),
        }
        for name, found in scores.items():
            row = f"Accuracy on metamers {where}, {name}"
            yield MeasuredNumber.of(row, column, (found.argmax(1) == 1).numpy())
    where = "Part of the path to the raw metamer, median"
    yield MeasuredNumber(where, column, position.quantile(0.5).item())


def _pairs(model: Classifier, spheres: Spheres, pairs: int) -> tuple[Tensor, Tensor]:
    """Return the first inner points and as many outer points, (pairs, d) each."""
    inner, outer = ((spheres.labels == label).nonzero()[:pairs, 0] for label in (0, 1))
    sources, donors = (spheres.batch(ids)[0].to(model.dtype) for ids in (inner, outer))
    return sources, donors


def measure_ignored_coordinate(
    request: ExperimentRequest, column: str, points: int = 2_000_000
) -> ExperimentResult:
    """Return the accuracy of D(x) = sign(‖x_1..d−n‖ − (R1 + R2)/2) on streamed points, before and after a shift.

    After the shift, only the last n coordinates of the inner points differ: they bring each point to the outer
    sphere. The classifier of the paper ignores one coordinate (n = 1).

    Args:
        request: spheres, whose ``n`` is the number of ignored coordinates; no models.
        column: column of the table.
        points: number of points.

    Raises:
        BadParameter: for other data than spheres, or if n is 0.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, example 6 and equation 5.
    """
    opened = request.open_dataset()
    if not isinstance(opened, Spheres) or opened.n < 1:
        raise BadParameter("example 6 needs spheres", got=opened.name, expected="spheres:n=1,…")
    spheres = replace(opened, size=points)
    middle = (spheres.r1 + spheres.r2) / 2
    classifier = NormThresholdClassifier(spheres.n, middle, (spheres.r1, spheres.r2))
    correct = shifted = moved_to_outer = 0
    farthest, nearest = 0.0, spheres.r2
    for ids in blocks(torch.arange(points), BLOCK_POINTS):
        images, labels = spheres.batch(ids)
        inner = labels == 0
        score = classifier(images).logits[:, 1]
        correct += int(((score > 0) == (labels == 1)).sum())
        farthest = max(farthest, score[inner].max().item() + middle)
        nearest = min(nearest, score[~inner].min().item() + middle)
        images[inner] = _moved_to_outer(images[inner], spheres)
        moved_to_outer += int((spheres.classify(images[inner]) == 1).sum())
        shifted += int((classifier(images).logits[:, 1] > 0).sum())
        if ids[-1] % 100_000 == 99_999:
            request.report(f"{int(ids[-1]) + 1:,} of {points:,} points")
    inner_points = int((spheres.labels == 0).sum())
    numbers = (
        MeasuredNumber("Accuracy", column, correct / points, points),
        MeasuredNumber("Expected errors, closed form", column, expected_errors(spheres)),
        MeasuredNumber("Largest norm that D uses, inner sphere", column, farthest),
        MeasuredNumber("Smallest norm that D uses, outer sphere", column, nearest),
        MeasuredNumber(
            "Inner points on the outer sphere after the shift",
            column,
            moved_to_outer / inner_points,
            inner_points,
        ),
        MeasuredNumber("Accuracy after the shift", column, shifted / points, points),
    )
    return ExperimentResult(opened.name, points, {}, numbers)


def expected_errors(spheres: Spheres) -> float:
    """Return the expected number of misclassified points in closed form.

    No inner point is misclassified. On the outer sphere, the share of the squared norm in the last n coordinates has
    the distribution Beta(n/2, (d − n)/2); the point is misclassified if it exceeds 1 − (b/R2)², b = (R1 + R2)/2.
    """
    middle = (spheres.r1 + spheres.r2) / 2
    unused, used = spheres.n / 2, (spheres.d - spheres.n) / 2
    share = betaincc(unused, used, 1 - (middle / spheres.r2) ** 2)
    return float(share) * int((spheres.labels == 1).sum())


def _moved_to_outer(images: Tensor, spheres: Spheres) -> Tensor:
    """Return inner points whose last n coordinates were scaled so that they lie on the outer sphere."""
    kept, last = images[:, : -spheres.n], images[:, -spheres.n :]
    needed = (spheres.r2**2 - kept.square().sum(1)).sqrt()
    return torch.cat([kept, last * (needed / norm(last, "l2"))[:, None]], 1)
