"""ROC/LDA, ResidualNet and IsotopeNet on synthetic tissue spectra, and attacks on the three (thesis, Figure 7.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_inv.catalogue.cards import SuiteEntry
from robustbench_inv.catalogue.references import import_object
from robustbench_inv.data.isotopes import IsotopePatterns
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadCatalogue
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.jobs import EvaluationRequest, build_jobs
from robustbench_inv.evaluation.plan import plan_jobs
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.experiments.protocol import ExperimentRequest, load_samples
from robustbench_inv.models.spectra import Discriminant
from robustbench_inv.results.experiment_result import ExperimentResult, MeasuredNumber
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.training.loop import EpochMetrics, TrainingOptions, train
from robustbench_inv.training.objectives import TrainingData
from robustbench_inv.training.recipe import Recipe, find_recipe, read_recipe

__all__ = [
    "FEATURES",
    "TissueTask",
    "balanced_accuracy",
    "discriminants",
    "measure_tissue_methods",
    "train_network",
]

FEATURES = (5, 10, 20, 40, 60, 80, 100)
"""Numbers K of bins that ROC/LDA chooses, from 5 to 100 as in the thesis."""

WORST, BEST, GENERATOR = "ROC/LDA, worst K", "ROC/LDA, best K", "generator"
"""Columns of the linear method, and of the likelihood ratio with the true peptides (``IsotopePatterns.classify``)."""

DEVIATION = ", deviation of the trainings"
TEST_SIZE = 1_000


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the mean of the accuracies on each class, of classes (n,).

    References:
        Behrmann, thesis, section 7.4.1.

    Example:
        >>> balanced_accuracy(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
        0.5
    """
    return fmean(float((predicted[labels == k] == k).double().mean()) for k in set(labels.tolist()))


def discriminants(train: TrainingData) -> dict[int, Discriminant]:
    """Return ROC/LDA by the number of chosen bins."""
    bins = train.images.shape[1]
    return {k: Discriminant(bins, k).fit(train.images, train.labels).eval() for k in FEATURES}


def train_network(
    recipe: Recipe, data: TrainingData, options: TrainingOptions | None = None
) -> nn.Module:
    """Train the network of a recipe on some samples, and return it in evaluation mode; nothing is stored."""
    torch.manual_seed(recipe.seed)
    paths = recipe.model_path, recipe.objective_path
    build, objective = (cast("Any", import_object(path)) for path in paths)
    model = build(**recipe.model_parameters)
    with TemporaryDirectory() as folder:
        loss = objective(**recipe.objective_parameters)
        return train(recipe, model, loss, data, Path(folder), options)


@dataclass(frozen=True)
class TissueTask:
    """Synthetic spectra of one difficulty.

    Args:
        row: its name in the table.
        parameters: of ``IsotopePatterns``, as in a reference.
        train: training spectra.
        test: other spectra of the same peptides.
        dataset: the test spectra.
    """

    row: str
    parameters: str
    train: TrainingData
    test: TrainingData
    dataset: IsotopePatterns

    @classmethod
    def open(
        cls, request: ExperimentRequest, row: str, parameters: str, train_size: int
    ) -> "TissueTask":
        """Generate the spectra."""

        def generate(split: str, size: int) -> tuple[Dataset, TrainingData]:
            dataset = request.open_dataset(f"isotopes:{parameters},split={split},size={size}")
            return dataset, load_samples(dataset, torch.arange(size))

        size = request.samples if isinstance(request.samples, int) else TEST_SIZE
        (_, train_data), (dataset, test) = generate("train", train_size), generate("test", size)
        assert isinstance(dataset, IsotopePatterns)
        return cls(row, parameters, train_data, test, dataset)

    def accuracy(self, model: nn.Module) -> float:
        """Return the balanced accuracy of a model on the test spectra."""
        with torch.no_grad():
            parts = torch.split(self.test.images, 250)
            predicted = torch.cat([model(part).argmax(1) for part in parts])
        return balanced_accuracy(predicted, self.test.labels)

    def number(self, column: str, value: float, what: str = "") -> MeasuredNumber:
        """Return an accuracy of this task's row, or an amount of its row of another quantity."""
        return MeasuredNumber(f"{self.row}{what}", column, value, 0 if what else len(self.test.ids))

    def train_recipe(
        self, name: str, seed: int, options: TrainingOptions | None = None
    ) -> nn.Module:
        """Train the network of a recipe on the training spectra of this task."""
        recipe = read_recipe(find_recipe(name))
        size = {"bins": self.dataset.bins}
        return train_network(
            replace(
                recipe,
                seed=seed,
                last=len(self.train.ids),
                model_parameters={**recipe.model_parameters, **size},
            ),
            self.train,
            options,
        )

    def attack(self, model: nn.Module, attack: str, threat: str, samples: int) -> list[Record]:
        """Attack a model in a cell of its own, and return the records of a balanced subset."""
        request = EvaluationRequest(
            [model], runs=[SuiteEntry(attack, threat)], dataset=self.dataset, samples=samples
        )
        (job,) = plan_jobs(build_jobs(request)).jobs
        with TemporaryDirectory() as folder:
            path = Path(folder) / job.spec.digest
            run_cell(job, path, RunOptions())
            return list(CellFolder(path).records())


