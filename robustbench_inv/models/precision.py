"""Models that compute in 16 bits: images and outputs stay float32, and gradients stay inside their range."""

from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robustbench_inv.tensors import HALF_PRECISION, Output, broadcast, graph_dtypes

__all__ = ["cast_inputs", "input_dtype", "scale_gradients"]

MAX_EXPONENT = 120
"""Largest power of two by which a gradient is scaled; float32 ends at 127."""

_half_inside: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Does a network compute a gradient in 16 bits? Its first graph shows it."""


def input_dtype(module: nn.Module) -> torch.dtype:
    """Return the type of the images for a network: float64 if its first weight is, else float32.

    Images of 16 bits are not used: rounding to 8 or 11 binary digits moves them out of a budget.
    """
    return torch.float64 if _weight_dtype(module) == torch.float64 else torch.float32


def cast_inputs(images: Tensor, module: nn.Module) -> Tensor:
    """Return (n, …) images in the type of a network's weights if that has 16 bits; else unchanged."""
    dtype = _weight_dtype(module)
    return images.to(dtype) if dtype in HALF_PRECISION else images


def scale_gradients(module: nn.Module, images: Tensor, output: Output) -> None:
    """Keep the gradients that flow from an output back to its images inside the range of a type of 16 bits.

    A gradient below 6e-8 is 0 in float16: cross-entropy of a confident prediction had none. Each sample's gradient is
    multiplied by the power of two that makes its largest element about 1, and divided by it at the images. Nothing
    changes for networks without 16 bits, and for those that return a score as well as logits.

    Args:
        module: the network.
        images: (n, …) its input, before any cast; the tensor that the network got.
        output: its output.
    """
    logits = output.logits
    if not (images.requires_grad and logits.requires_grad and output.score is None):
        return
    if module not in _half_inside:
        _half_inside[module] = not graph_dtypes(logits).isdisjoint(HALF_PRECISION)
    if not _half_inside[module]:
        return
    exponents = torch.zeros(len(logits), dtype=torch.int32, device=logits.device)

    def scale(gradient: Tensor) -> Tensor:
        largest = gradient.abs().amax(1).nan_to_num(0.0, 0.0, 0.0)
        exponents.copy_(largest.frexp().exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT))
        return torch.ldexp(gradient, -exponents[:, None])

    logits.register_hook(scale)  # type: ignore[no-untyped-call]
    images.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: torch.ldexp(gradient, broadcast(exponents, gradient))
    )


def _weight_dtype(module: nn.Module) -> torch.dtype:
    """Return the type of a network's first floating-point weight; float32 if it has none."""
    weights = chain(module.parameters(), module.buffers())
    return next((w.dtype for w in weights if w.is_floating_point()), torch.float32)
