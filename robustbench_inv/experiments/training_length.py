"""Accuracy under FGSM and PGD after parts of a training, and of trainings that differ in their seed alone.

Does longer training saturate the outputs, so that both attacks fail? Is a difference between networks larger than that
between trainings of one network?
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_inv.attacks.budget_geometry import Ball
from robustbench_inv.catalogue.locate import entries
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.catalogue.references import parse_reference
from robustbench_inv.experiments.protocol import ExperimentRequest, counted_lines, load_samples
from robustbench_inv.identity import digest_file
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.experiment_result import ExperimentResult, LinePanels, MeasuredNumber
from robustbench_inv.tensors import per_sample_gradient
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.training.objectives import TrainingData
from robustbench_inv.training.recipe import Recipe, find_recipe, read_recipe
from robustbench_inv.training.training_run import build_network

__all__ = [
    "fgsm_survivors",
    "find_snapshots",
    "measure_seeds",
    "measure_training_length",
    "pgd_survivors",
]

PGD_STEPS = 40
PGD_REL_STEP = 1 / 30
"""Steps, and step size relative to eps, of PGD in Foolbox 1 and 2: 40 steps of 0.01 at eps 0.3."""


def measure_training_length(  # noqa: PLR0913, PLR0917 - one parameter is one key of a definition
    request: ExperimentRequest,
    networks: Mapping[str, str],
    substitute: str,
    search: Sequence[float],
    shown: Sequence[float],
    folder: str = "checkpoints",
    epochs: Sequence[int] = (),
) -> ExperimentResult:
    """Return accuracy without and under attack, and the share of zero gradients, by number of epochs.

    FGSM searches for the smallest eps that changes the prediction, as Foolbox 1 and 2 do. PGD starts at a random point.
    Both use the gradients of the network (w, white box) or of a substitute (b, black box).

    Args:
        request: held-out data and samples.
        networks: by column, a recipe with parameters of its network, such as ``mnist-c-js-200:sigmoid=true``; of another
            seed, ``mnist-c-js-200-seed1``; below the models, ``ablation/mnist-c-dv-ie-0``.
        substitute: the model whose gradients the black-box attacks use.
        search: ascending eps that FGSM tries.
        shown: those of them whose robust accuracy is a row, and the eps of PGD.
        folder: output folder of the training queue, which saves the snapshots.
        epochs: numbers of epochs that are measured; all snapshots if empty.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, table 1.
    """
    dataset = request.open_dataset()
    ids = request.draw(dataset)
    data = load_samples(dataset, ids, request.device)
    attacks = _Attacks(data, search, shown, request.seed)
    source = load_model(substitute, device=request.device)
    transfer = attacks.once_by(source.classifier)
    numbers, digests = list[MeasuredNumber](), {source.name: source.digest}
    for column, reference in networks.items():
        training = _Training.of(reference, folder)
        snapshots = {n: each for n, each in training.snapshots.items() if n in epochs or not epochs}
        if not snapshots:
            _leave_out(request, column, f"{reference} has no snapshots")
        for count, weights in snapshots.items():
            request.report(f"{column} after {count} epochs")
            network = training.network(weights, request.device)
            digests[f"{column}, {count} epochs"] = digest_file(weights)
            numbers += [
                MeasuredNumber.of(f"{title}, {count} epochs", column, held.cpu().numpy())
                for title, held in attacks.outcomes(network, {"b": transfer}).items()
            ]
    titles = _titles(shown, ["b"])
    numbers.sort(key=lambda number: titles.index(number.row.rpartition(", ")[0]))
    lines = () if len(epochs) == 1 else _lines(numbers, titles)
    return ExperimentResult(dataset.name, len(ids), digests, tuple(numbers), lines=lines)


def measure_seeds(  # noqa: PLR0913, PLR0917 - one parameter is one key of a definition
    request: ExperimentRequest,
    networks: Mapping[str, Sequence[str]],
    substitutes: Mapping[str, str],
    search: Sequence[float],
    shown: Sequence[float],
    epochs: int,
    folder: str = "checkpoints",
) -> ExperimentResult:
    """Return the accuracy of several trainings of each network without and under attack, and its mean over them.

    The attacks are those of ``measure_training_length``.

    Args:
        request: held-out data and samples.
        networks: by column, its trainings, named as ``measure_training_length`` names them; a model of the catalogue
            stands for the training of its recipe.
        substitutes: the models whose gradients the black-box attacks use, by what rows call the attacks, such as b.
        search: ascending eps that FGSM tries.
        shown: those of them whose robust accuracy is a row, and the eps of PGD.
        epochs: number of epochs of the snapshots.
        folder: output folder of the training queue, which saves the snapshots.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, table 1.
    """
    dataset = request.open_dataset()
    ids = request.draw(dataset)
    attacks = _Attacks(load_samples(dataset, ids, request.device), search, shown, request.seed)
    sources = {name: load_model(each, device=request.device) for name, each in substitutes.items()}
    transfers = {name: attacks.once_by(source.classifier) for name, source in sources.items()}
    digests = {source.name: source.digest for source in sources.values()}
    single = list[MeasuredNumber]()
    shares: dict[tuple[str, str], list[float]] = {}
    for column, references in networks.items():
        for reference in references:
            training = _Training.of(reference, folder)
            name = f"seed {training.recipe.seed}"
            network: nn.Module | Classifier
            if parse_reference(reference).name in entries("models"):
                loaded = load_model(reference, device=request.device)
                network, digest = loaded.classifier, loaded.digest
            elif weights := training.snapshots.get(epochs):
                network, digest = training.network(weights, request.device), digest_file(weights)
            else:
                missing = f"{reference} has no snapshot of epoch {epochs}"
                _leave_out(request, f"{column}, {name}", missing)
                continue
            request.report(f"{column}, {name}")
            digests[f"{column}, {name}"] = digest
            for title, held in attacks.outcomes(network, transfers).items():
                number = MeasuredNumber.of(f"{title}, {name}", column, held.cpu().numpy())
                single.append(number)
                shares.setdefault((title, column), []).append(number.value)
    means = [MeasuredNumber.mean_of(*place, found) for place, found in shares.items()]
    order = _titles(shown, substitutes)
    numbers = (
        *sorted(means, key=lambda number: order.index(number.row)),
        *sorted(single, key=lambda number: order.index(number.row.rpartition(", ")[0])),
    )
    return ExperimentResult(dataset.name, len(ids), digests, numbers)


def _leave_out(request: ExperimentRequest, name: str, missing: str) -> None:
    request.left_out[name] = f"{missing}; train it with invbench queue"
    request.report(f"{name} is left out: {request.left_out[name]}")


@dataclass(frozen=True)
class _Training:
    """A recipe of one seed, and what the training queue saved of it.

    Args:
        path: the recipe's file.
        recipe: with the seed and the parameters of the network.
        snapshots: weights by number of epochs, ascending.
    """

    path: Path
    recipe: Recipe
    snapshots: Mapping[int, Path]

    @classmethod
    def of(cls, reference: str, folder: str) -> "_Training":
        """Return a training by its name, such as ``mnist-c-js-200-seed1:sigmoid=true``."""
        found = parse_reference(reference)
        seeded = re.fullmatch(r"(.+)-seed(\d+)", found.name)
        path = find_recipe(seeded[1] if seeded else found.name)
        recipe = read_recipe(path)
        recipe = recipe.with_seed(int(seeded[2])) if seeded else recipe
        recipe.model_parameters.update(found.parameters)
        return cls(path, recipe, find_snapshots(Path(folder) / recipe.name / "snapshots"))

    def network(self, weights: Path, device: str) -> nn.Module:
        """Return the network with the weights of a snapshot."""
        network = build_network(self.recipe, self.path.parent).eval().to(device)
        network.load_state_dict(load_file(weights))
        return network


def find_snapshots(folder: Path) -> dict[int, Path]:
    """Return the weights in a folder ``snapshots`` by number of epochs, ascending."""
    paths = {
        int(path.stem.removeprefix("epoch-")): path for path in folder.glob("epoch-*.safetensors")
    }
    return dict(sorted(paths.items()))


@dataclass(frozen=True)
class _Attacks:
    """The attacks of one measurement.

    Args:
        data: n samples.
        search: ascending eps that FGSM tries.
        shown: those of them that are shown, ascending, and the eps of PGD.
        seed: seed of PGD's random start.
    """

    data: TrainingData
    search: Sequence[float]
    shown: Sequence[float]
    seed: int

    def by(self, network: nn.Module | Classifier) -> "_Source":
        """Return the attacks that use the gradients of a network, where PGD takes the samples that it is given."""
        return _Source(
            _gradient(network, self.data),
            lambda eps, rows: _pgd(network, _rows(self.data, rows), eps, self.seed, first=True),
        )

    def once_by(self, network: Classifier) -> "_Source":
        """Return the same attacks, where PGD has run on all samples."""
        moved = {eps: _pgd(network, self.data, eps, self.seed) for eps in self.shown}
        return _Source(_gradient(network, self.data), lambda eps, rows: moved[eps][rows])

    def outcomes(
        self, network: nn.Module | Classifier, transfers: Mapping[str, "_Source"]
    ) -> dict[str, Tensor]:
        """Return which samples have a zero gradient, and which keep their correct prediction, (n,) each, by row."""
        own = self.by(network)
        found = {"Zero gradients": (own.gradient == 0).flatten(1).all(1)}
        for access, source in (*transfers.items(), ("w", own)):
            survivors = fgsm_survivors(network, self.data, source.gradient.sign(), self.search)
            found["Clean"] = survivors[0]
            iterated = pgd_survivors(network, self.data, source.pgd, self.shown)
            for eps, held in zip(self.shown, iterated, strict=True):
                found[f"FGSM {access} {eps:g}"] = survivors[1 + list(self.search).index(eps)]
                found[f"PGD {access} {eps:g}"] = held
        return found


@dataclass(frozen=True)
class _Source:
    """Attacks that use the gradients of one network.

    Args:
        gradient: (n, …) gradients at the images.
        pgd: maps eps and indices (m,) of samples to perturbed images (m, …).
    """

    gradient: Tensor
    pgd: Callable[[float, Tensor], Tensor]


@torch.no_grad()
def fgsm_survivors(
    network: nn.Module | Classifier, data: TrainingData, signs: Tensor, search: Sequence[float]
) -> Tensor:
    """Return which samples are classified correctly without attack, and at no eps up to each of the search, (k + 1, n).

    Args:
        network: maps images in [0, 1] to logits.
        data: n samples.
        signs: (n, …) of the gradients.
        search: k ascending eps.
    """
    correct = [_predict(network, data.images) == data.labels]
    for eps in search:
        moved = (data.images + eps * signs).clamp(0, 1)
        correct.append(correct[-1] & (_predict(network, moved) == data.labels))
    return torch.stack(correct)


def pgd_survivors(
    network: nn.Module | Classifier,
    data: TrainingData,
    pgd: Callable[[float, Tensor], Tensor],
    shown: Sequence[float],
) -> Tensor:
    """Return which samples are classified correctly without attack, and at each eps up to that of a row, (k, n).

    Args:
        network: maps images in [0, 1] to logits.
        data: n samples.
        pgd: maps eps and indices (m,) of samples to perturbed images (m, …).
        shown: k ascending eps.
    """
    held = _predict(network, data.images) == data.labels
    found = []
    for eps in shown:
        held = held.clone()
        (rows,) = held.nonzero(as_tuple=True)
        held[rows] = _predict(network, pgd(eps, rows)) == data.labels[rows]
        found.append(held)
    return torch.stack(found)


def _pgd(
    network: nn.Module | Classifier,
    data: TrainingData,
    eps: float,
    seed: int,
    *,
    first: bool = False,
) -> Tensor:
    """Return images after PGD on the cross-entropy, from a random start in the linf ball, (n, …).

    Args:
        network: maps images in [0, 1] to logits.
        data: n samples.
        eps: radius of the ball.
        seed: of the random start.
        first: whether each step that changes the prediction counts, as in Foolbox 1, or the last alone, as in Foolbox 3.
    """
    ball = Ball(data.images, LpBall("linf", eps), (0.0, 1.0))
    start = ball.draw(SampleRNG(seed, data.ids, "pgd"), 0)
    kept, wrong = start.clone(), torch.zeros(len(start), dtype=torch.bool, device=start.device)

    def gradient(images: Tensor) -> Tensor:
        found, predictions = _differentiate(network, replace(data, images=images))
        new = (predictions != data.labels) & ~wrong
        kept[new] = images[new]
        wrong.logical_or_(new)
        return found

    last = ball.ascend(start, gradient, PGD_STEPS, PGD_REL_STEP)
    if first:
        last[wrong] = kept[wrong]
    return last


def _rows(data: TrainingData, rows: Tensor) -> TrainingData:
    return TrainingData(data.ids[rows.cpu()], data.images[rows], data.labels[rows])


BLOCK = 500
"""Samples that a network takes at a time."""


@torch.no_grad()
def _predict(network: nn.Module | Classifier, images: Tensor) -> Tensor:
    return torch.cat([_logits(network, block).argmax(1) for block in torch.split(images, BLOCK)])


def _logits(network: nn.Module | Classifier, images: Tensor) -> Tensor:
    output = network(images)
    return output if isinstance(output, Tensor) else output.logits


def _gradient(network: nn.Module | Classifier, data: TrainingData) -> Tensor:
    """Return the gradients of the cross-entropy with respect to the images, (n, …)."""
    return _differentiate(network, data)[0]


def _differentiate(network: nn.Module | Classifier, data: TrainingData) -> tuple[Tensor, Tensor]:
    """Return the gradients of the cross-entropy with respect to the images, (n, …), and the predictions, (n,)."""
    found, predictions = [], []
    for images, labels in zip(
        torch.split(data.images, BLOCK), torch.split(data.labels, BLOCK), strict=True
    ):
        inputs = images.detach().requires_grad_()
        logits = _logits(network, inputs)
        losses = cross_entropy(logits, labels, reduction="none")
        predictions.append(logits.detach().argmax(1))
        found.append(per_sample_gradient(losses, inputs))
    return torch.cat(found), torch.cat(predictions)


def _titles(shown: Sequence[float], transfers: Iterable[str]) -> list[str]:
    """Return the rows of a network, without the number of epochs or the seed, in order."""
    attacks = [f"{attack} {access}" for access in (*transfers, "w") for attack in ("FGSM", "PGD")]
    return ["Clean", *(f"{name} {eps:g}" for name in attacks for eps in shown), "Zero gradients"]


def _lines(numbers: Sequence[MeasuredNumber], titles: Sequence[str]) -> tuple[LinePanels, ...]:
    panels = [counted_lines(title, numbers) for title in titles]
    return (
        (
            LinePanels(
                name="training-length",
                title="Accuracy under attack by number of epochs",
                caption="Share of the samples that keep their correct prediction at every eps up to the one in the title; last: share of samples whose gradient is exactly zero.",
                x="epochs",
                y="share of the samples",
                panels=tuple(panel for panel in panels if panel.lines),
            ),
        )
        if numbers
        else ()
    )
