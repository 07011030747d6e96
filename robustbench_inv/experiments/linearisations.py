"""Figures 3.3 and 3.4 and Table 3.1 of the thesis: removed vectors, and singular values of WideCIFAR and ThinCIFAR."""

from collections.abc import Iterator, Mapping, Sequence
from math import cos, nan, radians, sin
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from robustbench_inv.catalogue.locate import entries
from robustbench_inv.catalogue.models import LoadedModel, load_model
from robustbench_inv.catalogue.references import import_object
from robustbench_inv.experiments.error_rates import predict
from robustbench_inv.experiments.protocol import ExperimentRequest, load_samples
from robustbench_inv.experiments.stability import LayerSpectrum, float64_network, measure_spectra
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    LinePanel,
    LinePanels,
    MeasuredNumber,
)
from robustbench_inv.training.recipe import find_recipe, read_recipe

__all__ = [
    "layer_sizes",
    "measure_architectures",
    "measure_conditions",
    "measure_linearisations",
    "measure_removal",
    "removal_bound",
]

Matrix = np.typing.NDArray[np.float64]

NOT_TRAINED = "not trained yet; the recipe is in the training queue"


def removal_bound(rows: Matrix, kept: Sequence[int], removed: int) -> float:
    """Return the bound c of the smallest non-zero singular value of the kept rows, by a removed row a_k.

    c = √M max |⟨a_j, a_k⟩| / ‖a_k‖ over the M kept rows, if a_k is orthogonal to their null space.

    Args:
        rows: A, (m, n).
        kept: positions of the rows that ReLU does not remove.
        removed: k.

    References:
        Behrmann, thesis, lemma 3.6.
    """
    products = np.abs(rows[list(kept)] @ rows[removed])
    return float(np.sqrt(len(kept)) * products.max() / np.linalg.norm(rows[removed]))


def _angles(*degrees: float) -> Matrix:
    return np.array([[cos(radians(each)), sin(radians(each))] for each in degrees])


REMOVALS: Mapping[str, tuple[Matrix, Matrix, Matrix]] = {
    "unbiased": (_angles(0, 85, 95), np.zeros(3), np.array([-0.1, 1.0])),
    "biased": (_angles(0, 85, 95), np.array([-1.0, 0.5, 0.5]), np.array([0.5, 0.4])),
}
"""Rows of A, b, and a point x whose first row is not active; as in the drawings, without their numbers."""


def measure_removal(request: ExperimentRequest, layers: int = 1_000) -> ExperimentResult:
    """Return the singular values of three vectors in the plane before and after ReLU, and the bound of lemma 3.6.

    Args:
        request: seed of random layers.
        layers: number of random layers on which the bound is checked.

    References:
        Behrmann, thesis, figure 3.3 and lemma 3.6.
    """
    numbers = list[MeasuredNumber]()
    for title, (rows, bias, x) in REMOVALS.items():
        kept = np.flatnonzero(rows @ x + bias > 0).tolist()
        bounds = [removal_bound(rows, kept, k) for k in range(len(rows)) if k not in kept]
        for row, values, bound in (
            (f"{title}, all vectors", np.linalg.svd(rows, compute_uv=False), nan),
            (f"{title}, after ReLU", np.linalg.svd(rows[kept], compute_uv=False), min(bounds)),
        ):
            for column, value in (
                ("largest singular value", values[0]),
                ("smallest singular value", values[-1]),
                ("condition number", values[0] / values[-1]),
                ("bound of lemma 3.6", bound),
            ):
                numbers.append(MeasuredNumber(row, column, float(value)))
    broken = float(sum(not held for held in _random_bounds(request.seed, layers)))
    numbers.append(MeasuredNumber(f"{layers:,} random layers", "violations", broken))
    return ExperimentResult("plane", layers, {}, tuple(numbers))


