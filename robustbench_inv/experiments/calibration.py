"""Fits the rejection thresholds of a model on its training inputs, before any attack."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.catalogue.models import LoadedModel, calibration_digest
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadParameter
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.models.protocol import Classifier, classify, device_of
from robustbench_inv.models.reject_option import ScoreQuantiles, fit_quantiles
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output

__all__ = ["CalibrationData", "calibrate", "collect_outputs"]


BATCH = 500


@dataclass(frozen=True)
class CalibrationData:
    """What a model was trained on.

    Args:
        dataset: holds them.
        first: id of the first.
        last: id after the last.
    """

    dataset: Dataset
    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= len(self.dataset):
            raise BadParameter(
                "unusable range of training inputs",
                got=f"{self.first} to {self.last}",
                expected=f"inside 0 to {len(self.dataset)}",
            )


def calibrate(model: LoadedModel, inputs: CalibrationData) -> ScoreQuantiles:
    """Return the quantiles of a model's scores over the training inputs that it gets right.

    A stochastic model answers as it does when it is judged, under one draw of its noise for each input.

    Args:
        model: as it is, without rejection.
        inputs: what it was trained on.

    Raises:
        BadModel: if it gets too few of a class right.
    """
    dataset, ids = inputs.dataset, range(inputs.first, inputs.last)
    output, labels = collect_outputs(model.classifier, dataset, ids)
    facts = {
        "model": calibration_digest(model),
        "name": model.name,
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
        "first": str(inputs.first),
        "last": str(inputs.last),
    }
    return fit_quantiles(output, labels, facts, classes=dataset.num_classes)


def collect_outputs(
    classifier: Classifier, dataset: Dataset, ids: Sequence[int]
) -> tuple[Output, Tensor]:
    """Return a model's answer to inputs as it is judged, in float64 on the CPU, and their classes.

    Args:
        classifier: one that does not reject.
        dataset: holds the inputs.
        ids: (n,) which of them.

    Returns:
        Logits (n, classes), and the score (n,) of a model that has one of its own; labels (n,).
    """
    loader = Loader(dataset, device_of(classifier), classifier.dtype)
    outputs, labels = [], []
    for start in range(0, len(ids), BATCH):
        batch = loader.batch(ids[start : start + BATCH])
        outputs.append(classify(classifier, batch.images, SampleRNG(0, batch.ids)))
        labels.append(batch.labels.cpu())
    scores = [output.score.double().cpu() for output in outputs if output.score is not None]
    logits = torch.cat([output.logits.double().cpu() for output in outputs])
    return Output(logits, torch.cat(scores) if scores else None), torch.cat(labels)
