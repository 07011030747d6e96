"""Turns a network into a list of operations that can be bounded; refuses any other operation by its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from robustbench_inv.certification.bounds import Input, Network, Step
from robustbench_inv.certification.operations import (
    Activation,
    Add,
    AveragePool,
    Convolution,
    Dense,
    GlobalMean,
    MaxPool,
    Operation,
    Pad,
    Reshape,
    Scale,
)
from robustbench_inv.errors import BadModel, describe_error
from robustbench_inv.models.outputs import find_logits, two_logits
from robustbench_inv.tensors import Output

__all__ = ["trace"]

ROUNDING = {torch.float32: 2.0**-24, torch.float64: 2.0**-50}
"""Unit roundoff of the judged network; of float64 eight times as large, for the rounding of the bounds themselves."""


@torch.no_grad()
def trace(module: nn.Module, shape: tuple[int, ...], num_classes: int) -> Network:
    """Return the operations of a network in evaluation mode.

    Args:
        module: maps (n, *shape) to (n, num_classes) logits.
        shape: of one input.
        num_classes: number of logits.

    Raises:
        BadModel: if it branches on its input, or has an operation without sound bounds.
    """
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    if dtype not in ROUNDING:
        raise BadModel("no certificates for this type", got=dtype, expected="float32 or float64")
    example = torch.zeros((2, *shape), dtype=dtype)
    steps, numbers = [Step(Input(), (), shape)], dict[Node, int]()
    graph = _graph(module, example, num_classes)
    constants = dict[Node, Any]()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            numbers[node] = 0
        elif node.op == "get_attr":
            constants[node] = getattr(graph, str(node.target)).detach().double()
        elif node.op == "output":
            return _finished(steps, numbers, node, num_classes, ROUNDING[dtype])
        else:
            _convert(node, steps, numbers, constants)
    raise AssertionError("a graph ends with its output")


def _graph(module: nn.Module, example: Tensor, num_classes: int) -> GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    def logits(images: Tensor) -> Tensor:
        found = two_logits(find_logits(module(images)), num_classes)
        if isinstance(found, Output) and found.score is None and found.accepted is None:
            found = found.logits
        if not isinstance(found, Tensor):
            raise BadModel("no certificates for models with a reject option")
        return found

    try:
        # "fake" tensors have no values, so that a branch on the input is an error
        how: dict[str, Any] = {
            "tracing_mode": "fake",
            "pre_dispatch": True,
            "_allow_non_fake_inputs": True,
        }
        return make_fx(logits, **how)(example)
    except BadModel:
        raise
    except Exception as error:
        raise BadModel(
            f"the network cannot be traced: {describe_error(error)}",
            remedy="certificates need operations that do not depend on values of the input",
        ) from error


def _finished(
    steps: list[Step], numbers: Mapping[Node, int], node: Node, num_classes: int, unit: float
) -> Network:
    last = node.args[0][0] if isinstance(node.args[0], tuple | list) else node.args[0]
    assert isinstance(last, Node)
    number = numbers.get(last)
    if number is None or steps[number].shape != (num_classes,):
        raise BadModel("the logits do not depend on the input", expected="a classifier")
    return Network(tuple(steps[: number + 1]), unit)


def _convert(
    node: Node, steps: list[Step], numbers: dict[Node, int], constants: dict[Node, Any]
) -> None:
    """Append the operation of a node, or compute a constant."""
    name = _name(node)
    tensors = list(node.all_input_nodes)
    if not any(arg in numbers for arg in tensors):
        constants[node] = _constant(node, constants)
        return
    if name in UNCHANGED and True not in node.args:
        numbers[node] = numbers[tensors[0]]
        return
    if name not in CONVERSIONS or any(constants.get(arg, 0) is None for arg in tensors):
        raise BadModel(f"no sound bounds for the operation {name}", remedy=REMEDY)
    value = node.meta["val"]
    if value.ndim < 2 or value.shape[0] != 2 or value.dtype not in ROUNDING:
        raise BadModel(f"the operation {name} mixes samples or types", remedy=REMEDY)
    before = [steps[numbers[arg]].shape for arg in tensors if arg in numbers]
    arguments = [constants.get(a, a) if isinstance(a, Node) else a for a in node.args]
    after = tuple(value.shape[1:])
    operation = CONVERSIONS[name](_Call(name, arguments, dict(node.kwargs), before, after))
    if operation is None:
        raise BadModel(f"no sound bounds for this form of {name}", remedy=REMEDY)
    given = tuple(numbers[arg] for arg in node.args if isinstance(arg, Node) and arg in numbers)
    steps.append(Step(operation, given, after))
    numbers[node] = len(steps) - 1
    if _in_place(node):
        numbers[tensors[0]] = numbers[node]


REMEDY = (
    "certificates need linear, convolution, batch norm, pooling, addition and the usual activations"
)


def _name(node: Node) -> str:
    target = str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet).removeprefix("aten.").rstrip("_") if packet is not None else target


def _in_place(node: Node) -> bool:
    return str(getattr(node.target, "overloadpacket", "")).endswith("_")


def _constant(node: Node, constants: Mapping[Node, Any]) -> object:
    if not callable(node.target) or not all(arg in constants for arg in node.all_input_nodes):
        return None
    if "autocast" in str(node.target):
        if len(node.args) > 2 and node.args[2]:
            raise BadModel("no certificates for a network that computes in 16 bits")
        return None
    arguments = torch.fx.node.map_arg(node.args, lambda each: constants[each])
    return node.target(*arguments, **node.kwargs)


@dataclass(frozen=True)
class _Call:
    """A call of an operation: arguments (constants as float64 tensors), and shapes before and after, of one sample."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    before: list[tuple[int, ...]]
    after: tuple[int, ...]

    def get(self, position: int, default: Any = None) -> Any:  # noqa: ANN401 - an argument of any operation
        return self.args[position] if len(self.args) > position else default

    def pair(self, position: int, default: Any = 0) -> tuple[int, int]:  # noqa: ANN401
        value = self.get(position, default)
        value = default if value in ([], None) else value
        both = (value, value) if isinstance(value, int) else tuple(value)
        return (both[0], both[-1])


