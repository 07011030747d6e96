"""The request that every experiment takes as argument, and the function that runs an experiment by name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import LoadedModel, load_model
from robustbench_inv.catalogue.references import import_object
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadCatalogue
from robustbench_inv.results.experiment_result import ExperimentResult
from robustbench_inv.training.objectives import TrainingData

__all__ = ["ExperimentRequest", "load_samples", "run_experiment"]


@dataclass(frozen=True)
class ExperimentRequest:
    """What is to be measured.

    Args:
        dataset: name of the held-out data.
        columns: names of the models, by what the table calls them.
        samples: as ``--samples`` takes it; None for all.
        seed: of what is drawn.
        device: where models compute, as torch names it.
        data_root: where the data lie, if not fetched.
        report: gets one line of progress at a time.
    """

    dataset: str
    columns: Mapping[str, str]
    samples: int | str | None = None
    seed: int = 0
    device: str = "cpu"
    data_root: Path | None = None
    report: Callable[[str], object] = str

    def open_dataset(self, name: str = "") -> Dataset:
        """Return a data set; without a name the one that is asked about."""
        return load_dataset(name or self.dataset, data_root=self.data_root)

    def resolve_dataset(self, name: str) -> str:
        """Return the data set that is opened for a name: the one asked about, if it stands in for it."""
        return self.dataset if self.dataset.startswith(name) else name

    def open_models(self) -> dict[str, LoadedModel]:
        """Return the models by their columns."""
        return {
            column: load_model(name, device=self.device) for column, name in self.columns.items()
        }

    def draw(self, dataset: Dataset) -> Tensor:
        """Return the ids (n,) of the samples that are asked about."""
        return torch.tensor(select_samples(dataset.labels, self.samples))


def run_experiment(
    by: str, request: ExperimentRequest, parameters: Mapping[str, Any]
) -> ExperimentResult:
    """Return what a function measures.

    Args:
        by: ``module:function``.
        request: its first argument.
        parameters: its keywords.

    Raises:
        BadCatalogue: if there is no such function, or it does not have these parameters.
    """
    found = import_object(by)
    if not callable(found):
        raise BadCatalogue(f"{by} measures nothing", got=type(found).__name__)
    try:
        inspect.signature(found).bind(request, **parameters)
    except TypeError as error:
        raise BadCatalogue(f"{by} cannot be asked so", remedy=str(error)) from error
    measured = found(request, **parameters)
    assert isinstance(measured, ExperimentResult)
    return measured


def load_samples(dataset: Dataset, ids: Tensor) -> TrainingData:
    """Return samples of a data set in float32, by their ids (n,)."""
    images, labels = dataset.batch(ids)
    return TrainingData(ids, images.float(), labels)
