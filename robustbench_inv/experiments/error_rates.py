"""Error rates of logits and nuisance classifiers (Excessive invariance, Table 2), and accuracies after the shift of a planted feature (thesis, Remark 6.12)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.catalogue.fields import check_fields, explain_mismatch
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.data.planted import PlantedFeatures
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import balanced_subset
from robustbench_inv.errors import BadCatalogue, BadParameter
from robustbench_inv.experiments.protocol import ExperimentRequest, load_samples
from robustbench_inv.models.protocol import Classifier, SplitsCode, classify, device_of
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.experiment_result import ExperimentResult, ImageGrid, MeasuredNumber
from robustbench_inv.results.pixels import to_pixels
from robustbench_inv.tensors import blocks
from robustbench_inv.training.nuisance_probe import ProbeConfig, probe_nuisance
from robustbench_inv.training.objectives import TrainingData

__all__ = [
    "TrainTestSplit",
    "measure_errors",
    "measure_feature_shift",
    "parse_probe_config",
    "predict",
    "probe_errors",
    "train_test_split",
]


BLOCK = 500
"""Samples that are classified at a time."""


@dataclass(frozen=True)
class TrainTestSplit:
    """Samples for training nuisance classifiers, and held-out samples."""

    train: TrainingData
    test: TrainingData


def measure_errors(
    request: ExperimentRequest,
    train: str = "mnist:split=train",
    first: int = 6_000,
    last: int = 60_000,
    probes: Sequence[Mapping[str, Any]] = (),
) -> ExperimentResult:
    """Return train and test error of each model's logits and nuisance classifiers.

    Args:
        request: any models, and the held-out data. Models without nuisance variables have no nuisance classifier.
        train: data for training the nuisance classifiers.
        first: id of the first training sample.
        last: end of the id range (exclusive); the training set has as many samples as the request selects.
        probes: for each nuisance classifier fields of ``ProbeConfig``, and ``name`` for its rows.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, table 2.
    """
    held_out = request.open_dataset()
    data = train_test_split(request, held_out, request.open_dataset(train), range(first, last))
    models, numbers = request.open_models(), list[MeasuredNumber]()
    for column, model in models.items():
        for name, part in (("Test", data.test), ("Train", data.train)):
            wrong = predict(model.classifier, part.images, part.ids) != part.labels
            numbers.append(MeasuredNumber.of(f"{name} error, logits", column, wrong.numpy()))
        numbers += probe_errors(request, column, model, data, probes)
    digests = {model.name: model.digest for model in models.values()}
    return ExperimentResult(held_out.name, len(data.test.ids), digests, tuple(numbers))


def train_test_split(
    request: ExperimentRequest, held_out: Dataset, train: Dataset, allowed: range
) -> TrainTestSplit:
    """Return the selected held-out samples, and as many training samples; all of both if the request selects all.

    Args:
        request: selects the samples.
        held_out: data for the test.
        train: data for training.
        allowed: ids of the samples that may be used for training.
    """
    ids = torch.tensor(allowed)
    if request.samples is not None:
        ids = balanced_subset(train.labels, ids, len(request.draw(held_out)))
    return TrainTestSplit(load_samples(train, ids), load_samples(held_out, request.draw(held_out)))


@torch.no_grad()
def predict(model: Classifier, images: Tensor, ids: Tensor) -> Tensor:
    """Return the predicted classes (n,) of images (n, …) with sample ids (n,), on the CPU."""
    device, predicted = device_of(model), []
    for rows in blocks(torch.arange(len(ids)), BLOCK):
        rng = SampleRNG(0, ids[rows].to(device), "measured")
        predicted.append(classify(model, images[rows].to(device, model.dtype), rng).decision.cpu())
    return torch.cat(predicted)


def probe_errors(
    request: ExperimentRequest,
    column: str,
    model: LoadedModel,
    data: TrainTestSplit,
    probes: Sequence[Mapping[str, Any]],
) -> Iterator[MeasuredNumber]:
    """Yield held-out and training error of each nuisance classifier; nothing for a model without nuisances.

    Raises:
        BadCatalogue: for a probe with unknown fields.
    """
    if not isinstance(model.classifier, SplitsCode):
        return
    for fields in probes:
        name, plan = parse_probe_config(fields, request.seed)
        request.report(f"{column}: {name}, {plan.epochs} epochs on {len(data.train.ids):,} samples")
        report = partial(_report_epoch, request, f"{column}: {name}")
        found = probe_nuisance(model.classifier, data.train, data.test, plan, report=report)
        yield MeasuredNumber(
            f"Test error, {name}", column, found.errors / found.trials, found.trials
        )
        share = found.train_errors / found.train_trials
        yield MeasuredNumber(f"Train error, {name}", column, share, found.train_trials)


def parse_probe_config(fields: Mapping[str, Any], seed: int) -> tuple[str, ProbeConfig]:
    """Return name and training settings of a nuisance classifier.

    Raises:
        BadCatalogue: for an unknown field.
    """
    values = {"seed": seed, **fields}
    name = str(values.pop("name", "nuisance"))
    with explain_mismatch(BadCatalogue, f"probe {name}"):
        return name, ProbeConfig(**check_fields(ProbeConfig, values))


def _report_epoch(request: ExperimentRequest, what: str, epoch: int, error: float) -> None:
    if epoch % 10 == 0:
        request.report(f"{what}: epoch {epoch}, error {error:.2%} in training")


GRID_COLUMNS = 10
"""Columns of the image grid."""

WITH_FEATURE, RANDOM_FEATURE, NO_FEATURE = (
    "with the feature",
    "with the feature of a random class",
    "without a feature",
)


def measure_feature_shift(
    request: ExperimentRequest,
    train: str,
    first: int = 6_000,
    last: int = 60_000,
    probes: Sequence[Mapping[str, Any]] = (),
) -> ExperimentResult:
    """Return each model's accuracy on the same digits with the feature, with a random class's feature, and without.

    Args:
        request: any models, and held-out digits with a planted feature.
        train: digits with a planted feature, for training nuisance classifiers.
        first: id of the first training sample.
        last: end of the id range (exclusive).
        probes: as for ``measure_errors``.

    Raises:
        BadParameter: for data without a planted feature.

    References:
        Behrmann, thesis, remark 6.12.
    """
    dataset = request.open_dataset()
    if not isinstance(dataset, PlantedFeatures):
        expected = "mnist-planted:…"
        problem = "the data set has no planted feature"
        raise BadParameter(problem, got=dataset.name, expected=expected)
    data = train_test_split(request, dataset, request.open_dataset(train), range(first, last))
    models, numbers = request.open_models(), list[MeasuredNumber]()
    for column, model in models.items():
        request.report(f"{model.name}: {len(data.test.ids):,} digits")
        numbers += _shift_accuracies(column, model, dataset, data.test.ids)
        numbers += probe_errors(request, column, model, data, probes)
    digests = {model.name: model.digest for model in models.values()}
    image_grids = (_feature_grid(dataset, data.test.ids),)
    return ExperimentResult(dataset.name, len(data.test.ids), digests, tuple(numbers), image_grids)


def _image_versions(dataset: PlantedFeatures, ids: Tensor) -> dict[str, Tensor]:
    planted, plain = dataset.batch(ids)[0], dataset.base.batch(ids)[0]
    return {WITH_FEATURE: planted, RANDOM_FEATURE: dataset.counterparts(ids), NO_FEATURE: plain}


def _shift_accuracies(
    column: str, model: LoadedModel, dataset: PlantedFeatures, ids: Tensor
) -> Iterator[MeasuredNumber]:
    labels = dataset.labels[ids]
    for name, images in _image_versions(dataset, ids).items():
        correct = predict(model.classifier, images, ids) == labels
        yield MeasuredNumber.of(f"Accuracy {name}", column, correct.numpy())


def _feature_grid(dataset: PlantedFeatures, ids: Tensor) -> ImageGrid:
    few = balanced_subset(dataset.labels, ids, GRID_COLUMNS)
    versions = _image_versions(dataset, few)
    return ImageGrid(
        name="planted",
        title="The planted feature",
        caption="The same digits with the feature of their class, as in training, with the feature of a random class, and without.",
        rows=tuple(versions),
        groups=((dataset.name, len(few)),),
        images=np.stack(
            [to_pixels(images.numpy(), dataset.bounds) for images in versions.values()]
        ),
    )
