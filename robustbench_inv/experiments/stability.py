"""Stability of a network's inverse: singular values of its linearisation, layer by layer."""

import fnmatch
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf, nan
from pathlib import Path
from statistics import fmean, median, stdev

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from robustbench_inv.catalogue.datasets import EVALUATION_DATASETS, load_dataset
from robustbench_inv.catalogue.locate import entries
from robustbench_inv.catalogue.models import LoadedModel, load_model
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadModel, UsageError
from robustbench_inv.experiments.preimages import KINDS, Kind, hooked, relu_layers
from robustbench_inv.experiments.protocol import ExperimentRequest, counted_lines, load_samples
from robustbench_inv.foreign import foreign_call
from robustbench_inv.models.conditional_flow import ConditionalFlow, bits_per_dimension
from robustbench_inv.models.iresnet import InvertibleResNet, residual_blocks
from robustbench_inv.models.layers.bijection import Bijection, Chain, FactorOut
from robustbench_inv.models.protocol import device_of
from robustbench_inv.models.wrapping import cast_module
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    LinePanels,
    MeasuredNumber,
)

__all__ = [
    "Analysis",
    "LayerSpectrum",
    "analyse_model",
    "bits_per_dimension_numbers",
    "layer_jacobians",
    "linear_units",
    "measure_residual_networks",
    "measure_spectra",
    "network_numbers",
]