def _dense(call: _Call) -> Operation | None:
    weight, bias = call.args[1], call.get(2)
    if not isinstance(weight, Tensor) or len(call.before[0]) != 1:
        return None
    return Dense(call.before[0], weight, bias=bias, terms=weight.shape[1] + 1)


def _addmm(call: _Call) -> Operation | None:
    bias, weight = call.args[0], call.args[2]
    if not isinstance(bias, Tensor) or not isinstance(weight, Tensor) or call.kwargs:
        return None
    return Dense(call.before[0], weight.T, bias=bias, terms=weight.shape[0] + 1)


def _convolution(call: _Call) -> Operation | None:
    weight, bias = call.args[1], call.get(2)
    if not isinstance(weight, Tensor) or weight.ndim != 4 or isinstance(call.get(4, 0), str):
        return None
    shaped = None if bias is None else bias[:, None, None]
    terms = prod(weight.shape[1:]) + 1
    where = call.pair(3, 1), call.pair(4), call.pair(5, 1), call.get(6, 1)
    return Convolution(call.before[0], weight, *where, bias=shaped, terms=terms)


def _batch_norm(call: _Call) -> Operation | None:
    _, weight, bias, mean, variance, training, _, eps = call.args[:8]
    if training or not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return None
    factor = (variance + eps).rsqrt()
    factor = factor if weight is None else factor * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    # torch computes the shift in float32 too: its error is that of the two terms, not of their difference
    return _scaled(call, factor, shift, terms=8, size=(mean * factor).abs() + shift.abs())


def _scaled(
    call: _Call, factor: Tensor, shift: Tensor | None, terms: int, size: Tensor | None = None
) -> Operation:
    trailing = (None,) * (len(call.before[0]) - 1) if factor.ndim == 1 else ()
    add = None if shift is None else shift[(..., *trailing)]
    error = size if size is None else size[(..., *trailing)]
    return Scale(call.before[0], factor[(..., *trailing)], error, bias=add, terms=terms)


def _constant_argument(call: _Call) -> tuple[Tensor, bool] | None:
    """Return the constant of a binary operation for one sample, and whether it comes first."""
    first = not isinstance(call.args[0], Node)
    found = call.args[0] if first else call.args[1]
    if call.kwargs or isinstance(found, Node):
        return None
    tensor = torch.as_tensor(found, dtype=torch.float64)
    if tensor.ndim > len(call.before[0]):
        if tensor.shape[0] != 1:
            return None
        tensor = tensor[0]
    return (tensor, first) if call.after == call.before[0] else None


def _sum(sign: int) -> Callable[[_Call], Operation | None]:
    def convert(call: _Call) -> Operation | None:
        if len(call.before) == 2 or (len(call.args) == 2 and call.args[0] is call.args[1]):
            same = len(set(call.before)) == 1 and call.before[0] == call.after
            return Add(sign) if same and not call.kwargs else None
        found = _constant_argument(call)
        if found is None:
            return None
        constant, first = found
        factor = torch.tensor(float(sign if first else 1), dtype=torch.float64)
        bias = constant if first else sign * constant
        return Scale(call.before[0], factor, bias=bias, terms=2)

    return convert


