"""Stability of a network's inverse: singular values of its linearisation, layer by layer."""

import fnmatch
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from robustbench_inv.catalogue.datasets import evaluation_dataset, load_dataset
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadModel, UsageError
from robustbench_inv.experiments.preimages import KINDS, Kind, hooked, relu_layers
from robustbench_inv.foreign import foreign_call
from robustbench_inv.models.layers.bijection import Bijection, Chain, FactorOut
from robustbench_inv.models.protocol import device_of
from robustbench_inv.models.wrapping import cast_module

__all__ = [
    "Analysis",
    "LayerSpectrum",
    "analyse_model",
    "float64_network",
    "linear_units",
    "measure_spectra",
    "visit_jacobians",
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
    units = dict(linear_units(network))
    names = fnmatch.filter(units, pattern)
    for number, x in enumerate(inputs, 1):

        def measure(name: str, call: int, jacobian: Tensor, number: int = number) -> None:
            title = f"{name} (call {call})" if call > 1 else name
            values, (size, d) = _singular_values(jacobian), jacobian.shape
            layer = LayerSpectrum(title, type(units[name]).__name__, size, d, (values,))
            spectra.setdefault(title, []).append(layer)
            position = names.index(name) + 1
            report(f"sample {number} of {len(inputs)}, layer {position} of {len(names)}: {name}")

        visit_jacobians(network, x, names, measure)
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
    """The layers will not be called again."""


@torch.no_grad()
def visit_jacobians(
    network: nn.Module,
    x: Tensor,
    names: Collection[str],
    visit: Callable[[str, int, Tensor], object],
) -> None:
    """Call a function with name, number of the call and ∂(output of the layer)/∂x, (size, d), for each call of layers.

    One forward pass of d copies of x carries the d derivatives, up to the last call. A matrix is passed on as soon as it
    is there, since those of all layers of an image network do not fit into memory. A layer that does not depend on x is
    left out.

    Args:
        network: in evaluation mode.
        x: one input, of d elements.
        names: of the layers, as ``linear_units`` yields them.
        visit: the function.

    Raises:
        BadModel: if a layer has no forward derivative.
    """
    d, left, calls = x.numel(), [0], Counter[str]()

    def count(*_: object) -> None:
        left[0] += 1

    def keep(name: str, *call: object) -> None:
        output = call[-1]
        first = output[0] if isinstance(output, tuple) else output
        tangent = _tangent(first) if isinstance(first, Tensor) else None
        if tangent is not None:
            calls[name] += 1
            visit(name, calls[name], tangent.flatten(1).T)
        left[0] -= 1
        if not left[0]:
            raise _LastCall

    layers = [(name, unit) for name, unit in linear_units(network) if name in names]
    with hooked([(unit, count) for _, unit in layers]):
        network(x[None])
    with (
        suppress(_LastCall),
        warnings.catch_warnings(),  # of torch, about its own derivatives
        forward_ad.dual_level(),
        hooked([(unit, partial(keep, name)) for name, unit in layers]),
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


def float64_network(model: LoadedModel) -> nn.Module:
    """Return a model's network in float64 and evaluation mode, without gradients of its weights.

    Raises:
        BadModel: for a model that is no network.
    """
    module = getattr(model.classifier, "module", model.classifier)
    if not isinstance(module, nn.Module):
        raise BadModel(
            "only networks can be analysed", got=type(module).__name__, expected="a torch.nn.Module"
        )
    network = cast_module(module, "float64")
    assert isinstance(network, nn.Module)
    return network.eval().requires_grad_(False)


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
    network = float64_network(model)
    names = [name for name, _ in linear_units(network)]
    if not fnmatch.filter(names, pattern):
        raise BadModel("no layer matches", got=pattern, expected="a pattern of " + ", ".join(names))
    own = evaluation_dataset(model.card)
    if not dataset and not own:
        raise UsageError(f"the card of {model.name} names no data set", remedy="--dataset NAME")
    data = load_dataset(dataset or own, data_root=data_root)
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
