"""A ReLU network around one input: affine as long as no unit changes sides."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Piece", "pieces_at", "relu_inputs"]

RELUS = frozenset({torch.relu, torch.relu_, functional.relu, Tensor.relu, Tensor.relu_})
"""The functions that compute one, as modules and functions call them."""

ROWS = 512
"""Derivatives that are taken at once."""


@dataclass(frozen=True)
class Piece:
    """What a ReLU is given, as an affine function of the flattened input that holds where no earlier unit changes sides.

    Args:
        slopes: (units, d).
        offsets: (units,).
        inputs: (units,) its value at the input that the piece belongs to.
    """

    slopes: np.ndarray
    offsets: np.ndarray
    inputs: np.ndarray

    @property
    def active(self) -> np.ndarray:
        """(units,): does the ReLU let the unit through?"""
        return self.inputs > 0


def relu_inputs(model: Callable[[Tensor], object], images: Tensor, count: int) -> list[Tensor]:
    """Return what the first ReLUs are given, (n, units) each, in the order in which the model computes them.

    Args:
        model: is called once.
        images: (n, …).
        count: how many; fewer are returned if the model has no more.
    """
    heard = _Listening(count)
    with heard:
        model(images)
    return heard.inputs


def pieces_at(model: Callable[[Tensor], object], image: Tensor, count: int) -> list[Piece]:
    """Return the affine pieces of the first ReLUs' inputs around one input (1, …)."""
    with torch.enable_grad():
        image = image.detach().requires_grad_(True)
        given = relu_inputs(model, image, count)
        return [_piece(inputs[0], image) for inputs in given]


def _piece(inputs: Tensor, image: Tensor) -> Piece:
    units = torch.arange(len(inputs), device=inputs.device)
    rows = [
        torch.autograd.grad(
            inputs,
            image,
            (units == some[:, None]).to(inputs.dtype),
            retain_graph=True,
            is_grads_batched=True,
        )[0]
        for some in torch.split(units, ROWS)
    ]
    slopes = torch.cat(rows).flatten(1).double()
    value = inputs.detach().double()
    offsets = value - slopes @ image.detach().double().flatten()
    return Piece(*(part.cpu().numpy() for part in (slopes, offsets, value)))


class _Listening(TorchFunctionMode):
    """Keeps what the first ReLUs are given while it is on."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in RELUS and len(self.inputs) < self.count:
            given = args[0] if args else kwargs["input"]
            self.inputs.append(given.clone().flatten(1))  # it may be written into
        return func(*args, **kwargs)
