"""Finds the logits in what a network returns, its number of classes by a probe, and the likely range of its inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadModel, describe_error
from robustbench_inv.models.precision import cast_inputs, input_dtype
from robustbench_inv.tensors import Output
from robustbench_inv.torch_state import call_keeping_modes, kept_modules

__all__ = [
    "SampleInputs",
    "find_logits",
    "likely_range",
    "probe_classes",
    "probe_failure",
    "two_logits",
]

CLEARLY_BETTER = 0.1
"""Accuracy by which another range of inputs must exceed that of the data to be the likely one."""


@dataclass(frozen=True)
class SampleInputs:
    """Inputs of the data set that a network is evaluated on, to see what it returns.

    Args:
        images: (n, …).
        labels: (n,) int64.
        dataset: name of the data set.
        bounds: smallest and largest value of an input element.
    """

    images: Tensor
    labels: Tensor
    dataset: str
    bounds: tuple[float, float]


def find_logits(answer: object) -> object:
    """Return the logits among what a network returns.

    They are the tensor itself, the field ``logits`` of an object, named tuple or dictionary, or the only (n, classes)
    tensor of a tuple, list or dictionary.

    Raises:
        BadModel: if several tensors could be the logits, or none.
    """
    if isinstance(answer, Tensor | Output):
        return answer
    by_name = isinstance(answer, Mapping)
    named = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts = list(answer.values()) if isinstance(answer, Mapping) else answer
    if not isinstance(parts, list | tuple):
        return answer
    tensors = [each for each in parts if isinstance(each, Tensor)]
    found = [each for each in tensors if each.ndim == 2 and each.is_floating_point()]
    if len(parts) == 1 and len(tensors) == 1:
        return tensors[0]
    if len(found) == 1:
        return found[0]
    raise BadModel(
        "it is not clear which of the model's outputs are the logits",
        got=f"a {'dictionary' if by_name else 'sequence'} with {_shapes(parts)}",
        expected="one tensor of shape (n, classes)",
        remedy='return the logits alone, or {"logits": …}',
    )


def two_logits(logits: object, num_classes: int) -> object:
    """Return the (n, 2) logits of a binary classifier that returns one logit an input, (n,) or (n, 1).

    The classes have the logits 0 and z, whose softmax output is the sigmoid of z. Other values are returned unchanged.
    """
    if num_classes != 2 or not isinstance(logits, Tensor) or not _is_single(logits):
        return logits
    single = logits.reshape(-1)
    return torch.stack([torch.zeros_like(single), single], 1)


def probe_classes(module: nn.Module, probe: SampleInputs | None, name: str) -> int | None:
    """Return a network's number of classes, seen on a few inputs; None without them, or if it fails on them.

    Raises:
        BadModel: if it returns one number in [0, 1] an input, which is no logit but a probability, or an integer.
    """
    logits = None if probe is None else _logits(module, probe.images[:16])
    if not isinstance(logits, Tensor) or logits.ndim not in (1, 2):
        return None
    if not _is_single(logits):
        return logits.shape[1] if logits.ndim == 2 else None
    if not logits.is_floating_point():
        raise BadModel(
            f"{name} returns one integer for each input",
            got="a class, as it seems",
            expected="logits of shape (n, classes)",
            remedy="return the network's last layer, without argmax",
        )
    inside = bool(((logits >= 0) & (logits <= 1)).all())
    if inside and getattr(module, "output", None) != "logit":
        raise BadModel(
            f"{name} returns one number in [0, 1] for each input",
            got="a probability, as it seems",
            expected="a logit, positive for class 1",
            remedy='remove the sigmoid; if it is a logit, set model.output = "logit"',
        )
    return 2


def likely_range(module: nn.Module, probe: SampleInputs | None) -> str:
    """Return what to type for a network without bounds: those of the data, if it predicts well inside them."""
    if probe is None:
        return "set model.bounds = (0.0, 1.0) and normalise inside the model"
    low, high = probe.bounds
    if failure := probe_failure(module, probe):
        return f"set model.bounds = ({low:g}, {high:g}), the range of {probe.dataset}; it also fails {failure}"
    rates = {how: _accuracy(module, images, probe.labels) for how, images in _scaled(probe)}
    best, (_, own) = max(rates, key=lambda how: rates[how]), next(iter(rates.items()))
    if rates[best] > own + CLEARLY_BETTER:
        return (
            f"it predicts {rates[best]:.0%} of {len(probe.labels)} images of {probe.dataset} right if they are "
            f"{best}, and {own:.0%} as they are: do that inside the model, and set model.bounds = ({low:g}, {high:g})"
        )
    return (
        f"if it takes the images of {probe.dataset} as they are ({own:.0%} of {len(probe.labels)} predicted right), "
        f"set model.bounds = ({low:g}, {high:g}) or type its name as FILE.py:FUNCTION:bounds={low:g}..{high:g}"
    )


def _scaled(probe: SampleInputs) -> Sequence[tuple[str, Tensor]]:
    """Return the images as they are, and in other ranges that networks are trained on."""
    (low, high), images = probe.bounds, probe.images
    unit = (images - low) / (high - low)
    axes = [0, *range(2, images.ndim)] if images.ndim > 2 else [0]
    mean, deviation = unit.mean(axes, keepdim=True), unit.std(axes, keepdim=True)
    return (
        ("as they are", images),
        ("mapped to [0, 1]", unit),
        ("mapped to [-1, 1]", 2 * unit - 1),
        ("mapped to [0, 255]", 255 * unit),
        ("normalised by mean and deviation", (unit - mean) / deviation.clamp(min=1e-6)),
    )


def _accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    logits = _logits(module, images)
    if not isinstance(logits, Tensor) or len(logits) != len(labels):
        return 0.0
    shown = two_logits(logits, 2)
    if not isinstance(shown, Tensor) or shown.ndim != 2:
        return 0.0
    return float((shown.argmax(1).cpu() == labels.cpu()).float().mean())


def probe_failure(module: nn.Module, probe: SampleInputs | None) -> str:
    """Return the error that a network raises on a few inputs; empty if it raises none, or without inputs."""
    if probe is None:
        return ""
    try:
        _answer(module, probe.images[:16])
    except Exception as error:
        return f"on images of {probe.dataset}: {describe_error(error)}"
    return ""


def _logits(module: nn.Module, images: Tensor) -> object:
    """Return what a network returns for images; None if it fails, as the evaluation will report."""
    try:
        return _answer(module, images)
    except BadModel:
        raise
    except Exception:
        return None


def _answer(module: nn.Module, images: Tensor) -> object:
    weights = chain(module.parameters(), module.buffers())
    device = next((each.device for each in weights), images.device)
    given = cast_inputs(images.to(device, input_dtype(module)), module)
    with kept_modules([module]), torch.no_grad():
        answer = find_logits(call_keeping_modes(module, given))
    return answer.logits if isinstance(answer, Output) else answer


def _is_single(logits: Tensor) -> bool:
    return logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1)


def _shapes(parts: Sequence[object]) -> str:
    return ", ".join(
        str(tuple(each.shape)) if isinstance(each, Tensor) else type(each).__name__
        for each in parts
    )
