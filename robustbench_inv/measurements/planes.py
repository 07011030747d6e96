"""Who decides what on planes through adversarial spheres: Figure 3 of Excessive invariance."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from robustbench_inv.catalogue.load import LoadedModel
from robustbench_inv.data.spheres import Spheres
from robustbench_inv.errors import BadParameter
from robustbench_inv.measurements.errors import Split, decide, probing, split_of
from robustbench_inv.measurements.protocol import Asked
from robustbench_inv.results.measurement import Measured, Number
from robustbench_inv.training.decision_planes import moved_outwards, planes_of
from robustbench_inv.training.nuisance import NuisanceProbe, nuisance_of, probe_nuisance

__all__ = ["measure_planes"]

PAIRS = 1000
"""Inner points that are moved, each with the nuisances of an outer one."""


def measure_planes(
    asked: Asked,
    train: str,
    probe: Mapping[str, Any],
    ids: Sequence[int] = (0, 1),
    resolution: int = 241,
) -> Measured:
    """Return the planes of one network, and how often logits and nuisance classifier are right.

    Args:
        asked: one model whose code is split, and held-out spheres.
        train: spheres for training the nuisance classifier; as many points as are asked for, or all.
        probe: fields of ``Probing``.
        ids: of the two points that span the first plane.
        resolution: of the planes, in points.

    Raises:
        BadParameter: for other data than spheres.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, figure 3 and appendix B.1.
    """
    held_out, source = asked.open_dataset(), asked.open_dataset(train)
    if not isinstance(held_out, Spheres):
        raise BadParameter("planes need spheres", got=held_out.name, expected="spheres:…")
    data = split_of(asked, held_out, source, range(len(source)))
    ((column, model),) = asked.open_models().items()
    _, plan = probing(probe, asked.seed)
    asked.report(f"nuisance classifier: {plan.epochs} epochs on {len(data.train.ids):,} points")
    found = probe_nuisance(model.classifier, data.train, data.test, plan)
    drawn = planes_of(model.classifier, found.classifier, held_out, (ids[0], ids[1]), resolution)
    planes = {
        "dataset": held_out.name,
        "model": model.name,
        "radii": [held_out.r1, held_out.r2],
        "planes": drawn,
    }
    numbers = (
        *_numbers(column, model, data, found),
        *_outwards(column, model, held_out, found),
    )
    digests = {model.name: model.digest}
    return Measured(held_out.name, len(data.test.ids), digests, numbers, planes=planes)


def _numbers(
    column: str, model: LoadedModel, data: Split, probe: NuisanceProbe
) -> Iterator[Number]:
    for name, part in (("Held-out", data.test), ("Training", data.train)):
        right = decide(model.classifier, part.images, part.ids) == part.labels
        yield Number.of(f"{name} accuracy, logits", column, right.numpy())
    for name, wrong, trials in (
        ("Held-out", probe.errors, probe.trials),
        ("Training", probe.train_errors, probe.train_trials),
    ):
        yield Number(f"{name} accuracy, nuisance classifier", column, 1 - wrong / trials, trials)


@torch.no_grad()
def _outwards(
    column: str, model: LoadedModel, spheres: Spheres, probe: NuisanceProbe
) -> Iterator[Number]:
    """Yield the accuracies on the outer sphere in the directions of metamers with the logits of inner points."""
    points = moved_outwards(model.classifier, spheres, PAIRS)
    scores = {
        "logits": model.classifier(points).logits,
        "nuisance classifier": probe.classifier(nuisance_of(model.classifier, points)),
    }
    for name, found in scores.items():
        row = f"Accuracy on metamers brought onto the outer sphere, {name}"
        yield Number.of(row, column, (found.argmax(1) == 1).numpy())
