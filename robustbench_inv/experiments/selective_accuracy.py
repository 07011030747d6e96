"""Clean accuracy, parameter counts, and accuracy on accepted inputs: Tables 1 and 2 of Supervised Deep InfoMax."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustbench_inv.catalogue.models import LoadedModel, load_model
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadCatalogue
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
    """Return number of parameters and clean accuracy of each model.

    Args:
        request: number of samples per data set, and a data set that replaces that of the definition.
        rows: for each row of the table ``row``, ``data`` (name of the data set) and ``models`` (model name by column).
            The number of parameters of a column is that of its model in the first row.

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
            correct = (output.decision == labels).numpy()
            numbers.append(MeasuredNumber.of(str(about["row"]), column, correct))
            sizes.setdefault(column, list(_parameter_numbers(column, model)))
            digests[model.name] = model.digest
    parameters = [number for each in sizes.values() for number in each]
    names, most = ", ".join(places), max(places.values())
    return ExperimentResult(names, most, digests, (*parameters, *numbers))


def measure_selective_accuracy(
    request: ExperimentRequest,
    rows: Sequence[Mapping[str, Any]],
    percentiles: Mapping[str, float],
    base_column: str = "Original",
) -> ExperimentResult:
    """Return accuracy on accepted inputs and rejection rate at several percentiles.

    Args:
        request: number of samples per data set, and a data set that replaces that of the definition.
        rows: for each pair of rows ``row``, ``data`` (name of the data set), ``model`` and ``score`` (of the reject option).
        percentiles: rejected percentage of each class's training inputs, by column.
        base_column: column of the model without reject option.

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
        correct = (output.decision == labels).numpy()
        numbers.append(MeasuredNumber.of(f"{about['row']}, accuracy", base_column, correct))
        for column, percentile in percentiles.items():
            rejecting = load_model(
                str(about["model"]), reject=str(about["score"]), percentile=percentile
            )
            rejected = threshold_margins(rejecting, output, labels).rejected
            numbers += _selective_numbers(str(about["row"]), column, correct, rejected)
            digests[rejecting.name] = rejecting.digest
    return ExperimentResult(", ".join(places), max(places.values()), digests, tuple(numbers))


def _parameter_numbers(column: str, model: LoadedModel) -> Iterator[MeasuredNumber]:
    """Yield the parameters of a network in millions, with and without the critic that is only used in training."""
    if not isinstance(model.classifier, nn.Module):
        got = type(model.classifier).__name__
        raise BadCatalogue(f"{model.name} is no network", got=got, expected="a torch.nn.Module")
    inference = _count_parameters(model.classifier)
    networks = [m for m in model.classifier.modules() if isinstance(m, SDIM)]
    with torch.device("meta"):
        critic = sum(
            _count_parameters(LocalCritic(FILTERS[-1], sdim.dimensions)) for sdim in networks
        )
    yield MeasuredNumber("Parameters, millions", column, (inference + critic) / MILLION)
    yield MeasuredNumber("Parameters at inference, millions", column, inference / MILLION)


def _count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _selective_numbers(
    row: str, column: str, correct: NDArray[np.bool_], rejected: NDArray[np.bool_]
) -> Iterator[MeasuredNumber]:
    if not rejected.all():
        yield MeasuredNumber.of(f"{row}, accuracy", column, correct[~rejected])
    yield MeasuredNumber.of(f"{row}, rejected", column, rejected)
    if not correct.all():
        yield MeasuredNumber.of(f"{row}, errors rejected", column, rejected[~correct])


def _available_rows(
    request: ExperimentRequest, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], Dataset]]:
    """Yield rows and their data sets, where these are at hand."""
    for about in request.available(rows, "row", "data"):
        yield about, request.open_dataset(request.resolve_dataset(str(about["data"])))
