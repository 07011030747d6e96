"""What a measurement is asked, and by whom it is carried out."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.catalogue.load import LoadedModel, load_dataset, load_model
from robustbench_inv.catalogue.references import import_object
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadCatalogue
from robustbench_inv.results.measurement import Measured
from robustbench_inv.training.objectives import TrainingData

__all__ = ["Asked", "carry_out", "samples_of"]


@dataclass(frozen=True)
class Asked:
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

    def place(self, name: str) -> str:
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


def carry_out(by: str, asked: Asked, parameters: Mapping[str, Any]) -> Measured:
    """Return what a function measures.

    Args:
        by: ``module:function``.
        asked: its first argument.
        parameters: its keywords.

    Raises:
        BadCatalogue: if there is no such function, or it does not have these parameters.
    """
    found = import_object(by)
    if not callable(found):
        raise BadCatalogue(f"{by} measures nothing", got=type(found).__name__)
    try:
        inspect.signature(found).bind(asked, **parameters)
    except TypeError as error:
        raise BadCatalogue(f"{by} cannot be asked so", remedy=str(error)) from error
    measured = found(asked, **parameters)
    assert isinstance(measured, Measured)
    return measured


def samples_of(dataset: Dataset, ids: Tensor) -> TrainingData:
    """Return samples of a data set in float32, by their ids (n,)."""
    images, labels = dataset.batch(ids)
    return TrainingData(ids, images.float(), labels)
