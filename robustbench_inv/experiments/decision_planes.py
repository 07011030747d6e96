"""Predictions of logits and nuisance classifier on planes through the spheres: Figure 3 of Excessive invariance."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from robustbench_inv.experiments.outer_sphere import ScoreFunction, metamer_numbers
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.protocol import Classifier, require_split_code, swap_nuisance
from robustbench_inv.results.experiment_result import ExperimentResult, MeasuredNumber
from robustbench_inv.tensors import blocks, norm
from robustbench_inv.training.nuisance_probe import NuisanceProbe, encode_nuisance, probe_nuisance

__all__ = [
    "decision_plane",
    "decision_planes",
    "measure_planes",
]


SPHERE_MARGIN, METAMER_MARGIN = 1.2, 1.1
"""Half-width of a plane, in radii of the outer sphere, or in norms of a metamer that lies further out."""

CIRCLE_POINTS = 3600
"""Points of a circle on which accuracy is measured, a tenth of a degree apart."""

BLOCK_POINTS = 10_000
"""Points that are classified at a time."""


@torch.no_grad()
def decision_planes(
    model: Classifier,
    nuisance: ScoreFunction,
    spheres: Spheres,
    ids: tuple[int, int] = (0, 1),
    resolution: int = 241,
) -> list[dict[str, object]]:
    """Return the plane of two data points, and the plane of the first and its metamer with the second's nuisances.

    If the metamer lies outside the second plane, a wider version of that plane is returned as well.

    Args:
        model: a model with semantic and nuisance variables.
        nuisance: maps nuisances z_n (n, d − C) to scores.
        spheres: the data set.
        ids: ids of two points, in the paper an inner and an outer one.
        resolution: grid points along each axis.

    Returns:
        One mapping of plain values per plane: its ``name`` and what ``decision_plane`` returns.

    Raises:
        BadModel: for a model without nuisance variables.

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
    planes = [("data", data, extent), ("metamer", pair, extent)]
    planes += [("metamer, wide", pair, furthest)] if furthest > extent else []
    return [
        {"name": name, **decision_plane(points_by_name, classifiers, spheres, (width, resolution))}
        for name, points_by_name, width in planes
    ]


def decision_plane(
    points_by_name: Mapping[str, Tensor],
    classifiers: Mapping[str, ScoreFunction],
    spheres: Spheres,
    view: tuple[float, int],
) -> dict[str, object]:
    """Return the predictions on the plane through two points (d,) and the origin; the first point is on its x axis.

    Args:
        points_by_name: the two points, by name.
        classifiers: score functions, by name.
        spheres: the data set, whose spheres are circles in the plane.
        view: half-width of the plane, and number of grid points along each axis.

    Returns:
        ``points``: the two points as [x, y]. ``extent``: the grid covers −extent to extent along both axes.
        ``decisions``: by classifier, the rows of the grid from the lowest y, each a string with one digit per point.
        ``right``: by classifier, its accuracy on the inner and on the outer circle.
    """
    points = torch.stack([*points_by_name.values()])
    axes = _plane_axes(points.double())
    extent, resolution = view
    steps = torch.linspace(-extent, extent, resolution, dtype=axes.dtype)
    grid = torch.cartesian_prod(steps, steps).flip(1)  # x runs fastest
    predicted = {
        name: _predict_points(f, (grid @ axes).to(points)) for name, f in classifiers.items()
    }
    return {
        "points": dict(zip(points_by_name, (points.double() @ axes.T).tolist(), strict=True)),
        "extent": extent,
        "decisions": {name: _grid_rows(found, resolution) for name, found in predicted.items()},
        "right": {
            name: _circle_accuracy(f, axes, spheres, points) for name, f in classifiers.items()
        },
    }


def _plane_axes(points: Tensor) -> Tensor:
    """Return orthonormal axes (2, d) of two points: only the x coordinate of the second point may be negative."""
    axes: Tensor = torch.linalg.qr(points.T)[0].T
    return axes * (axes * points).sum(1, keepdim=True).sign()


def _predict_points(scores: ScoreFunction, points: Tensor) -> Tensor:
    return torch.cat([scores(block).argmax(1) for block in blocks(points, BLOCK_POINTS)])


def _grid_rows(predicted: Tensor, resolution: int) -> list[str]:
    return ["".join(map(str, row)) for row in predicted.reshape(-1, resolution).tolist()]


def _circle_accuracy(
    scores: ScoreFunction, axes: Tensor, spheres: Spheres, like: Tensor
) -> list[float]:
    angles = torch.arange(CIRCLE_POINTS, dtype=axes.dtype) * (2 * math.pi / CIRCLE_POINTS)
    circle = torch.stack([angles.cos(), angles.sin()], 1) @ axes
    return [
        (_predict_points(scores, (radius * circle).to(like)) == label).double().mean().item()
        for label, radius in enumerate((spheres.r1, spheres.r2))
    ]


def measure_planes(
    request: ExperimentRequest,
    train: str,
    probe: Mapping[str, Any],
    ids: Sequence[int] = (0, 1),
    resolution: int = 241,
) -> ExperimentResult:
    """Return the planes of one network, and the accuracies of logits and nuisance classifier.

    Args:
        request: one model with nuisance variables, and held-out spheres.
        train: spheres for training the nuisance classifier; as many points as the request selects, or all.
        probe: fields of ``ProbeConfig``.
        ids: ids of the two points that span the first plane.
        resolution: grid points along each axis.

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
        *metamer_numbers(column, model.classifier, held_out, found.classifier),
        *_circle_numbers(column, drawn),
    )
    digests = {model.name: model.digest}
    return ExperimentResult(held_out.name, len(data.test.ids), digests, numbers, planes=planes)


def _circle_numbers(column: str, planes: Iterable[Mapping[str, Any]]) -> Iterator[MeasuredNumber]:
    """Yield the correctly classified parts of both circles of the plane through a point and its metamer."""
    for plane in planes:
        if plane["name"] == "metamer":
            for classifier, parts in plane["right"].items():
                for circle, part in zip(("inner", "outer"), parts, strict=True):
                    row = f"Part of the {circle} circle classified correctly, {classifier}"
                    yield MeasuredNumber(row, column, part)


def _accuracy_numbers(
    column: str, model: LoadedModel, data: TrainTestSplit, probe: NuisanceProbe
) -> Iterator[MeasuredNumber]:
    for name, part in (("Held-out", data.test), ("Training", data.train)):
        correct = predict(model.classifier, part.images, part.ids) == part.labels
        yield MeasuredNumber.of(f"{name} accuracy, logits", column, correct.numpy())
    for name, wrong, trials in (
        ("Held-out", probe.errors, probe.trials),
        ("Training", probe.train_errors, probe.train_trials),
    ):
        yield MeasuredNumber(
            f"{name} accuracy, nuisance classifier", column, 1 - wrong / trials, trials
        )
