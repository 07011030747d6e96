"""Experiments by name, and the request that every experiment takes as argument."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.catalogue.datasets import load_dataset, split_missing
from robustbench_inv.catalogue.locate import catalogue_roots, entries
from robustbench_inv.catalogue.models import LoadedModel, load_model
from robustbench_inv.catalogue.references import import_object
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadCatalogue, suggest
from robustbench_inv.results.experiment_result import ExperimentResult, LinePanel, MeasuredNumber
from robustbench_inv.training.objectives import TrainingData

__all__ = [
    "EXPERIMENTS",
    "ExperimentRequest",
    "counted_lines",
    "find_experiment",
    "is_untrained",
    "load_samples",
    "run_experiment",
]


EXPERIMENTS = {
    "accuracies": "robustbench_inv.experiments.selective_accuracy:measure_accuracies",
    "architectures": "robustbench_inv.experiments.linearisations:measure_architectures",
    "decision-planes": "robustbench_inv.experiments.decision_planes:measure_planes",
    "elimination-effect": "robustbench_inv.experiments.elimination_effect:measure_layers",
    "error-rates": "robustbench_inv.experiments.error_rates:measure_errors",
    "feature-shift": "robustbench_inv.experiments.error_rates:measure_feature_shift",
    "ignored-coordinate": "robustbench_inv.experiments.outer_sphere:measure_ignored_coordinate",
    "information": "robustbench_inv.experiments.information:measure_information",
    "interpolations": "robustbench_inv.experiments.interpolations:measure_interpolations",
    "logits": "robustbench_inv.experiments.logits:measure_logits",
    "isotope-bins": "robustbench_inv.experiments.preimages:measure_isotope_bins",
    "linearisations": "robustbench_inv.experiments.linearisations:measure_linearisations",
    "log-determinants": "robustbench_inv.experiments.preimages:measure_log_determinants",
    "metamers": "robustbench_inv.experiments.metamers:measure_metamers",
    "ood-detection": "robustbench_inv.experiments.ood_detection:measure_ood_detection",
    "photographs": "robustbench_inv.experiments.photographs:measure_architecture",
    "singular-values": "robustbench_inv.experiments.linearisations:measure_conditions",
    "preimages": "robustbench_inv.experiments.preimages:measure_preimages",
    "removed-vectors": "robustbench_inv.experiments.linearisations:measure_removal",
    "residual-networks": "robustbench_inv.experiments.residual_networks:measure_residual_networks",
    "score-distributions": "robustbench_inv.experiments.ood_detection:measure_score_distributions",
    "selective-accuracy": "robustbench_inv.experiments.selective_accuracy:measure_selective_accuracy",
    "planar-densities": "robustbench_inv.experiments.planar_flows:measure_densities",
    "planar-dynamics": "robustbench_inv.experiments.residual_networks:measure_dynamics",
    "invertible-properties": "robustbench_inv.experiments.planar_flows:measure_properties",
    "tissue-methods": "robustbench_inv.experiments.tissue_spectra:measure_tissue_methods",
    "seeds": "robustbench_inv.experiments.training_length:measure_seeds",
    "training-length": "robustbench_inv.experiments.training_length:measure_training_length",
    "targeted-logits": "robustbench_inv.experiments.logits:measure_targeted_logits",
}
"""Experiments by the name that a definition gives in ``by``, and their code, as ``module:function``."""


@dataclass(frozen=True)
class ExperimentRequest:
    """Models, data and run options of an experiment.

    Args:
        dataset: name of the held-out data.
        columns: model name by column of the table.
        samples: selection of samples, as for ``--samples``; None for all.
        seed: random seed.
        device: torch device of the models.
        data_root: folder of the data, if they were not fetched.
        report: callback for progress, one line per call.

    ``left_out`` collects why rows or columns are not measured, by their names.
    """

    dataset: str
    columns: Mapping[str, str]
    samples: int | str | None = None
    seed: int = 0
    device: str = "cpu"
    data_root: Path | None = None
    report: Callable[[str], object] = str
    left_out: dict[str, str] = field(default_factory=dict, init=False)
    _opened: dict[str, Dataset] = field(default_factory=dict, init=False, repr=False, compare=False)

    def available(
        self, parts: Sequence[Mapping[str, Any]], name: str, *keys: str
    ) -> list[Mapping[str, Any]]:
        """Return the rows or columns whose data sets are at hand; report the others and note them in ``left_out``.

        Args:
            parts: the rows or columns.
            name: key of their names.
            keys: keys of the names of their data sets.

        Raises:
            MissingData: if there is no such part.
        """
        found, missing = split_missing(
            parts,
            lambda part: [self.open_dataset(self.resolve_dataset(str(part[key]))) for key in keys],
        )
        for part, error in missing:
            self.left_out[str(part[name])] = str(error)
            self.report(f"{part[name]} is left out: {error}")
        return [part for part, _ in found]

    def open_dataset(self, name: str = "") -> Dataset:
        """Return a data set by name, by default the held-out data; it is opened once."""
        name = name or self.dataset
        if name not in self._opened:
            self._opened[name] = load_dataset(name, data_root=self.data_root, code=False)
        return self._opened[name]

    def resolve_dataset(self, name: str) -> str:
        """Return the requested data set if it replaces the named one, such as ``mnist5k`` for ``mnist``; else the name."""
        return self.dataset if self.dataset.startswith(name) else name

    def open_models(self) -> dict[str, LoadedModel]:
        """Return the models by column; those whose training is still to come are noted in ``left_out``."""
        opened = {}
        for column, name in self.columns.items():
            if is_untrained(name):
                self.left_out[column] = f"{name} is not trained yet"
                self.report(self.left_out[column])
            else:
                opened[column] = load_model(name, device=self.device)
        return opened

    def draw(self, dataset: Dataset) -> Tensor:
        """Return the ids (n,) of the selected samples."""
        return torch.tensor(select_samples(dataset.labels, self.samples))


def is_untrained(name: str) -> bool:
    """Return whether a model has a recipe, and no weights yet."""
    plain = name.partition(":")[0]
    recipes = (root / "models" / plain / "recipe.toml" for root in catalogue_roots())
    return plain not in entries("models") and any(recipe.is_file() for recipe in recipes)


def find_experiment(by: str) -> Callable[..., ExperimentResult]:
    """Return the function of an experiment.

    Args:
        by: a name of EXPERIMENTS, or ``module:function`` for your own code.

    Raises:
        BadCatalogue: if there is no such experiment, or the reference is no function.
    """
    if ":" not in by and by not in EXPERIMENTS:
        raise BadCatalogue("unknown experiment", got=by, remedy=suggest(by, EXPERIMENTS))
    found = import_object(EXPERIMENTS.get(by, by))
    if not callable(found):
        got = type(found).__name__
        raise BadCatalogue(f"{by} is no experiment", got=got, expected="a function")
    return found


def run_experiment(
    by: str, request: ExperimentRequest, parameters: Mapping[str, Any]
) -> ExperimentResult:
    """Run an experiment and return its result.

    Args:
        by: as ``find_experiment`` takes it.
        request: first argument of the function.
        parameters: keyword arguments of the function.

    Raises:
        BadCatalogue: if there is no such experiment, or it does not take these parameters.
    """
    experiment = find_experiment(by)
    try:
        inspect.signature(experiment).bind(request, **parameters)
    except TypeError as error:
        raise BadCatalogue(f"{by} does not take these parameters", remedy=str(error)) from error
    measured = experiment(request, **parameters)
    assert isinstance(measured, ExperimentResult)
    return replace(measured, left_out=dict(request.left_out))


def load_samples(dataset: Dataset, ids: Tensor, device: str = "cpu") -> TrainingData:
    """Return samples of a data set in float32 on a device, by their ids (n,)."""
    images, labels = dataset.batch(ids)
    return TrainingData(ids, images.float().to(device), labels.to(device))


def counted_lines(row: str, numbers: Iterable[MeasuredNumber]) -> LinePanel:
    """Return one line per column through the numbers of the rows "ROW, N …" with N on the x axis, nan left out."""
    lines: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}
    for number in numbers:
        name, _, rest = number.row.rpartition(", ")
        if name == row and not isnan(number.value):
            x, y = lines.get(number.column, ((), ()))
            lines[number.column] = ((*x, float(rest.split()[0])), (*y, number.value))
    return LinePanel(row, lines)
