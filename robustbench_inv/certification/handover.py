"""Hand-over to external verifiers: networks in ONNX, one property in VNN-LIB for each sample, and their answers."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_inv.certification.bounds import Network, Region
from robustbench_inv.certification.operations import (
    Activation,
    Add,
    AveragePool,
    Convolution,
    Dense,
    GlobalMean,
    MaxPool,
    Pad,
    Reshape,
    Scale,
)
from robustbench_inv.errors import BadModel, BadResults, import_library
from robustbench_inv.results.files import read_versioned, write_json

__all__ = ["ANSWERS", "Answers", "property_text", "read_answers", "write_onnx", "write_properties"]

Array = NDArray[Any]

PROPERTIES, NETWORK = "properties.json", "network.onnx"

ANSWERS = {
    **dict.fromkeys(("unsat", "holds", "verified"), "robust"),
    **dict.fromkeys(("sat", "violated", "falsified"), "candidate"),
}
"""First words of a result as VNN-COMP defines them; any other, such as unknown and timeout, leaves the sample open."""

Answers = list[tuple[int, float, str, Tensor | None]]
"""Sample, eps, ``robust``, ``candidate`` or ``open``, and the flat counterexample of a candidate."""


def property_text(low: Tensor, high: Tensor, label: int, num_classes: int, title: str) -> str:
    """Return the property that some input of a box is misclassified, which a solver shall refute.

    Args:
        low: (d,) smallest values of the inputs.
        high: (d,) largest values.
        label: the class that the model shall predict.
        num_classes: number of logits.
        title: for the first line.

    References:
        VNN-LIB, as the competition VNN-COMP uses it: inputs X_i, logits Y_j, unsat if the sample is robust.
    """
    names = [*(f"X_{i}" for i in range(len(low))), *(f"Y_{j}" for j in range(num_classes))]
    box = [
        [f"{value:.12f}" for value in pair]
        for pair in zip(low.tolist(), high.tolist(), strict=True)
    ]
    others = (j for j in range(num_classes) if j != label)
    lines = [
        f"; {title}",
        *(f"(declare-const {name} Real)" for name in names),
        *(
            f"(assert (>= {name} {a}))\n(assert (<= {name} {b}))"
            for name, (a, b) in zip(names, box, strict=False)
        ),
        "(assert (or " + " ".join(f"(and (>= Y_{j} Y_{label}))" for j in others) + "))",
    ]
    return "\n".join(lines) + "\n"


def write_properties(
    folder: Path,
    network: Network,
    region: Region,
    eps: float,
    labels: Mapping[int, int],
    model: str,
) -> None:
    """Add the network, and a property for each of n samples, to a folder.

    A solver writes the answer to ``NAME.vnnlib`` into ``NAME.result``.

    Args:
        folder: it is made if it does not exist.
        network: the operations.
        region: the inputs within eps of each sample, in linf.
        eps: as the user wrote it.
        labels: of each sample, by id in the order of the region.
        model: digest of the model.

    Raises:
        MissingExtra: if the package onnx is not installed.
        BadModel: if an operation has no form in ONNX, or the norm is not linf.
        BadResults: if the folder holds properties of another model.
    """
    if region.norm != "linf":
        raise BadModel("VNN-LIB has no balls of this norm", got=region.norm, expected="linf")
    known = _listed(folder, model) if (folder / PROPERTIES).exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / NETWORK).exists():
        write_onnx(folder / NETWORK, network, region.clean[:1])
    low, high = (each.flatten(1) for each in region.box)
    count = network.steps[-1].shape[0]
    for row, (sample, label) in enumerate(labels.items()):
        name = f"sample{sample}-eps{eps:g}"
        text = property_text(
            low[row], high[row], label, count, f"sample {sample}, label {label}, eps {eps}"
        )
        (folder / f"{name}.vnnlib").write_text(text)
        known[name] = {"sample": sample, "eps": eps}
    write_json(folder / PROPERTIES, {"version": 2, "model": model, "properties": known})
    lines = [f"{NETWORK},{name}.vnnlib" for name in known]
    (folder / "instances.csv").write_text("\n".join(lines) + "\n")


def read_answers(folder: Path, model: str) -> Answers:
    """Return what a solver wrote about the properties of a folder; those without a result are left out.

    A result is ``unsat``, ``sat``, ``unknown`` or another word on the first line; after ``sat``, pairs such as
    ``(X_0 0.25)`` are the counterexample.

    Raises:
        BadResults: if the folder has no properties, or those of another model, or a counterexample is incomplete.
    """
    found: Answers = []
    for name, about in _listed(folder, model).items():
        path = folder / f"{name}.result"
        if path.exists():
            status, image = _parsed(path)
            found.append((int(about["sample"]), float(about["eps"]), status, image))
    return found


def _listed(folder: Path, model: str) -> dict[str, Any]:
    if not (folder / PROPERTIES).exists():
        raise BadResults(
            "no exported properties", got=str(folder), remedy="certify with --export FOLDER first"
        )
    listed = read_versioned(folder / PROPERTIES)
    if listed.get("model") != model or not isinstance(listed.get("properties"), dict):
        raise BadResults(
            f"{folder} holds properties of another model", remedy="export into another folder"
        )
    return dict(listed["properties"])


def _parsed(path: Path) -> tuple[str, Tensor | None]:
    """Return the status of a result, and the inputs of its counterexample."""
    text = path.read_text(errors="replace").strip().lower()
    status = ANSWERS.get(re.split(r"[\s(]", text, maxsplit=1)[0], "open")
    pairs = {int(i): float(v) for i, v in re.findall(r"\(\s*x_(\d+)\s+([^\s()]+)\s*\)", text)}
    if status != "candidate":
        return status, None
    if not pairs or sorted(pairs) != list(range(len(pairs))):
        raise BadResults(
            f"{path} has no counterexample", expected="a pair (X_i value) for each input"
        )
    return status, torch.tensor([pairs[i] for i in range(len(pairs))], dtype=torch.float64)


def write_onnx(path: Path, network: Network, example: Tensor) -> None:
    """Write a network as ONNX, float32, for one input; its logits are compared with those of the network.

    Args:
        path: the file.
        network: the operations.
        example: (1, …) an input for the comparison.

    Raises:
        MissingExtra: if the package onnx is not installed.
        BadModel: if an operation has no form in ONNX, or the logits differ.
    """
    onnx = import_library("onnx", "verify")
    nodes, tensors = list[Any](), list[Any]()
    for number, step in enumerate(network.steps[1:], 1):
        arguments = [f"v{i}" for i in step.arguments]
        forms = list(_forms(step.operation, step.shape))
        for place, (kind, constants, options) in enumerate(forms, 1):
            names = [*arguments, *(_named(each, onnx, tensors) for each in constants)]
            arguments = [f"v{number}" if place == len(forms) else f"v{number}_{place}"]
            nodes.append(onnx.helper.make_node(kind, names, arguments, **options))
    model = _model(onnx, network, nodes, tensors)
    onnx.checker.check_model(model)
    runner = import_library("onnx.reference", "verify").ReferenceEvaluator(model)
    logits = runner.run(None, {"v0": example.float().numpy()})[0]
    if np.abs(logits - network(example).numpy()).max() > 1e-3 * max(1.0, np.abs(logits).max()):
        raise BadModel("the exported network computes other logits than the model")
    path.write_bytes(model.SerializeToString())


def _named(value: Array, onnx: ModuleType, tensors: list[Any]) -> str:
    """Return the name of a constant, which becomes a tensor of the file."""
    name = f"c{len(tensors)}"
    tensors.append(onnx.numpy_helper.from_array(value, name))
    return name


def _model(onnx: ModuleType, network: Network, nodes: list[Any], tensors: list[Any]) -> Any:  # noqa: ANN401
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    first, last = (network.steps[i].shape for i in (0, -1))
    inputs = [make.make_tensor_value_info("v0", kind, [1, *first])]
    outputs = [make.make_tensor_value_info(f"v{len(network.steps) - 1}", kind, [1, *last])]
    graph = make.make_graph(nodes, "network", inputs, outputs, tensors)
    opset = [make.make_opsetid("", 13)]
    return make.make_model(graph, opset_imports=opset, ir_version=8)


Form = tuple[str, list[Array], dict[str, Any]]
"""Name of an ONNX operation, its constants, and its attributes."""


def _forms(operation: object, shape: tuple[int, ...]) -> Iterator[Form]:
    """Yield the ONNX operations of a step, each of which takes the value of the one before.

    Raises:
        BadModel: if there is no form.
    """
    if isinstance(operation, Add):
        yield ("Add" if operation.sign > 0 else "Sub"), [], {}
    elif isinstance(operation, Activation):
        leaky = {"alpha": operation.leak} if operation.name == "leaky_relu" else {}
        yield ACTIVATIONS[operation.name], [], leaky
    elif isinstance(operation, AveragePool):
        windows = _windows(operation.kernel, operation.stride, operation.padding)
        yield "AveragePool", [], {**windows, "count_include_pad": 1}
    elif isinstance(operation, MaxPool):
        yield "MaxPool", [], _windows(operation.kernel, operation.stride, operation.padding)
    elif isinstance(operation, Dense | Convolution | Scale):
        yield from _weighted(operation, shape)
    elif isinstance(operation, Reshape | GlobalMean | Pad):
        yield from _shaped(operation, shape)
    else:
        raise BadModel("no form in ONNX", got=type(operation).__name__)


ACTIVATIONS = {
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
}


def _weighted(operation: Dense | Convolution | Scale, shape: tuple[int, ...]) -> Iterator[Form]:
    bias = [] if operation.bias is None else [operation.bias.float().numpy()]
    if isinstance(operation, Dense):
        offset = bias or [np.zeros(shape, np.float32)]
        yield "Gemm", [operation.weight.float().numpy(), *offset], {"transB": 1}
    elif isinstance(operation, Convolution):
        kernel = tuple(operation.weight.shape[2:])
        windows = _windows(kernel, operation.stride, operation.padding)
        more = {"dilations": list(operation.dilation), "group": operation.groups}
        offset = [each.reshape(-1) for each in bias]
        yield "Conv", [operation.weight.float().numpy(), *offset], {**windows, **more}
    else:
        yield "Mul", [operation.factor.float().numpy()], {}
        if bias:
            yield "Add", bias, {}


def _shaped(operation: Reshape | GlobalMean | Pad, shape: tuple[int, ...]) -> Iterator[Form]:
    if isinstance(operation, Pad):
        pairs = list(zip(operation.widths[::2], operation.widths[1::2], strict=True))
        pairs = [(0, 0)] * (1 + len(shape) - len(pairs)) + pairs[::-1]
        yield "Pad", [np.array([pair[i] for i in (0, 1) for pair in pairs], np.int64)], {}
        return
    if isinstance(operation, GlobalMean):
        yield "ReduceMean", [], {"axes": [2, 3]}
    yield "Reshape", [np.array([1, *shape], np.int64)], {}


def _windows(
    kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]
) -> dict[str, list[int]]:
    return {"kernel_shape": list(kernel), "strides": list(stride), "pads": [*padding, *padding]}