@dataclass(frozen=True)
class LayerSpectrum:
    """Singular values of the linearisation of a network up to one layer.

    Args:
        name: path of the layer in the network.
        kind: its class.
        size: number of elements of its output.
        inputs: number of elements d of an input.
        values: for each sample the singular values in descending order, min(size, d).
    """

    name: str
    kind: str
    size: int
    inputs: int
    values: tuple[tuple[float, ...], ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Number of singular values of each sample that are not zero up to rounding."""
        limit = max(self.size, self.inputs) * float(np.finfo(np.float64).eps)
        return tuple(sum(value > limit * values[0] for value in values) for values in self.values)

    @property
    def conditions(self) -> tuple[float, ...]:
        """Largest over smallest non-zero singular value of each sample; 0 if all are zero."""
        pairs = zip(self.values, self.ranks, strict=True)
        return tuple(values[0] / values[rank - 1] if rank else 0.0 for values, rank in pairs)

    @property
    def median_values(self) -> tuple[float, ...]:
        """The median over the samples of each singular value."""
        return tuple(median(each) for each in zip(*self.values, strict=True))


def measure_spectra(
    network: nn.Module,
    inputs: Tensor,
    report: Callable[[str], object] = str,
    pattern: str = "*",
) -> list[LayerSpectrum]:
    """Return the singular values of the linearisation A_P up to each layer, in float64.

    Args:
        network: in evaluation mode and float64, of any layers that support forward derivatives.
        inputs: (n, …) samples.
        report: callback for progress, one line per sample.
        pattern: of the names of the layers to measure, as in a shell.

    References:
        Behrmann, thesis, section 3.4.2.
    """
    spectra: dict[str, list[LayerSpectrum]] = {}
    names = [name for name, _ in linear_units(network) if fnmatch.fnmatchcase(name, pattern)]
    for number, x in enumerate(inputs, 1):
        for position, name in enumerate(names, 1):
            # one layer at a time: the matrices of all layers of an image network do not fit into memory
            for call, (kind, jacobian) in enumerate(layer_jacobians(network, x, name)):
                title = f"{name} (call {call + 1})" if call else name
                values = _singular_values(jacobian)
                size, d = jacobian.shape
                layer = LayerSpectrum(title, kind, size, d, (values,))
                spectra.setdefault(title, []).append(layer)
            report(f"sample {number} of {len(inputs)}, layer {position} of {len(names)}: {name}")
    return [
        replace(first, values=tuple(sample.values[0] for sample in samples))
        for samples in spectra.values()
        for first in samples[:1]
    ]


def _singular_values(matrix: Tensor) -> tuple[float, ...]:
    """Return all min(m, n) singular values of a matrix (m, n), of which ReLU made many rows zero."""
    rows = matrix[matrix.any(dim=1)]
    if rows.shape[0] > 2 * rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r")[1]
    values: list[float] = torch.linalg.svdvals(rows).tolist()
    return (*values, *[0.0] * (min(matrix.shape) - len(values)))


class _LastCall(Exception):
    """The layer will not be called again."""


@torch.no_grad()
def layer_jacobians(network: nn.Module, x: Tensor, name: str) -> list[tuple[str, Tensor]]:
    """Return class and ∂(output of the layer)/∂x, (size, d), for each call of one layer.

    One forward pass of d copies of x carries the d derivatives, up to the last call of the layer. A layer that does not
    depend on x is left out.

    Args:
        network: in evaluation mode.
        x: one input, of d elements.
        name: of the layer, as ``linear_units`` yields it.

    Raises:
        BadModel: if a layer has no forward derivative.
    """
    d, found, calls = x.numel(), list[tuple[str, Tensor]](), [0, 0]
    layer = dict(linear_units(network))[name]

    def count(*_: object) -> None:
        calls[0] += 1

    def keep(module: nn.Module, _: object, output: object) -> None:
        calls[1] += 1
        first = output[0] if isinstance(output, tuple) else output
        tangent = _tangent(first) if isinstance(first, Tensor) else None
        if tangent is not None:
            found.append((type(module).__name__, tangent.flatten(1).T.clone()))
        if calls[0] == calls[1]:
            raise _LastCall

    with hooked([(layer, count)]):
        network(x[None])
    with (
        suppress(_LastCall),
        warnings.catch_warnings(),  # of torch, about its own derivatives
        forward_ad.dual_level(),
        hooked([(layer, keep)]),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)
        units = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, *x.shape)
        try:
            network(_dual(x.expand(d, *x.shape).clone(), units))
        except NotImplementedError as error:
            raise BadModel(
                "the network cannot be linearised",
                got=str(error).splitlines()[0],
                expected="layers with forward derivatives",
            ) from error
    return found


def _tangent(value: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    return tangent


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


def linear_units(network: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a network with their names: modules without parts, and whole invertible layers."""
    whole = isinstance(network, Bijection) and not isinstance(network, Chain | FactorOut)
    children = list(network.named_children())
    if whole or not children:
        if not isinstance(network, nn.Identity | nn.Flatten | nn.Dropout):
            yield path or type(network).__name__, network
        return
    for name, child in children:
        yield from linear_units(child, f"{path}.{name}" if path else name)


@dataclass(frozen=True)
class Analysis:
    """What ``invbench analyse`` found out about one model.

    Args:
        model: its name.
        dataset: of the inputs.
        samples: their number.
        layers: singular values by layer.
        preimages: by ReLU layer the kind for each sample.
    """

    model: str
    dataset: str
    samples: int
    layers: Sequence[LayerSpectrum]
    preimages: Mapping[str, Sequence[Kind]]

    def to_json(self) -> dict[str, object]:
        """Return plain values; singular values are medians over the samples."""
        layers = [
            {
                "layer": layer.name,
                "kind": layer.kind,
                "outputs": layer.size,
                "nonzero": median(layer.ranks),
                "condition": median(layer.conditions),
                "singular_values": list(layer.median_values),
            }
            for layer in self.layers
        ]
        preimages = {
            name: {kind: list(kinds).count(kind) for kind in KINDS}
            for name, kinds in self.preimages.items()
        }
        about = {"model": self.model, "dataset": self.dataset, "samples": self.samples}
        return {**about, "layers": layers, "preimages": preimages}

    def to_text(self) -> str:
        """Return a table of the layers, and a line for each ReLU layer."""
        lines = [f"{self.model} at {self.samples} inputs of {self.dataset}: medians", ""]
        heads = ("layer", "kind", "outputs", "non-zero", "largest", "smallest", "condition")
        rows = [heads, *map(_layer_row, self.layers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        for name, kinds in self.preimages.items():
            counts = ", ".join(f"{list(kinds).count(kind)} {kind}" for kind in KINDS)
            lines.append(f"preimages of {name} and ReLU: {counts}")
        return "\n".join(lines)


def _layer_row(layer: LayerSpectrum) -> tuple[str, ...]:
    rank = int(median(layer.ranks))
    values = layer.median_values
    smallest = values[rank - 1] if rank else 0.0
    numbers = (values[0], smallest, median(layer.conditions))
    return (layer.name, layer.kind, str(layer.size), str(rank), *(f"{v:.3g}" for v in numbers))


def analyse_model(
    model: LoadedModel,
    dataset: str | None = None,
    samples: int | str | None = 10,
    data_root: Path | None = None,
    *,
    report: Callable[[str], object] = str,
    pattern: str = "*",
) -> Analysis:
    """Measure the singular values of a model's linearisation by layer, and the preimages of its ReLU layers.

    Args:
        model: a network that is differentiable in its inputs.
        dataset: of the inputs; None for the model's own.
        samples: selection of samples, as for ``--samples``.
        data_root: folder of the data, if they were not fetched.
        report: callback for progress, one line per call.
        pattern: of the names of the layers to measure, as in a shell.

    Raises:
        BadModel: for a model that is no network, or has no chosen layer.
    """
    module = getattr(model.classifier, "module", model.classifier)
    if not isinstance(module, nn.Module):
        raise BadModel(
            "only networks can be analysed", got=type(module).__name__, expected="a torch.nn.Module"
        )
    network = cast_module(module, "float64")
    assert isinstance(network, nn.Module)
    network.eval().requires_grad_(False)
    names = [name for name, _ in linear_units(network)]
    if not fnmatch.filter(names, pattern):
        raise BadModel("no layer matches", got=pattern, expected="a pattern of " + ", ".join(names))
    card = str(model.card.get("dataset") or "")
    if not dataset and not card:
        raise UsageError(f"the card of {model.name} names no data set", remedy="--dataset NAME")
    data = load_dataset(dataset or EVALUATION_DATASETS.get(card, card), data_root=data_root)
    ids = torch.tensor(select_samples(data.labels, samples))
    inputs = data.batch(ids)[0].double().to(device_of(model.classifier))
    with foreign_call(model.name):
        layers = measure_spectra(network, inputs, report, pattern)
        preimages: dict[str, list[Kind]] = {}
        for x in inputs:
            for layer in relu_layers(network, x):
                if fnmatch.fnmatchcase(layer.name, pattern):
                    preimages.setdefault(layer.name, []).append(layer.kind)
    return Analysis(model.name, data.name, len(inputs), layers, preimages)


@torch.no_grad()
def measure_residual_networks(
    request: ExperimentRequest,
    models: Mapping[str, str],
    iterations: Sequence[int] = (),
    rows: Sequence[str] = ("Error",),
) -> ExperimentResult:
    """Return error, spectral norms and reconstruction errors of invertible residual networks.

    Args:
        request: held-out data and samples; reconstructions use the first 100 of them.
        models: by column, the name of an ``InvertibleResNet`` or of a density network.
        iterations: fixed-point iterations per block after which images are compared.
        rows: rows that a model without weights keeps, with nan.

    References:
        Behrmann, thesis, table 4.1, figures 4.2 to 4.4 and table 5.1.
    """
    dataset = request.open_dataset()
    ids = request.draw(dataset)
    data, numbers, digests = load_samples(dataset, ids), list[MeasuredNumber](), {}
    for column, name in models.items():
        if name not in entries("models"):
            request.report(f"{name} is not trained yet")
            numbers += [MeasuredNumber(row, column, nan) for row in rows]
            continue
        model = load_model(name, device=request.device)
        digests[model.name] = model.digest
        network = getattr(model.classifier, "module", model.classifier)
        if isinstance(network, InvertibleResNet):
            wrong = model(data.images).logits.argmax(1) != data.labels
            numbers.append(MeasuredNumber.of("Error", column, wrong.numpy()))
            few = data.images[:100]
            numbers += network_numbers(network, few, column, iterations)
            radii = network.certified_radii(data.images, data.labels)
            numbers.append(
                MeasuredNumber("Median certified l2 radius", column, float(radii.median()))
            )
        if isinstance(network, ConditionalFlow):
            numbers += bits_per_dimension_numbers(network, data.images, column)
    lines = _reconstruction(numbers) if iterations else ()
    return ExperimentResult(dataset.name, len(ids), digests, tuple(numbers), lines=lines)


def _reconstruction(numbers: Sequence[MeasuredNumber]) -> tuple[LinePanels, ...]:
    panel = counted_lines("Largest pixel error", numbers)
    if not panel.lines:
        return ()
    return (
        LinePanels(
            name="reconstruction",
            title="Error of reconstructed images by number of fixed-point iterations",
            caption="Largest error of a pixel over the first 100 images, for pixels in [0, 1]. A network whose blocks contract by c gains a factor of at least 1/c an iteration.",
            x="fixed-point iterations per block",
            y="largest pixel error",
            panels=(panel,),
            log=True,
        ),
    )


def bits_per_dimension_numbers(
    network: ConditionalFlow, images: Tensor, column: str
) -> list[MeasuredNumber]:
    """Return the bits per dimension of dequantised images, and their standard error.

    Each of at least ten batches has noise and probes of its own, so that the deviation of the batches contains the error
    of the log-determinants: one set of probes for all images would make the same error on each of them.
    """
    blocks, bits = list(residual_blocks(network)), list[float]()
    seeds = iter(range(2**20, 2**30))  # beyond those of the blocks
    own = [block.seed for block in blocks]
    for batch in torch.tensor_split(images, min(len(images), max(10, len(images) // 100))):
        for block in blocks:
            block.seed = next(seeds)
        noise = torch.rand(batch.shape, generator=torch.Generator().manual_seed(next(seeds))) - 0.5
        likelihoods = network.marginal(batch + noise / 255)
        bits.append(float(bits_per_dimension(likelihoods, batch[0].numel()).mean()))
    for block, seed in zip(blocks, own, strict=True):
        block.seed = seed
    error = stdev(bits) / len(bits) ** 0.5 if len(bits) > 1 else nan
    return [
        MeasuredNumber("Bits per dimension", column, fmean(bits)),
        MeasuredNumber("Standard error of the bits per dimension", column, error),
    ]


@torch.no_grad()
def network_numbers(
    network: InvertibleResNet, images: Tensor, column: str, iterations: Sequence[int]
) -> Iterator[MeasuredNumber]:
    """Yield spectral norms and, after each number of iterations, the largest error of a reconstructed pixel."""
    blocks = list(residual_blocks(network))
    norms = [layer.operator_norm() for block in blocks for layer in block.layers()]
    yield MeasuredNumber("Largest spectral norm of a convolution", column, max(norms))
    yield MeasuredNumber("Smallest spectral norm of a convolution", column, min(norms))
    largest = max(block.lipschitz() for block in blocks)
    yield MeasuredNumber("Largest Lipschitz constant of a block", column, largest)
    code = network.encode(images)
    for count in iterations:
        errors = (network.decode_after(code, count) - images).abs()
        error = float(errors.nan_to_num(nan=inf).max())  # nan: infinity less infinity
        times = "iteration" if count == 1 else "iterations"
        yield MeasuredNumber(f"Largest pixel error, {count} {times}", column, error)
