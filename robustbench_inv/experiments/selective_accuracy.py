"""Clean accuracy, parameter counts, and accuracy on accepted inputs: Tables 1 and 2 of Supervised Deep InfoMax."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustbench_inv.catalogue.models import LoadedModel, load_model
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadCatalogue, BadData
from robustbench_inv.experiments.calibration import collect_outputs
from robustbench_inv.experiments.ood_detection import threshold_margins
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.resnet import FILTERS
from robustbench_inv.models.sdim import SDIM
from robustbench_inv.results.experiment_result import ExperimentResult, MeasuredNumber
from robustbench_inv.training.infomax import LocalCritic

__all__ = ["measure_accuracies", "measure_selective_accuracy"]


MILLION = 1e6


def measure_accuracies(
    request: ExperimentRequest, rows: Sequence[Mapping[str, Any]]
) -> ExperimentResult:
    """Return parameters and clean accuracy of each model.

    Args:
        request: how many samples of each data set, and what stands in for the item's own.
        rows: for each row of the table ``row``, ``data`` (name of the data set) and ``models``: a model by its
            column; ``optional`` if the row is left out where the data set's files are not there. Parameters are those of the first row that names a column.

    References:
        Supervised Deep Infomax, table 1.
    """
    sizes, numbers, digests, places = (
        dict[str, list[MeasuredNumber]](),
        list[MeasuredNumber](),
        {},
        {},
    )
    for about, dataset in _available_rows(request, rows):
        ids = request.draw(dataset).tolist()
        places[dataset.name] = len(ids)
        for column, name in about["models"].items():
            model = load_model(name, device=request.device)
            request.report(f"{model.name}: {len(ids):,} inputs of {dataset.name}")
            output, labels = collect_outputs(model.classifier, dataset, ids)
            right = (output.decision == labels).numpy()
            numbers.append(MeasuredNumber.of(str(about["row"]), column, right))
            sizes.setdefault(column, list(_parameter_numbers(column, model)))
            digests[model.name] = model.digest
    told = [number for each in sizes.values() for number in each]
    return ExperimentResult(", ".join(places), max(places.values()), digests, (*told, *numbers))


def measure_selective_accuracy(
    request: ExperimentRequest,
    rows: Sequence[Mapping[str, Any]],
    percentiles: Mapping[str, float],
    base_column: str = "Original",
) -> ExperimentResult:
    """Return the accuracy on what a model does not reject, and how much it rejects, at some percentiles.

    Args:
        request: how many samples of each data set, and what stands in for the item's own.
        rows: for each pair of rows ``row``, ``data`` (name of the data set), ``model`` and ``score``, by which it rejects.
        percentiles: of the training inputs of each class, by column.
        base_column: the column of the model without rejection.

    References:
        Supervised Deep Infomax, section 5.1 and table 2.
    """
    numbers, digests, places = list[MeasuredNumber](), {}, {}
    for about, dataset in _available_rows(request, rows):
        model = load_model(str(about["model"]), device=request.device)
        ids = request.draw(dataset).tolist()
        places[dataset.name] = len(ids)
        request.report(f"{model.name}: {len(ids):,} inputs of {dataset.name}")
        output, labels = collect_outputs(model.classifier, dataset, ids)
        right = (output.decision == labels).numpy()
        numbers.append(MeasuredNumber.of(f"{about['row']}, accuracy", base_column, right))
        for column, percentile in percentiles.items():
            rejecting = load_model(
                str(about["model"]), reject=str(about["score"]), percentile=percentile
            )
            rejected = threshold_margins(rejecting, output, labels).rejected
            numbers += _selective_numbers(str(about["row"]), column, right, rejected)
            digests[rejecting.name] = rejecting.digest
    return ExperimentResult(", ".join(places), max(places.values()), digests, tuple(numbers))


def _parameter_numbers(column: str, model: LoadedModel) -> Iterator[MeasuredNumber]:
    """Yield the parameters of a network in millions, and those with the critic that trains it along with it."""
    if not isinstance(model.classifier, nn.Module):
        raise BadCatalogue(f"{model.name} is no network", got=type(model.classifier).__name__)
    answering = _count_parameters(model.classifier)
    judges = [m for m in model.classifier.modules() if isinstance(m, SDIM)]
    with torch.device("meta"):
        critic = sum(
            _count_parameters(LocalCritic(FILTERS[-1], sdim.dimensions)) for sdim in judges
        )
    yield MeasuredNumber("Parameters, millions", column, (answering + critic) / MILLION)
    yield MeasuredNumber("Parameters that answer, millions", column, answering / MILLION)


def _count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _selective_numbers(
    row: str, column: str, right: NDArray[np.bool_], rejected: NDArray[np.bool_]
) -> Iterator[MeasuredNumber]:
    if not rejected.all():
        yield MeasuredNumber.of(f"{row}, accuracy", column, right[~rejected])
    yield MeasuredNumber.of(f"{row}, rejected", column, rejected)


def _available_rows(
    request: ExperimentRequest, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], Dataset]]:
    """Yield rows and their data sets; an ``optional`` one whose files are not there is left out, and that is told."""
    for about in rows:
        try:
            dataset = request.open_dataset(request.resolve_dataset(str(about["data"])))
        except BadData as error:
            if not about.get("optional"):
                raise
            request.report(f"{about['row']} is left out: {error}")
            continue
        yield about, dataset
