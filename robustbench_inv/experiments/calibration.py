"""Fits the rejection thresholds of a model on its training inputs, before any attack."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.catalogue.models import LoadedModel, calibration_digest
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.evaluation.compatibility import check_fits
from robustbench_inv.evaluation.judge import Judge
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.models.protocol import Classifier, device_of
from robustbench_inv.models.reject_option import ScoreQuantiles, fit_quantiles
from robustbench_inv.randomness import seeded_generators
from robustbench_inv.tensors import Output, is_out_of_memory
from robustbench_inv.torch_state import kept_modules, stated_torch

__all__ = ["CalibrationData", "calibrate", "check_calibrated", "collect_outputs"]


BATCH = 500


@dataclass(frozen=True)
class CalibrationData:
    """Training inputs of a model.

    Args:
        dataset: the training data.
        first: id of the first training sample.
        last: end of the id range (exclusive).
    """

    dataset: Dataset
    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= len(self.dataset):
            raise BadParameter(
                "training ids out of range",
                got=f"{self.first}:{self.last}",
                expected=f"FIRST < END inside 0:{len(self.dataset)}",
            )


def calibrate(model: LoadedModel, inputs: CalibrationData) -> ScoreQuantiles:
    """Return the quantiles of a model's scores over its correctly classified training inputs.

    A stochastic model uses one draw of its noise per input, as in an evaluation. Inputs on which the model fails or
    whose score is not a number are left out; ``facts["invalid"]`` is their number, if there are any.

    Args:
        model: the model without reject option.
        inputs: its training inputs.

    Raises:
        BadModel: if too few inputs of a class are classified correctly.
    """
    dataset, ids = inputs.dataset, range(inputs.first, inputs.last)
    roots = [model.classifier] if model.is_foreign else []
    with stated_torch(), seeded_generators(0, []), kept_modules(roots):
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


def check_calibrated(model: LoadedModel, dataset: Dataset) -> None:
    """Check that thresholds of a model can be fitted on a data set.

    Raises:
        BadModel: for a model that has thresholds already.
        CapabilityMismatch: for a data set that the model cannot classify.
    """
    if "rejection" in model.card:
        raise BadModel(
            f"{model.name} has a reject option already",
            got="reject",
            expected="the model without it",
            remedy="remove reject, percentile and thresholds from its name",
        )
    check_fits(model, dataset)


def collect_outputs(
    classifier: Classifier, dataset: Dataset, ids: Sequence[int]
) -> tuple[Output, Tensor]:
    """Return a model's outputs as in an evaluation, in float64 on the CPU, and the labels.

    Inputs are halved if memory is short. The logits of an input on which the model raises are NaN.

    Args:
        classifier: a model without reject option.
        dataset: the data set.
        ids: (n,) ids of the inputs.

    Returns:
        Output with logits (n, classes), and the score (n,) if the model returns one; labels (n,).
    """
    loader, judge = (
        Loader(dataset, device_of(classifier), classifier.dtype),
        Judge(classifier, dataset, 0),
    )
    outputs, labels, size, start = [], [], BATCH, 0
    while start < len(ids):
        batch = loader.batch(ids[start : start + size])
        try:
            outputs.append(judge.predict(batch.images, batch.ids))
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            size = len(batch) // 2
            continue
        labels.append(batch.labels.cpu())
        start += len(batch)
    scores = [output.score.double().cpu() for output in outputs if output.score is not None]
    logits = torch.cat([output.logits.double().cpu() for output in outputs])
    return Output(logits, torch.cat(scores) if scores else None), torch.cat(labels)