def _product(call: _Call) -> Operation | None:
    found = _constant_argument(call)
    return None if found is None else Scale(call.before[0], found[0], terms=2)


def _quotient(call: _Call) -> Operation | None:
    found = _constant_argument(call)
    if found is None or found[1] or not bool((found[0] != 0).all()):
        return None
    return Scale(call.before[0], 1 / found[0], terms=3)


def _padded(call: _Call) -> Operation | None:
    widths, rest = tuple(call.args[1]), call.args[2:]
    mode = [each for each in (*rest, *call.kwargs.values()) if isinstance(each, str)]
    value = [each for each in (*rest, *call.kwargs.values()) if isinstance(each, int | float)]
    if (
        any(each != "constant" for each in mode)
        or any(value)
        or len(widths) > 2 * len(call.before[0])
    ):
        return None
    return Pad(call.before[0], widths)


def _average(call: _Call) -> Operation | None:
    kernel = call.pair(1)
    stride, padding = call.pair(2, kernel), call.pair(3)
    if call.get(4, False) or not call.get(5, True) or call.get(6) or len(call.before[0]) != 3:
        return None
    return AveragePool(call.before[0], kernel, stride, padding, terms=prod(kernel) + 1)


def _adaptive_average(call: _Call) -> Operation | None:
    (rows, columns), sizes = call.pair(1), call.before[0][1:]
    if len(sizes) != 2 or sizes[0] % rows or sizes[1] % columns:
        return None
    kernel = (sizes[0] // rows, sizes[1] // columns)
    return AveragePool(call.before[0], kernel, kernel, (0, 0), terms=prod(kernel) + 1)


def _mean(call: _Call) -> Operation | None:
    """Return the mean over both positions of maps, kept or dropped."""
    shape = call.before[0]
    if len(shape) != 3 or sorted(d % 4 for d in call.get(1, ())) != [2, 3]:
        return None
    return GlobalMean(shape, call.after, terms=prod(shape[1:]) + 1)


def _max_pool(call: _Call) -> Operation | None:
    kernel = call.pair(1)
    if call.pair(4, 1) != (1, 1) or call.get(5, False) or len(call.before[0]) != 3:
        return None
    return MaxPool(kernel, call.pair(2, kernel), call.pair(3))


def _rectifier(call: _Call) -> Operation | None:
    leak = float(call.get(1, 0.01)) if call.name == "leaky_relu" else 0.0
    if not 0 <= leak <= 1:
        return None
    function = torch.relu if leak == 0 else lambda x: torch.where(x < 0, leak * x, x)
    return Activation(call.name, function, leak=leak, ulps=0 if leak == 0 else 1)


def _elu(call: _Call) -> Operation | None:
    if any(float(each) != 1 for each in call.args[1:]):
        return None
    return Activation("elu", nn.functional.elu, lambda k: [k.clamp(1e-12, 1).log()], ulps=4)


def _tanh(_: _Call) -> Operation:
    def points(k: Tensor) -> list[Tensor]:
        root = torch.atanh((1 - k).clamp(0, 1 - 1e-12).sqrt())
        return [-root, root]

    return Activation("tanh", torch.tanh, points, ulps=4)


def _sigmoid(_: _Call) -> Operation:
    def points(k: Tensor) -> list[Tensor]:
        root = torch.logit((1 + (1 - 4 * k).clamp_min(0).sqrt()) / 2, 1e-12)
        return [-root, root]

    return Activation("sigmoid", torch.sigmoid, points, ulps=4)


UNCHANGED = {
    "dropout",
    "feature_dropout",
    "contiguous",
    "detach",
    "alias",
    "identity",
    "clone",
}
"""Operations that change nothing in evaluation mode."""

CONVERSIONS: dict[str, Callable[[_Call], Operation | None]] = {
    "linear": _dense,
    "addmm": _addmm,
    "conv2d": _convolution,
    "batch_norm": _batch_norm,
    "add": _sum(1),
    "sub": _sum(-1),
    "mul": _product,
    "div": _quotient,
    "neg": lambda call: Scale(call.before[0], torch.tensor(-1.0, dtype=torch.float64)),
    **dict.fromkeys(
        ("view", "reshape", "flatten", "_unsafe_view", "squeeze", "unsqueeze"),
        lambda call: Reshape(call.before[0], call.after),
    ),
    **dict.fromkeys(("pad", "constant_pad_nd"), _padded),
    "avg_pool2d": _average,
    "adaptive_avg_pool2d": _adaptive_average,
    "mean": _mean,
    "max_pool2d": _max_pool,
    "relu": _rectifier,
    "leaky_relu": _rectifier,
    "elu": _elu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
}
