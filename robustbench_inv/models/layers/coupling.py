"""Coupling layers and the networks inside them."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import Bijection
from robustbench_inv.models.layers.linear import corner_first
from robustbench_inv.tensors import flatten

__all__ = [
    "Additive",
    "Affine",
    "ConditionalTransform",
    "Coupling",
    "LogitCoupling",
    "Transform",
    "convolutional",
    "linear_conditioner",
    "transform_named",
]


class Transform(Protocol):
    """An invertible elementwise map with parameters computed by a network.

    ``parameters`` is their number per element; they are concatenated along dimension 1.
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
    """y = x + t, which preserves volume.

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
    """y = x · exp s + t with s = a tanh(s'/a), so that scales are in [e^−a, e^a].

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
    """(a, b) ↦ (a, T_{m(a)}(b)): a network m of the passive half computes the transform of the active half.

    The halves are split along dimension 1 (channels of images, elements of vectors); with an odd size the first half is
    one smaller.

    Args:
        network: m, maps (n, passive, …) to (n, active · transform.parameters, …). It may compute in lower precision
            than x.
        transform: T.
        swap: use the second half as the passive one.
    """

    def __init__(self, network: nn.Module, transform: Transform, *, swap: bool = False) -> None:
        super().__init__()
        self.network, self.transform, self.swap = network, transform, swap

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        passive, active = self._split(x)
        active, log_det = self.transform.apply(active, self._raw(passive))
        return self._join(passive, active), log_det

    def inverse(self, y: Tensor) -> Tensor:
        passive, active = self._split(y)
        return self._join(passive, self.transform.undo(active, self._raw(passive)))

    def extra_repr(self) -> str:
        return f"{self.transform}, swap={self.swap}"

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = x.shape[1] // 2
        halves = x[:, :first], x[:, first:]
        return (halves[1], halves[0]) if self.swap else halves

    def _join(self, passive: Tensor, active: Tensor) -> Tensor:
        return torch.cat((active, passive) if self.swap else (passive, active), 1)

    def _raw(self, passive: Tensor) -> Tensor:
        raw: Tensor = self.network(passive)
        # the flow keeps its precision if the network runs in a lower one
        return raw.to(passive.dtype)


class ConditionalTransform(nn.Module):
    """x ↦ T_{Wc + b}(x), a bijection under a condition c that alone determines each element's transform.

    It starts as the identity. With a one-hot condition, W is a table of shifts and log-scales, one row per class.

    Args:
        features: d, number of elements of a sample of any shape.
        condition: k, size of the condition.
        transform: T.
    """

    def __init__(self, features: int, condition: int, transform: Transform) -> None:
        super().__init__()
        self.features, self.transform = features, transform
        self.table = nn.Linear(condition, features * transform.parameters)
        nn.init.zeros_(self.table.weight)
        nn.init.zeros_(self.table.bias)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (n, …) and log |det ∂y/∂x| (n,) of x (n, …) under conditions (n, k)."""
        y, log_det = self.transform.apply(flatten(x), self._raw(condition))
        return y.reshape(x.shape), log_det

    def inverse(self, y: Tensor, condition: Tensor) -> Tensor:
        """Return the x (n, …) that is mapped to y under the same conditions (n, k)."""
        return self.transform.undo(flatten(y), self._raw(condition)).reshape(y.shape)

    def _raw(self, condition: Tensor) -> Tensor:
        with torch.autocast(condition.device.type, enabled=False):
            raw: Tensor = self.table(condition)
        return raw


def convolutional(
    inputs: int, outputs: int, width: int, *, norm: bool = False, kernel: int = 3
) -> nn.Sequential:
    """Return k×k, 1×1 and k×k convolutions with ReLU between, mapping (n, inputs, h, w) to (n, outputs, h, w).

    Args:
        inputs: channels of the passive half.
        outputs: channels of the output.
        width: filters of the two hidden layers.
        norm: use batch norm before each ReLU.
        kernel: k, an odd number.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, appendix B.2.
    """
    layers: list[nn.Module] = []
    for before, size in ((inputs, kernel), (width, 1)):
        layers.append(nn.Conv2d(before, width, size, padding=size // 2, bias=not norm))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, _zeroed(nn.Conv2d(width, outputs, kernel, padding=kernel // 2)))


def linear_conditioner(
    inputs: int, outputs: int, width: int, *, zeroed: bool = True
) -> nn.Sequential:
    """Return three linear layers with ReLU between, mapping (n, inputs) to (n, outputs).

    Args:
        inputs: elements of the passive half.
        outputs: elements of the active half times parameters of the transform.
        width: width of the hidden layers.
        zeroed: initialise the last layer with zeros instead of random weights.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, appendix B.1.
    """
    last = nn.Linear(width, outputs)
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        _zeroed(last) if zeroed else last,
    )


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class LogitCoupling(Bijection):
    """(n, c, h, w) ↦ (z_s, r): an additive coupling z_s = gain · V x + g(r), where r is the rest of the image.

    The C rows of V are orthonormal. Each row has its own pixels, nearest to the corners of the first channel, with
    weights of both signs, so that a logit can be raised and lowered inside the bounds. r has the coordinates orthogonal
    to V: all other pixels unchanged, and the pixels of each row after a reflection that maps the row to the first axis.

    Args:
        network: g, maps images (n, c, h, w) with V x = 0 to (n, C).
        shape: (c, h, w).
        num_classes: C.
        pixels: pixels per row of V, an even number.
        gain: logits per unit of V x.
    """

    carriers: Tensor
    others: Tensor

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        pixels: int = 8,
        gain: float = 128.0,
    ) -> None:
        super().__init__()
        size, taken = shape[0] * shape[1] * shape[2], pixels * num_classes
        if pixels < 2 or pixels % 2 or taken >= shape[1] * shape[2]:
            expected = f"an even number, less than {shape[1] * shape[2]} for all classes together"
            raise BadParameter("invalid pixels of a logit coupling", got=pixels, expected=expected)
        self.network, self.shape, self.gain, self.pixels = network, tuple(shape), gain, pixels
        # class k gets every C-th pixel, so that all classes have pixels in each corner
        carriers = corner_first(shape[1], shape[2])[:taken].reshape(pixels, num_classes).T
        free = torch.ones(size, dtype=torch.bool)
        free[carriers] = False
        self.register_buffer("carriers", carriers.contiguous(), persistent=False)
        self.register_buffer("others", free.nonzero()[:, 0], persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1)
        reflected = self._reflect(flat[:, self.carriers])
        rest = torch.cat([reflected[:, :, 1:].flatten(1), flat[:, self.others]], 1)
        logits = self.gain * reflected[:, :, 0] + self._predict(rest)
        log_det = x.new_full((len(x),), len(self.carriers)) * torch.tensor(self.gain).log().to(x)
        return torch.cat([logits, rest], 1), log_det

    def inverse(self, y: Tensor) -> Tensor:
        classes = len(self.carriers)
        logits, rest = y[:, :classes], y[:, classes:]
        return self._image((logits - self._predict(rest)) / self.gain, rest)

    def _predict(self, rest: Tensor) -> Tensor:
        raw: Tensor = self.network(self._image(rest.new_zeros(len(rest), len(self.carriers)), rest))
        return raw.to(rest.dtype)

    def _image(self, first: Tensor, rest: Tensor) -> Tensor:
        """Return the image (n, c, h, w) with V x = first (n, C) and r = rest."""
        border = self.carriers.numel() - len(self.carriers)
        others = rest[:, :border].reshape(len(rest), len(self.carriers), -1)
        flat = rest.new_empty(len(rest), rest.shape[1] + len(self.carriers))
        flat[:, self.carriers] = self._reflect(torch.cat([first[:, :, None], others], 2))
        flat[:, self.others] = rest[:, border:]
        return flat.reshape(-1, *self.shape)

    def _reflect(self, values: Tensor) -> Tensor:
        """Reflect (n, C, pixels) so that v = (+, −, +, −, …)/√pixels and the first axis are exchanged."""
        normal = -torch.ones(self.pixels, dtype=torch.float64) / sqrt(self.pixels)
        normal[1::2] *= -1
        normal[0] += 1
        normal = (normal / normal.norm()).to(values)
        mirrored: Tensor = values - 2 * (values @ normal)[..., None] * normal
        return mirrored
