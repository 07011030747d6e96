"""Couplings: one half of the features moves by an amount that the other half, or a condition, decides."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import Bijection
from robustbench_inv.tensors import flatten

__all__ = ["Additive", "Affine", "ConditionalTransform", "Coupling", "Transform", "transform_named"]


class Transform(Protocol):
    """An invertible map of single elements, whose parameters a network computes.

    ``parameters`` is how many it needs for each element; they lie behind one another along dimension 1.
    """

    @property
    def parameters(self) -> int: ...

    def apply(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (n, m, …) and the log-determinant (n,) from x (n, m, …) and raw (n, m · parameters, …)."""
        ...

    def undo(self, y: Tensor, raw: Tensor) -> Tensor:
        """Return x (n, m, …)."""
        ...


@dataclass(frozen=True)
class Additive:
    """y = x + t, which keeps volumes.

    References:
        Dinh, Krueger and Bengio, NICE, 2015, equation 10.
    """

    parameters: ClassVar[int] = 1

    def apply(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return x + raw, x.new_zeros(len(x))

    def undo(self, y: Tensor, raw: Tensor) -> Tensor:
        return y - raw


@dataclass(frozen=True)
class Affine:
    """y = x · exp s + t, with s = a tanh(s'/a), so that no scale leaves [e^−a, e^a].

    Args:
        bound: a.

    References:
        Dinh, Sohl-Dickstein and Bengio, Real NVP, ICLR 2017, equations 7 and 8.
    """

    bound: float = 2.0
    parameters: ClassVar[int] = 2

    def apply(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._parts(raw)
        return x * log_scale.exp() + shift, flatten(log_scale).sum(1)

    def undo(self, y: Tensor, raw: Tensor) -> Tensor:
        shift, log_scale = self._parts(raw)
        return (y - shift) * (-log_scale).exp()

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = raw.chunk(2, 1)
        return shift, self.bound * torch.tanh(log_scale / self.bound)


def transform_named(name: str) -> Transform:
    """Return the ``additive`` or the ``affine`` transform.

    Raises:
        BadParameter: for another name.
    """
    known: dict[str, Transform] = {"additive": Additive(), "affine": Affine()}
    if name not in known:
        raise BadParameter("unknown coupling", got=name, expected=" or ".join(known))
    return known[name]


class Coupling(Bijection):
    """(a, b) ↦ (a, T_{m(a)}(b)): the network m of the passive half transforms the active one.

    The halves lie behind one another along dimension 1 (channels of images, elements of vectors); of an odd
    number the first has one less. The condition, where there is one, goes into the network beside the
    passive half, spread over all positions of an image.

    Args:
        network: maps (n, passive + k, …) to (n, active · transform.parameters, …), k being the size of the
            condition. It may compute in less than the type of x.
        transform: T.
        swap: the second half is the passive one.
    """

    def __init__(self, network: nn.Module, transform: Transform, *, swap: bool = False) -> None:
        super().__init__()
        self.network, self.transform, self.swap = network, transform, swap

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        passive, active = self._split(x)
        raw = self._raw(passive, condition)
        active, log_det = self.transform.apply(active, raw)
        return self._join(passive, active), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        passive, active = self._split(y)
        return self._join(passive, self.transform.undo(active, self._raw(passive, condition)))

    def extra_repr(self) -> str:
        return f"{self.transform}, swap={self.swap}"

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = x.shape[1] // 2
        halves = x[:, :first], x[:, first:]
        return (halves[1], halves[0]) if self.swap else halves

    def _join(self, passive: Tensor, active: Tensor) -> Tensor:
        return torch.cat((active, passive) if self.swap else (passive, active), 1)

    def _raw(self, passive: Tensor, condition: Tensor | None) -> Tensor:
        if condition is not None:
            spread = condition.reshape(*condition.shape, *[1] * (passive.ndim - 2))
            passive = torch.cat([passive, spread.expand(-1, -1, *passive.shape[2:])], 1)
        raw: Tensor = self.network(passive)
        return raw.to(passive.dtype)  # the flow keeps its precision where the network runs in less


class ConditionalTransform(Bijection):
    """x ↦ T_{Wc + b}(x): the condition alone transforms every element; the identity at the start.

    With a one-hot condition W is a table of shifts and log-scales, one row for each class.

    Args:
        features: elements d of a sample, whatever its shape.
        condition: size k of the condition.
        transform: T.
    """

    def __init__(self, features: int, condition: int, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.table = nn.Linear(condition, features * transform.parameters)
        nn.init.zeros_(self.table.weight)
        nn.init.zeros_(self.table.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = self.transform.apply(flatten(x), self._raw(condition))
        return y.reshape(x.shape), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.transform.undo(flatten(y), self._raw(condition)).reshape(y.shape)

    def _raw(self, condition: Tensor | None) -> Tensor:
        if condition is None:
            raise BadParameter(
                "a conditional layer without its condition", got=None, expected="(n, k)"
            )
        with torch.autocast(condition.device.type, enabled=False):
            raw: Tensor = self.table(condition)
        return raw
