"""Accuracy under FGSM after parts of a training: does longer training saturate the outputs, so that FGSM fails?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_inv.catalogue.models import load_model
from robustbench_inv.catalogue.references import parse_reference
from robustbench_inv.experiments.protocol import ExperimentRequest, counted_lines, load_samples
from robustbench_inv.identity import digest_file
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.results.experiment_result import ExperimentResult, LinePanels, MeasuredNumber
from robustbench_inv.tensors import per_sample_gradient
from robustbench_inv.training.objectives import TrainingData
from robustbench_inv.training.recipe import find_recipe, read_recipe
from robustbench_inv.training.training_run import build_network

__all__ = ["fgsm_survivors", "find_snapshots", "measure_training_length"]


def measure_training_length(
    request: ExperimentRequest,
    networks: Mapping[str, str],
    substitute: str,
    search: Sequence[float],
    shown: Sequence[float],
    folder: str = "checkpoints",
) -> ExperimentResult:
    """Return accuracy without and under FGSM, and the share of zero gradients, by number of epochs.

    FGSM searches for the smallest eps that changes the prediction, as Foolbox 1 and 2 do.

    Args:
        request: held-out data and samples.
        networks: by column, a recipe with parameters of its network, such as ``mnist-c-js-200:sigmoid=true``; of another
            seed, ``mnist-c-js-200-seed1``.
        substitute: the model whose gradients the black-box attack uses.
        search: ascending eps that the search tries.
        shown: those of them whose robust accuracy is a row.
        folder: output folder of the training queue, which saves the snapshots.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, table 1.
    """
    dataset = request.open_dataset()
    ids = request.draw(dataset)
    data = load_samples(dataset, ids, request.device)
    transfer = _gradient(load_model(substitute, device=request.device).classifier, data)
    numbers, digests = list[MeasuredNumber](), dict[str, str]()
    for column, reference in networks.items():
        found = parse_reference(reference)
        name, _, seed = found.name.partition("-seed")
        path = find_recipe(name)
        recipe = read_recipe(path)
        recipe = recipe.with_seed(int(seed)) if seed else recipe
        recipe.model_parameters.update(found.parameters)
        snapshots = find_snapshots(Path(folder) / recipe.name / "snapshots")
        if not snapshots:
            request.left_out[column] = (
                f"{found.name} has no snapshots; train it with invbench queue"
            )
            request.report(f"{column} is left out: {request.left_out[column]}")
        for epochs, weights in snapshots.items():
            request.report(f"{column} after {epochs} epochs")
            network = build_network(recipe, path.parent).eval().to(request.device)
            network.load_state_dict(load_file(weights))
            digests[f"{column}, {epochs} epochs"] = digest_file(weights)
            numbers += [
                MeasuredNumber.of(f"{title}, {epochs} epochs", column, held.cpu().numpy())
                for title, held in _outcomes(network, data, transfer, search, shown).items()
            ]
    return ExperimentResult(
        dataset.name, len(ids), digests, tuple(numbers), lines=_lines(numbers, shown)
    )


def find_snapshots(folder: Path) -> dict[int, Path]:
    """Return the weights in a folder ``snapshots`` by number of epochs, ascending."""
    paths = {
        int(path.stem.removeprefix("epoch-")): path for path in folder.glob("epoch-*.safetensors")
    }
    return dict(sorted(paths.items()))


def _outcomes(
    network: nn.Module,
    data: TrainingData,
    transfer: Tensor,
    search: Sequence[float],
    shown: Sequence[float],
) -> dict[str, Tensor]:
    """Return which samples have a zero gradient, and which keep their correct prediction, (n,) each, by row."""
    gradient = _gradient(network, data)
    found = {"Zero gradients": (gradient == 0).flatten(1).all(1)}
    for title, direction in (("FGSM b", transfer), ("FGSM w", gradient)):
        survivors = fgsm_survivors(network, data, direction.sign(), search)
        found["Clean"] = survivors[0]
        for eps in shown:
            found[f"{title} {eps:g}"] = survivors[1 + list(search).index(eps)]
    return found


@torch.no_grad()
def fgsm_survivors(
    network: nn.Module, data: TrainingData, signs: Tensor, search: Sequence[float]
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


BLOCK = 500
"""Samples that a network takes at a time."""


def _predict(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(block).argmax(1) for block in torch.split(images, BLOCK)])


def _gradient(network: nn.Module | Classifier, data: TrainingData) -> Tensor:
    """Return the gradients of the cross-entropy with respect to the images, (n, …)."""
    found = []
    for images, labels in zip(
        torch.split(data.images, BLOCK), torch.split(data.labels, BLOCK), strict=True
    ):
        inputs = images.detach().requires_grad_()
        output = network(inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        found.append(per_sample_gradient(cross_entropy(logits, labels, reduction="none"), inputs))
    return torch.cat(found)


def _lines(numbers: Sequence[MeasuredNumber], shown: Sequence[float]) -> tuple[LinePanels, ...]:
    titles = ["Clean", *(f"{name} {eps:g}" for name in ("FGSM b", "FGSM w") for eps in shown)]
    panels = [counted_lines(title, numbers) for title in [*titles, "Zero gradients"]]
    return (
        (
            LinePanels(
                name="training-length",
                title="Accuracy under FGSM by number of epochs",
                caption="Share of the samples that keep their correct prediction at every eps up to the one in the title; last: share of samples whose gradient is exactly zero.",
                x="epochs",
                y="share of the samples",
                panels=tuple(panel for panel in panels if panel.lines),
            ),
        )
        if numbers
        else ()
    )
