"""Decisions of logits and nuisance classifier on planes through the adversarial spheres: Figure 3 of Excessive invariance."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.data.spheres import Spheres
from robustbench_inv.errors import BadParameter
from robustbench_inv.experiments.error_rates import (
    TrainTestSplit,
    parse_probe_config,
    predict,
    train_test_split,
)
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.protocol import Classifier, require_split_code, swap_nuisance
from robustbench_inv.results.experiment_result import ExperimentResult, MeasuredNumber
from robustbench_inv.tensors import blocks, norm
from robustbench_inv.training.nuisance_probe import NuisanceProbe, encode_nuisance, probe_nuisance

__all__ = [
    "ScoreFunction",
    "decision_plane",
    "decision_planes",
    "measure_planes",
    "project_to_outer_sphere",
]


ScoreFunction = Callable[[Tensor], Tensor]
"""Maps points or nuisances (n, …) to scores (n, classes)."""

SPHERE_MARGIN, METAMER_MARGIN = 1.2, 1.1
"""How far a plane is looked at, in radii of the outer sphere, and in distances of a metamer beyond that."""

CIRCLE_POINTS = 3600
"""Points on which a circle is judged, a tenth of a degree apart."""

BLOCK_POINTS = 10_000
"""Points that are decided at a time."""


@torch.no_grad()
def decision_planes(
    model: Classifier,
    nuisance: ScoreFunction,
    spheres: Spheres,
    ids: tuple[int, int] = (0, 1),
    resolution: int = 241,
) -> list[dict[str, object]]:
    """Return the plane of two data points, and that of the first and its metamer with the second's nuisances.

    The latter is looked at twice if the metamer lies further out than the first look reaches: around the spheres,
    where the true classes are known, and as far as the metamer.

    Args:
        model: its logits decide, its code is split.
        nuisance: scores of nuisances z_n (n, d − C).
        spheres: where the points are from.
        ids: of two points, in the paper an inner and an outer one.
        resolution: points of the grid along each axis.

    Returns:
        One mapping of plain values for each look: its ``name`` and what ``decision_plane`` returns.

    Raises:
        BadModel: for a model whose code has no two parts.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, figure 3.
    """
    network = require_split_code(model)
    x, y = spheres.batch(list(ids))[0].to(model.dtype)
    metamer = swap_nuisance(network, x[None], y[None])[0]
    classifiers: dict[str, ScoreFunction] = {
        "logits": lambda points: model(points).logits,
        "nuisances": lambda points: nuisance(encode_nuisance(network, points)),
    }
    extent, furthest = SPHERE_MARGIN * spheres.r2, METAMER_MARGIN * norm(metamer[None], "l2").item()
    data, pair = {"x₁": x, "x₂": y}, {"x": x, "x_met": metamer}
    looks = [("data", data, extent), ("metamer", pair, extent)]
    looks += [("metamer from afar", pair, furthest)] if furthest > extent else []
    return [
        {"name": name, **decision_plane(points_by_name, classifiers, spheres, (reach, resolution))}
        for name, points_by_name, reach in looks
    ]


def project_to_outer_sphere(model: Classifier, spheres: Spheres, pairs: int) -> Tensor:
    """Return points (pairs, d) of the outer sphere in the directions of metamers with logits of inner points.

    Logits are those of the first inner points, nuisances those of as many outer points. A metamer need not lie
    on a sphere itself; brought onto the outer one it has a true class, which the decision can be held against.

    Raises:
        BadModel: for a model whose code has no two parts.
    """
    inner, outer = ((spheres.labels == label).nonzero()[:pairs, 0] for label in (0, 1))
    sources, donors = (spheres.batch(ids)[0].to(model.dtype) for ids in (inner, outer))
    metamers = swap_nuisance(require_split_code(model), sources, donors)
    return metamers * (spheres.r2 / norm(metamers, "l2"))[:, None]


def decision_plane(
    points_by_name: Mapping[str, Tensor],
    classifiers: Mapping[str, ScoreFunction],
    spheres: Spheres,
    view: tuple[float, int],
) -> dict[str, object]:
    """Return the decisions on the plane that two points (d,) span with the origin; the first is on its x axis.

    Args:
        points_by_name: the points, by name.
        classifiers: classifiers, by name.
        spheres: which are circles in the plane.
        view: how far to look in each direction, and at how many points of each axis.

    Returns:
        ``points``: the marked ones as [x, y]. ``extent``: the grid reaches from −extent to extent both ways.
        ``decisions``: by decider, the grid's rows from the lowest y on, each a string with a digit for each
        point. ``right``: by decider, which share of the inner and of the outer circle it judges rightly.
    """
    points = torch.stack([*points_by_name.values()])
    axes = _plane_axes(points.double())
    extent, resolution = view
    steps = torch.linspace(-extent, extent, resolution, dtype=axes.dtype)
    grid = torch.cartesian_prod(steps, steps).flip(1)  # x runs fastest
    decided = {
        name: _predict_points(f, (grid @ axes).to(points)) for name, f in classifiers.items()
    }
    return {
        "points": dict(zip(points_by_name, (points.double() @ axes.T).tolist(), strict=True)),
        "extent": extent,
        "decisions": {name: _grid_rows(found, resolution) for name, found in decided.items()},
        "right": {
            name: _circle_accuracy(f, axes, spheres, points) for name, f in classifiers.items()
        },
    }


def _plane_axes(points: Tensor) -> Tensor:
    """Gram and Schmidt's axes (2, d) of two points: both have no negative coordinate but the second's x."""
    axes: Tensor = torch.linalg.qr(points.T)[0].T
    return axes * (axes * points).sum(1, keepdim=True).sign()


def _predict_points(scores: ScoreFunction, points: Tensor) -> Tensor:
    return torch.cat([scores(block).argmax(1) for block in blocks(points, BLOCK_POINTS)])


def _grid_rows(decided: Tensor, resolution: int) -> list[str]:
    return ["".join(map(str, row)) for row in decided.reshape(-1, resolution).tolist()]


def _circle_accuracy(
    scores: ScoreFunction, axes: Tensor, spheres: Spheres, like: Tensor
) -> list[float]:
    angles = torch.arange(CIRCLE_POINTS, dtype=axes.dtype) * (2 * math.pi / CIRCLE_POINTS)
    circle = torch.stack([angles.cos(), angles.sin()], 1) @ axes
    return [
        (_predict_points(scores, (radius * circle).to(like)) == label).double().mean().item()
        for label, radius in enumerate((spheres.r1, spheres.r2))
    ]


METAMER_PAIRS = 1000
"""Inner points that are moved, each with the nuisances of an outer one."""


def measure_planes(
    request: ExperimentRequest,
    train: str,
    probe: Mapping[str, Any],
    ids: Sequence[int] = (0, 1),
    resolution: int = 241,
) -> ExperimentResult:
    """Return the planes of one network, and how often logits and nuisance classifier are right.

    Args:
        request: one model whose code is split, and held-out spheres.
        train: spheres for training the nuisance classifier; as many points as are asked for, or all.
        probe: fields of ``Probing``.
        ids: of the two points that span the first plane.
        resolution: of the planes, in points.

    Raises:
        BadParameter: for other data than spheres.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, figure 3 and appendix B.1.
    """
    held_out, source = request.open_dataset(), request.open_dataset(train)
    if not isinstance(held_out, Spheres):
        raise BadParameter("planes need spheres", got=held_out.name, expected="spheres:…")
    data = train_test_split(request, held_out, source, range(len(source)))
    ((column, model),) = request.open_models().items()
    _, plan = parse_probe_config(probe, request.seed)
    request.report(f"nuisance classifier: {plan.epochs} epochs on {len(data.train.ids):,} points")
    found = probe_nuisance(model.classifier, data.train, data.test, plan)
    drawn = decision_planes(
        model.classifier, found.classifier, held_out, (ids[0], ids[1]), resolution
    )
    planes = {
        "dataset": held_out.name,
        "model": model.name,
        "radii": [held_out.r1, held_out.r2],
        "planes": drawn,
    }
    numbers = (
        *_accuracy_numbers(column, model, data, found),
        *_outer_sphere_numbers(column, model, held_out, found),
    )
    digests = {model.name: model.digest}
    return ExperimentResult(held_out.name, len(data.test.ids), digests, numbers, planes=planes)


def _accuracy_numbers(
    column: str, model: LoadedModel, data: TrainTestSplit, probe: NuisanceProbe
) -> Iterator[MeasuredNumber]:
    for name, part in (("Held-out", data.test), ("Training", data.train)):
        right = predict(model.classifier, part.images, part.ids) == part.labels
        yield MeasuredNumber.of(f"{name} accuracy, logits", column, right.numpy())
    for name, wrong, trials in (
        ("Held-out", probe.errors, probe.trials),
        ("Training", probe.train_errors, probe.train_trials),
    ):
        yield MeasuredNumber(
            f"{name} accuracy, nuisance classifier", column, 1 - wrong / trials, trials
        )


@torch.no_grad()
def _outer_sphere_numbers(
    column: str, model: LoadedModel, spheres: Spheres, probe: NuisanceProbe
) -> Iterator[MeasuredNumber]:
    """Yield the accuracies on the outer sphere in the directions of metamers with the logits of inner points."""
    points = project_to_outer_sphere(model.classifier, spheres, METAMER_PAIRS)
    scores = {
        "logits": model.classifier(points).logits,
        "nuisance classifier": probe.classifier(encode_nuisance(model.classifier, points)),
    }
    for name, found in scores.items():
        row = f"Accuracy on metamers brought onto the outer sphere, {name}"
        yield MeasuredNumber.of(row, column, (found.argmax(1) == 1).numpy())
