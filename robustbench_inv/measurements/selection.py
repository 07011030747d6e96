"""What a model answers rightly, and what is left when it may reject: Tables 1 and 2 of Supervised Deep InfoMax."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustbench_inv.catalogue.load import LoadedModel, load_model
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadCatalogue, BadData
from robustbench_inv.measurements.calibration import answers
from robustbench_inv.measurements.protocol import Asked
from robustbench_inv.measurements.strangers import clearance_of
from robustbench_inv.models.resnet import FILTERS
from robustbench_inv.models.sdim import SDIM
from robustbench_inv.results.measurement import Measured, Number
from robustbench_inv.training.infomax import LocalCritic

__all__ = ["measure_accuracies", "measure_selection"]

MILLION = 1e6


def measure_accuracies(asked: Asked, rows: Sequence[Mapping[str, Any]]) -> Measured:
    """Return parameters and clean accuracy of each model.

    Args:
        asked: how many samples of each data set, and what stands in for the item's own.
        rows: for each row of the table ``row``, ``data`` (name of the data set) and ``models``: a model by its
            column; ``optional`` if the row is left out where the data set's files are not there. Parameters are those of the first row that names a column.

    References:
        Supervised Deep Infomax, table 1.
    """
    sizes, numbers, digests, places = dict[str, list[Number]](), list[Number](), {}, {}
    for about, dataset in _at_hand(asked, rows):
        ids = asked.draw(dataset).tolist()
        places[dataset.name] = len(ids)
        for column, name in about["models"].items():
            model = load_model(name, device=asked.device)
            asked.report(f"{model.name}: {len(ids):,} inputs of {dataset.name}")
            output, labels = answers(model.classifier, dataset, ids)
            right = (output.decision == labels).numpy()
            numbers.append(Number.of(str(about["row"]), column, right))
            sizes.setdefault(column, list(_sizes(column, model)))
            digests[model.name] = model.digest
    told = [number for each in sizes.values() for number in each]
    return Measured(", ".join(places), max(places.values()), digests, (*told, *numbers))


def measure_selection(
    asked: Asked,
    rows: Sequence[Mapping[str, Any]],
    percentiles: Mapping[str, float],
    plain: str = "Original",
) -> Measured:
    """Return the accuracy on what a model does not reject, and how much it rejects, at some percentiles.

    Args:
        asked: how many samples of each data set, and what stands in for the item's own.
        rows: for each pair of rows ``row``, ``data`` (name of the data set), ``model`` and ``score``, by which it rejects.
        percentiles: of the training inputs of each class, by column.
        plain: the column of the model without rejection.

    References:
        Supervised Deep Infomax, section 5.1 and table 2.
    """
    numbers, digests, places = list[Number](), {}, {}
    for about, dataset in _at_hand(asked, rows):
        model = load_model(str(about["model"]), device=asked.device)
        ids = asked.draw(dataset).tolist()
        places[dataset.name] = len(ids)
        asked.report(f"{model.name}: {len(ids):,} inputs of {dataset.name}")
        output, labels = answers(model.classifier, dataset, ids)
        right = (output.decision == labels).numpy()
        numbers.append(Number.of(f"{about['row']}, accuracy", plain, right))
        for column, percentile in percentiles.items():
            rejecting = load_model(
                str(about["model"]), reject=str(about["score"]), percentile=percentile
            )
            rejected = clearance_of(rejecting, output, labels).rejected
            numbers += _selected(str(about["row"]), column, right, rejected)
            digests[rejecting.name] = rejecting.digest
    return Measured(", ".join(places), max(places.values()), digests, tuple(numbers))


def _sizes(column: str, model: LoadedModel) -> Iterator[Number]:
    """Yield the parameters of a network in millions, and those with the critic that trains it along with it."""
    if not isinstance(model.classifier, nn.Module):
        raise BadCatalogue(f"{model.name} is no network", got=type(model.classifier).__name__)
    answering = _count(model.classifier)
    judges = [m for m in model.classifier.modules() if isinstance(m, SDIM)]
    with torch.device("meta"):
        critic = sum(_count(LocalCritic(FILTERS[-1], sdim.dimensions)) for sdim in judges)
    yield Number("Parameters, millions", column, (answering + critic) / MILLION)
    yield Number("Parameters that answer, millions", column, answering / MILLION)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _selected(
    row: str, column: str, right: NDArray[np.bool_], rejected: NDArray[np.bool_]
) -> Iterator[Number]:
    if not rejected.all():
        yield Number.of(f"{row}, accuracy", column, right[~rejected])
    yield Number.of(f"{row}, rejected", column, rejected)


def _at_hand(
    asked: Asked, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], Dataset]]:
    """Yield rows and their data sets; an ``optional`` one whose files are not there is left out, and that is told."""
    for about in rows:
        try:
            dataset = asked.open_dataset(asked.place(str(about["data"])))
        except BadData as error:
            if not about.get("optional"):
                raise
            asked.report(f"{about['row']} is left out: {error}")
            continue
        yield about, dataset