def measure_tissue_methods(  # noqa: PLR0913, PLR0917 - the parameters of the definition
    request: ExperimentRequest,
    tasks: Mapping[str, str],
    networks: Mapping[str, str],
    train_size: int = 2_000,
    runs: int = 2,
    attacks: Mapping[str, Sequence[str]] | None = None,
    attacked: int = 40,
) -> ExperimentResult:
    """Return the balanced accuracy of ROC/LDA and of trained networks on synthetic spectra, and attack them.

    Args:
        request: its seed is that of the first training, its number of samples that of the test spectra.
        tasks: parameters of the spectra by row, such as ``shift=3,noise=0.1``.
        networks: recipe by column, trained on the spectra of each task.
        train_size: number of training spectra.
        runs: trainings of each network, with different seeds. The table has their mean and deviation.
        attacks: attack and threat by name; they attack the first network of each column on the last task.
        attacked: number of attacked spectra.

    References:
        Behrmann, thesis, figure 7.5.
    """
    numbers, models, task = list[MeasuredNumber](), dict[str, nn.Module](), None
    for row, parameters in tasks.items():
        task = TissueTask.open(request, row, parameters, train_size)
        request.report(f"{row}: {parameters}")
        linear = discriminants(task.train)
        scores = {count: task.accuracy(model) for count, model in linear.items()}
        best = max(scores, key=lambda count: scores[count])
        numbers += [task.number(WORST, min(scores.values())), task.number(BEST, scores[best])]
        models = {BEST: linear[best]}
        for column, name in networks.items():
            options = TrainingOptions(report=partial(_report_epoch, request, f"{row}, {column}"))
            trained = [task.train_recipe(name, request.seed + i, options) for i in range(runs)]
            found = [task.accuracy(model) for model in trained]
            numbers.append(task.number(column, fmean(found)))
            if runs > 1:
                numbers.append(task.number(column, stdev(found), DEVIATION))
            models[column] = trained[0]
        known = balanced_accuracy(task.dataset.classify(task.test.images), task.test.labels)
        numbers.append(task.number(GENERATOR, known))
    if task is None:
        raise BadCatalogue("no tasks", expected="parameters of spectra by row")
    for name, (attack, threat) in (attacks or {}).items():
        for column, model in models.items():
            request.report(f"{name} on {column}")
            records = task.attack(model, attack, threat, attacked)
            robust = np.array([record.broken_at is None for record in records])
            numbers.append(MeasuredNumber.of(name, column, robust))
    return ExperimentResult("isotopes", len(task.test.ids), {}, tuple(numbers))


def _report_epoch(request: ExperimentRequest, what: str, metrics: EpochMetrics) -> None:
    request.report(
        f"{what}: epoch {metrics.epoch} of {metrics.epochs}, accuracy {metrics.accuracy:.1%} in training"
    )
