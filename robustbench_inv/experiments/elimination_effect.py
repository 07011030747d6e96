"""Hidden layers before and after information elimination: MMD² terms and principal planes, Figure 2 of Guess First."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.catalogue.references import parse_reference
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadCatalogue, BadModel, UnknownName
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.label_hypothesis import LabelHypothesisNet
from robustbench_inv.results.experiment_result import ExperimentResult
from robustbench_inv.training.information_elimination import hypothesis_mmd2
from robustbench_inv.training.recipe import find_recipe, read_recipe

__all__ = [
    "HeldOutSamples",
    "LayerStatistics",
    "chance_mmd2",
    "compare_layers",
    "draw_samples",
    "layer_statistics",
    "measure_layers",
    "median_distance",
    "principal_plane",
]


MIN_WIDTH = 1e-12
"""Kernel width for identical outputs, whose MMD² is 0 for every width."""


@dataclass(frozen=True)
class HeldOutSamples:
    """Held-out samples.

    Args:
        dataset: name of the data set.
        images: (n, 1, 28, 28).
        labels: (n,) classes.
    """

    dataset: str
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class LayerStatistics:
    """The second fully connected layer of one network under each of C hypotheses, on n samples.

    Args:
        model: name of the model.
        digest: digest of the model.
        accuracy: accuracy on the samples.
        widths: kernel widths σ by name: ``median`` is the median distance of the layer's outputs, ``training`` the
            width of the regulariser.
        mmd2: for each width the MMD² between correct and incorrect hypotheses, (C,).
        chance: the expected MMD² for randomly permuted labels, (C,).
        plane: (C, n, 2) outputs on their two principal axes.
        explained: (C, 2) fraction of the outputs' variance along each axis.
    """

    model: str
    digest: str
    accuracy: float
    widths: Mapping[str, float]
    mmd2: Mapping[str, Tensor]
    chance: Mapping[str, Tensor]
    plane: Tensor
    explained: Tensor

    def to_json(self) -> dict[str, object]:
        """Return plain values, rounded to four digits."""
        return {key: _to_plain_values(value) for key, value in vars(self).items()}


def compare_layers(
    pairs: Mapping[str, tuple[str, str]], samples: HeldOutSamples, *, device: str = "cpu"
) -> dict[str, tuple[LayerStatistics, LayerStatistics]]:
    """Return the statistics of pairs of models, without and with regularisation.

    Args:
        pairs: names of the model without and with regularisation, by name of the pair.
        samples: held-out samples, the same for all models.
        device: torch device.

    Raises:
        UnknownName: for a model that is not in the catalogue.
        BadModel: for a model that is no label-hypothesis network.
    """
    found = {}
    for name, (before, after) in pairs.items():
        width = _training_width(after)
        first = layer_statistics(before, samples, width, device=device)
        found[name] = first, layer_statistics(after, samples, width, device=device)
    return found


def draw_samples(
    dataset: str, count: int | str | None, data_root: Path | None = None
) -> HeldOutSamples:
    """Return samples of a data set.

    Args:
        dataset: name of the data set.
        count: selection of samples, as for ``--samples``.
        data_root: folder of the data, if they were not fetched.
    """
    data = load_dataset(dataset, data_root=data_root)
    ids = torch.tensor(select_samples(data.labels, count))
    return HeldOutSamples(dataset, *data.batch(ids))


@torch.no_grad()
def layer_statistics(
    model: str, samples: HeldOutSamples, training_width: float | None = None, *, device: str = "cpu"
) -> LayerStatistics:
    """Return statistics of a network's second fully connected layer for correct and incorrect hypotheses.

    Args:
        model: name of a label-hypothesis network.
        samples: held-out samples, several of each class.
        training_width: kernel width of its regulariser; None to use only the median distance.
        device: torch device.

    Raises:
        UnknownName: for a model that is not in the catalogue.
        BadModel: if it is no label-hypothesis network.
    """
    loaded = load_model(model, device=device)
    network = getattr(loaded.classifier, "module", None)
    if not isinstance(network, LabelHypothesisNet):
        raise BadModel(
            f"{model} has no hypotheses", got=type(network).__name__, expected="LabelHypothesisNet"
        )
    images, labels = samples.images.to(device), samples.labels.to(device)
    hidden = network.hidden(images)
    predicted = network.judge(hidden)[..., 0].argmax(1)
    widths = {"median": median_distance(hidden)}
    if training_width is not None:
        widths["training"] = training_width
    plane, explained = principal_plane(hidden, labels)
    return LayerStatistics(
        model=loaded.name,
        digest=loaded.digest,
        accuracy=(predicted == labels).double().mean().item(),
        widths=widths,
        mmd2={name: hypothesis_mmd2(hidden, labels, w) for name, w in widths.items()},
        chance={name: chance_mmd2(hidden, labels, w) for name, w in widths.items()},
        plane=plane,
        explained=explained,
    )


def median_distance(hidden: Tensor) -> float:
    """Return the median of ‖h(x, k) − h(x', k)‖ over all pairs of samples and all k.

    Args:
        hidden: (n, C, d) a layer's outputs under every hypothesis, n >= 2.

    References:
        Gretton et al., A kernel two-sample test, JMLR 13, 2012, section 8, for the heuristic.
    """
    distances = torch.cat([torch.pdist(outputs) for outputs in hidden.unbind(1)])
    return max(distances.median().item(), MIN_WIDTH)


def chance_mmd2(hidden: Tensor, labels: Tensor, width: float) -> Tensor:
    """Return the mean of ``hypothesis_mmd2`` over all permutations of the labels, (C,).

    This is the value for two samples of one distribution. With m correct and r incorrect hypotheses, the weights of
    wᵀ K w have mean square (1/m + 1/r) / n and sum 0. The mean is (1/m + 1/r)(1 − mean of k over unequal pairs).

    Args:
        hidden: (n, C, d) a layer's outputs under every hypothesis.
        labels: (n,) classes.
        width: σ of the Gaussian kernel.
    """
    right = torch.bincount(labels, minlength=hidden.shape[1])
    scale = (1 / right + 1 / (len(labels) - right)).where((right > 0) & (right < len(labels)), 0)
    likeness = [
        torch.exp(-(torch.pdist(outputs) ** 2) / (2 * width**2)).mean()
        for outputs in hidden.unbind(1)
    ]
    return scale * (1 - torch.stack(likeness))


def principal_plane(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs on their two principal axes for each hypothesis, (C, n, 2), and the explained variance, (C, 2).

    The sign of each axis is chosen so that the mean of the correct hypotheses is not negative.

    Args:
        hidden: (n, C, d) a layer's outputs under every hypothesis, d >= 2.
        labels: (n,) classes.
    """
    centred = (hidden - hidden.mean(0)).transpose(0, 1).double()
    variances, axes = torch.linalg.eigh(centred.transpose(1, 2) @ centred)
    plane = centred @ axes[..., -2:].flip(-1)
    right = torch.nn.functional.one_hot(labels, hidden.shape[1]).T.to(plane)
    towards = torch.einsum("kn,knd->kd", right, plane)
    explained = variances[:, -2:].flip(-1).clamp_min(0) / variances.sum(1, keepdim=True)
    return plane * torch.where(towards < 0, -1, 1)[:, None], explained.nan_to_num()


def _training_width(model: str) -> float | None:
    """Return the kernel width in a model's recipe; None if there is no recipe or no regulariser."""
    try:
        recipe = read_recipe(find_recipe(parse_reference(model).name))
    except UnknownName:
        return None
    width = recipe.objective_parameters.get("width")
    return None if width is None else float(width)


def _to_plain_values(value: object) -> object:
    if isinstance(value, Tensor):
        return _to_plain_values(value.tolist())
    if isinstance(value, Mapping):
        return {key: _to_plain_values(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_to_plain_values(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def measure_layers(
    request: ExperimentRequest, pairs: Mapping[str, Sequence[str]]
) -> ExperimentResult:
    """Return statistics of the second fully connected layer of pairs of label-hypothesis networks.

    Args:
        request: the held-out data.
        pairs: a model without and one with regularisation, by name of the pair.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, figure 2.
    """
    if short := [name for name, pair in pairs.items() if len(pair) != 2]:
        raise BadCatalogue(f"{short[0]} is no pair", got=len(pairs[short[0]]), expected="2 models")
    drawn = draw_samples(request.dataset, request.samples, request.data_root)
    request.report(
        f"{len(drawn.labels)} samples of {request.dataset}, {len(pairs)} pairs of models"
    )
    both = {name: (before, after) for name, (before, after) in pairs.items()}
    effect = compare_layers(both, drawn, device=request.device)
    digests = {view.model: view.digest for pair in effect.values() for view in pair}
    layers = {
        "dataset": drawn.dataset,
        "labels": drawn.labels.tolist(),
        "pairs": {
            name: {"before": before.to_json(), "after": after.to_json()}
            for name, (before, after) in effect.items()
        },
    }
    return ExperimentResult(drawn.dataset, len(drawn.labels), digests, layers=layers)