def _random_bounds(seed: int, layers: int) -> Iterator[bool]:
    """Yield whether the bound of each removed row holds, for layers of 12 rows in 4 dimensions at random points."""
    generator = np.random.default_rng(seed)
    while layers:
        rows, bias = generator.normal(size=(12, 4)), generator.normal(size=12)
        active = rows @ generator.normal(size=4) + bias > 0
        kept = np.flatnonzero(active).tolist()
        if not 4 <= len(kept) < len(rows):  # else the null space is not {0}, or nothing is removed
            continue
        smallest = np.linalg.svd(rows[kept], compute_uv=False)[-1]
        bounds = [removal_bound(rows, kept, k) for k in np.flatnonzero(~active).tolist()]
        layers -= 1
        yield bool(smallest <= min(bounds) * (1 + 1e-12))


@torch.no_grad()
def layer_sizes(network: nn.Module, shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return feature maps and output units of each convolution and linear layer, for inputs of one shape."""
    found = list[tuple[int, int]]()

    def keep(*call: Any) -> None:  # noqa: ANN401 - module, inputs and output
        found.append((call[2].shape[1], call[2][0].numel()))

    layers = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    handles = [part.register_forward_hook(keep) for part in layers]
    network(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return found


def measure_architectures(
    request: ExperimentRequest, models: Mapping[str, str], shape: Sequence[int] = (3, 32, 32)
) -> ExperimentResult:
    """Return the layers of networks as their recipes build them, and the test error of those that are trained.

    Args:
        request: test data and samples.
        models: by column, the name of a recipe.
        shape: of an input.

    References:
        Behrmann, thesis, table 3.1.
    """
    numbers, digests, samples = list[MeasuredNumber](), dict[str, str](), 0
    for column, name in models.items():
        recipe = read_recipe(find_recipe(name))
        network = cast("Any", import_object(recipe.model_path))(**recipe.model_parameters)
        for index, (maps, units) in enumerate(layer_sizes(network, shape), 1):
            what = "feature maps" if maps < units else "units"
            numbers.append(MeasuredNumber(f"Layer {index}, {what}", column, maps))
            if maps < units:
                numbers.append(MeasuredNumber(f"Layer {index}, output units", column, units))
        count = sum(weight.numel() for weight in network.parameters())
        numbers.append(MeasuredNumber("Parameters", column, count))
        model = _trained(request, column, name)
        if model is None:
            numbers.append(MeasuredNumber("Test error", column, nan))
            continue
        digests[model.name], dataset = model.digest, request.open_dataset()
        data = load_samples(dataset, request.draw(dataset))
        wrong = predict(model.classifier, data.images, data.ids) != data.labels
        numbers.append(MeasuredNumber.of("Test error", column, wrong.numpy()))
        samples = len(data.ids)
    return ExperimentResult(
        request.dataset, samples, digests, tuple(numbers), left_out=request.left_out
    )


def _trained(request: ExperimentRequest, column: str, name: str) -> LoadedModel | None:
    """Return a model by name, or None and the reason in ``left_out``."""
    if name in entries("models"):
        return load_model(name, device=request.device)
    request.left_out[column] = NOT_TRAINED
    request.report(f"{name} is {NOT_TRAINED}")
    return None


def measure_linearisations(
    request: ExperimentRequest, models: Mapping[str, str], pattern: str = "layers.*"
) -> ExperimentResult:
    """Return output units, non-zero singular values and condition number of each layer's linearisation.

    Args:
        request: data and samples; one sample of CIFAR-10 takes minutes.
        models: by column, the name of a network.
        pattern: of the names of its layers.

    References:
        Behrmann, thesis, figure 3.4.
    """
    numbers, spectra, digests = list[MeasuredNumber](), dict[str, list[LayerSpectrum]](), {}
    for column, name in models.items():
        model = _trained(request, column, name)
        if model is None:
            numbers.append(MeasuredNumber("Layer 1, Conv2d: condition number", column, nan))
            continue
        dataset = request.open_dataset()
        images = load_samples(dataset, request.draw(dataset), request.device).images
        network = float64_network(model)
        digests[model.name] = model.digest
        spectra[column] = measure_spectra(network, images.double(), request.report, pattern)
        numbers += _spectrum_numbers(column, spectra[column])
    samples = len(next(iter(spectra.values()))[0].values) if spectra else 0
    lines = (_decay(spectra), *_by_layer(spectra)) if spectra else ()
    return ExperimentResult(
        request.dataset, samples, digests, tuple(numbers), left_out=request.left_out, lines=lines
    )


def measure_conditions(request: ExperimentRequest, models: Mapping[str, str]) -> ExperimentResult:
    """Return how many layers of networks keep every direction, and the largest condition number of a linearisation.

    Invertible layers count as one; the last layer of a classifier has fewer outputs than inputs.

    Args:
        request: data and samples.
        models: by column, the name of a network.

    References:
        Behrmann, thesis, section 3.4.2, beside figure 3.4.
    """
    numbers, spectra, digests = list[MeasuredNumber](), dict[str, list[LayerSpectrum]](), {}
    dataset = request.open_dataset()
    images = load_samples(dataset, request.draw(dataset), request.device).images.double()
    for column, name in models.items():
        model = _trained(request, column, name)
        if model is None:
            continue
        network = float64_network(model)
        digests[model.name] = model.digest
        layers = spectra[column] = measure_spectra(network, images, request.report)
        full = sum(min(layer.ranks) == min(layer.size, layer.inputs) for layer in layers)
        wide = [layer for layer in layers if layer.size >= layer.inputs]
        for row, value in (
            ("Layers", len(layers)),
            ("Layers of full rank at every image", full),
            ("Layers with at least as many outputs as inputs", len(wide)),
            ("Largest condition number of these", max(median(each.conditions) for each in wide)),
            ("Largest singular value of these", max(each.median_values[0] for each in wide)),
        ):
            numbers.append(MeasuredNumber(row, column, float(value)))
    return ExperimentResult(
        dataset.name,
        len(images),
        digests,
        tuple(numbers),
        left_out=request.left_out,
        lines=tuple(_by_layer(spectra, paired=False)) if spectra else (),
    )


def _spectrum_numbers(column: str, layers: Sequence[LayerSpectrum]) -> Iterator[MeasuredNumber]:
    for index, layer in enumerate(layers):
        title = f"Layer {index // 2 + 1}, {layer.kind}"
        for what, value in zip(QUANTITIES, _quantities(layer), strict=True):
            yield MeasuredNumber(f"{title}: {what}", column, value)


QUANTITIES = ("output units", "non-zero singular values", "condition number")


def _quantities(layer: LayerSpectrum) -> tuple[float, float, float]:
    return float(layer.size), float(median(layer.ranks)), float(median(layer.conditions))


def _decay(spectra: Mapping[str, Sequence[LayerSpectrum]]) -> LinePanels:
    panels = []
    for column, layers in spectra.items():
        after_relu = layers[1::2]
        lines = {}
        for index, layer in enumerate(after_relu, 1):
            values = layer.median_values
            places = np.unique(np.linspace(0, len(values) - 1, 200).astype(int)).tolist()
            lines[f"layer {index}"] = (
                tuple(float(place + 1) for place in places),
                tuple(values[place] for place in places),
            )
        panels.append(LinePanel(column, lines))
    return LinePanels(
        name="decay",
        title="Decay of singular values by layer",
        caption="Singular values of the linearisation up to each convolution with ReLU, in descending order: medians over the samples. Values near 1e-15 are zeros up to rounding.",
        x="index",
        y="singular value",
        panels=tuple(panels),
        log=True,
    )


def _by_layer(
    spectra: Mapping[str, Sequence[LayerSpectrum]], *, paired: bool = True
) -> Iterator[LinePanels]:
    """Yield each quantity by layer; in pairs, a convolution and the ReLU after it count as one layer."""
    step = 0.5 if paired else 1.0
    about = "Whole numbers are convolutions, halves the ReLU after them." if paired else ""
    for position, what in enumerate(QUANTITIES):
        lines = {
            column: (
                tuple(1 + i * step for i in range(len(layers))),
                tuple(_quantities(layer)[position] for layer in layers),
            )
            for column, layers in spectra.items()
        }
        yield LinePanels(
            name=what.replace(" ", "-"),
            title=f"{what.capitalize()} by layer",
            caption=f"{about} Medians over the samples.".lstrip(),
            x="layer",
            y=what,
            panels=(LinePanel("", lines),),
            log=True,
        )
