"""Lower bounds of the class information in logits and nuisances, before and after a shift: Figure 5 of Excessive invariance."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.data.planted import PlantedFeatures
from robustbench_inv.data.sampling import balanced_subset
from robustbench_inv.errors import BadParameter
from robustbench_inv.experiments.error_rates import parse_probe_config
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.protocol import require_split_code
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.experiment_result import ExperimentResult, MeasuredNumber
from robustbench_inv.tensors import blocks
from robustbench_inv.training.loop import dequantise
from robustbench_inv.training.nuisance_probe import ProbeConfig, fit_classifier
from robustbench_inv.training.optimisation import epoch_order

__all__ = ["class_entropy", "information_bound", "measure_information"]


BLOCK = 500
"""Samples that are encoded at a time."""

CALIBRATION_PART = 10
"""One of so many training samples chooses the temperature of the variational classifier instead of training it."""

TEMPERATURES = tuple(2 ** (k / 4) for k in range(-8, 25))
"""From 1/4 to 64."""

PARTS = ("z_s", "z_n")


def class_entropy(labels: Tensor) -> float:
    """Return h(y) of the empirical distribution of labels (n,), in nats."""
    share = torch.bincount(labels).double() / len(labels)
    return float(-torch.special.xlogy(share, share).sum())


def information_bound(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], plan: ProbeConfig
) -> float:
    """Return a lower bound of I(y; z) in nats: h(y) + E log q(y|z) on the test samples, and at least 0.

    The variational density q is the softmax of a classifier that is trained on nine tenths of the training samples.
    The others choose its temperature, so that an overconfident classifier does not loosen the bound. The test samples
    are used for the expectation alone.

    Args:
        train: codes (N, k) and labels (N,).
        test: codes (M, k) and labels (M,) that were not used for training.
        plan: settings of the classifier's training.

    References:
        Barber and Agakov, 2003; Jacobsen et al., Excessive invariance, ICLR 2019, lemma 9 and equation 9.
    """
    (codes, labels), (held_out, truth) = train, test
    calibrates = epoch_order(plan.seed, 0, len(labels)) % CALIBRATION_PART == 0
    network, _ = fit_classifier([codes[~calibrates]], labels[~calibrates], plan)
    with torch.no_grad():
        calibration, logits = network(codes[calibrates]), network(held_out)
    losses = [cross_entropy(calibration / t, labels[calibrates]) for t in TEMPERATURES]
    temperature = TEMPERATURES[int(torch.stack(losses).argmin())]
    return max(0.0, class_entropy(truth) - float(cross_entropy(logits / temperature, truth)))


def measure_information(
    request: ExperimentRequest,
    train: str,
    probe: Mapping[str, Any],
    first: int = 6_000,
    last: int = 60_000,
    size: int | None = None,
) -> ExperimentResult:
    """Return bounds of I(y; z_s) and I(y; z_n) with the planted feature (D) and with that of a random class (D_Adv).

    Theorem 8 assumes I(y; z_n) = 0 before the shift, and no increase after it. Both can be read from the table.

    Args:
        request: models that split their codes, and held-out digits with a planted feature.
        train: such digits for training the variational classifiers.
        probe: fields of ``ProbeConfig``.
        first: id of the first training sample.
        last: end of the id range (exclusive).
        size: number of training samples; None for all.

    Raises:
        BadParameter: for data without a planted feature.
        BadModel: for a model without nuisance variables.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, theorem 8 and figure 5.
    """
    data, source = request.open_dataset(), request.open_dataset(train)
    if not (isinstance(data, PlantedFeatures) and isinstance(source, PlantedFeatures)):
        problem = "the data set has no planted feature"
        raise BadParameter(problem, got=f"{data.name}, {source.name}", expected="mnist-planted:…")
    _, plan = parse_probe_config(probe, request.seed)
    ids, fitted = request.draw(data), torch.arange(first, last)
    if size is not None:
        fitted = balanced_subset(source.labels, fitted, size)
    numbers, digests = list[MeasuredNumber](), {}
    entropy = class_entropy(data.labels[ids])
    for column, model in request.open_models().items():
        digests[model.name] = model.digest
        numbers.append(MeasuredNumber("h(y), in nats", column, entropy))
        for when, images_of in _VERSIONS.items():
            request.report(f"{column}: information {when}")
            codes = [
                _codes(model, images_of(part, rows), rows, plan)
                for part, rows in ((source, fitted), (data, ids))
            ]
            labels = source.labels[fitted], data.labels[ids]
            numbers += _bounds(column, when, codes, labels, plan)
    return ExperimentResult(data.name, len(ids), digests, tuple(numbers))


_VERSIONS: Mapping[str, Callable[[PlantedFeatures, Tensor], Tensor]] = {
    "before the shift": lambda data, ids: data.batch(ids)[0],
    "after the shift": lambda data, ids: data.counterparts(ids),
}
"""The images under D and under D_Adv."""


def _bounds(
    column: str,
    when: str,
    codes: list[tuple[Tensor, Tensor]],
    labels: tuple[Tensor, Tensor],
    plan: ProbeConfig,
) -> Iterator[MeasuredNumber]:
    """Yield the bound of each part of the code, and that of the network's own softmax, which may be negative."""
    for number, part in enumerate(PARTS):
        train, test = ((code[number], y) for code, y in zip(codes, labels, strict=True))
        bound = information_bound(train, test, plan)
        yield MeasuredNumber(f"I(y; {part}) {when}, in nats", column, bound)
    own = class_entropy(labels[1]) - float(cross_entropy(codes[1][0], labels[1]))
    yield MeasuredNumber(f"h(y) + E log softmax(z_s) {when}, in nats", column, own)


@torch.no_grad()
def _codes(
    model: LoadedModel, images: Tensor, ids: Tensor, plan: ProbeConfig
) -> tuple[Tensor, Tensor]:
    """Return z_s (n, C) and z_n (n, d − C) of dequantised images."""
    network, parts = require_split_code(model.classifier), list[tuple[Tensor, Tensor]]()
    for rows in blocks(torch.arange(len(ids)), BLOCK):
        block = images[rows].float()
        if plan.levels:
            block = dequantise(block, SampleRNG(plan.seed, ids[rows], "information"), plan.levels)
        parts.append(network.split(network.encode(block)))
    semantic, nuisance = zip(*parts, strict=True)
    return torch.cat(semantic), torch.cat(nuisance)
