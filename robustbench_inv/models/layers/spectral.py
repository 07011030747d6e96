"""Linear layers whose operator has a spectral norm of at most c, and exact and iterative measures of that norm."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

from robustbench_inv.errors import BadParameter

__all__ = [
    "BOUNDARIES",
    "SpectralConv2d",
    "SpectralLayer",
    "SpectralLinear",
    "circular_singular_values",
    "largest_singular_value",
]

BOUNDARIES = {"zeros": "constant", "circular": "circular"}
"""Boundary of a convolution, and the mode of ``torch.nn.functional.pad``."""

Operator = Callable[[Tensor], Tensor]


class SpectralLayer(nn.Module, ABC):
    """x ↦ s A x + b with s = min(1, c / σ), where σ is the spectral norm of the operator A.

    In training, σ comes from power iteration on A and its adjoint, one in each step, continued in the next. The change to
    evaluation mode measures σ with ``spectral_norm``, so that the norm of s A is at most c up to rounding.

    Args:
        weight: the parameters of A.
        bias_size: size of b.
        shape: shape of an input.
        coefficient: c; None for s = 1.

    References:
        Behrmann, thesis, section 4.2.1 and equation 4.9; Gouk et al., Regularisation of neural networks by enforcing
        Lipschitz continuity, Machine Learning 2021.
    """

    direction: Tensor
    sigma: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias_size: int,
        shape: Sequence[int],
        coefficient: float | None,
    ) -> None:
        super().__init__()
        if coefficient is not None and not 0 < coefficient < 1:
            raise BadParameter(
                "invalid spectral coefficient", got=coefficient, expected="in (0, 1), or None"
            )
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(bias_size))
        self.shape, self.coefficient = tuple(shape), coefficient
        start = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("direction", start / start.norm())
        self.register_buffer("sigma", torch.tensor(1.0))
        self.measure()
        self.register_load_state_dict_post_hook(_measure_loaded)  # type: ignore[no-untyped-call]

    @abstractmethod
    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return A x for x (n, *shape) and the parameters ``weight`` of A."""

    @abstractmethod
    def transpose(self, y: Tensor, weight: Tensor) -> Tensor:
        """Return Aᵀ y."""

    @abstractmethod
    def spectral_norm(self, weight: Tensor) -> Tensor:
        """Return the spectral norm of A in float64, a scalar."""

    @abstractmethod
    def add_bias(self, y: Tensor) -> Tensor:
        """Return y + b."""

    def forward(self, x: Tensor) -> Tensor:
        return self.add_bias(self.operate(x, self.scaled_weight()))

    def scaled_weight(self) -> Tensor:
        """Return the parameters of s A, with the gradient of σ in training."""
        if self.coefficient is None:
            return self.weight
        sigma = self._estimate() if self.training else self.sigma
        return self.weight * (self.coefficient / sigma).clamp(max=1)

    def train(self, mode: bool = True) -> "SpectralLayer":
        """Change the mode; the end of training measures σ."""
        if self.training and not mode:
            self.measure()
        super().train(mode)
        return self

    @torch.no_grad()
    def measure(self) -> None:
        """Set σ for evaluation to the spectral norm of A."""
        self.sigma.copy_(self.spectral_norm(self.weight))

    def lipschitz(self) -> float:
        """Return the norm of s A from the σ of the last measurement."""
        sigma = float(self.sigma)
        return sigma if self.coefficient is None else min(sigma, self.coefficient)

    @torch.no_grad()
    def operator_norm(self) -> float:
        """Return the norm of s A as in evaluation mode, measured again."""
        scale = self.lipschitz() / max(float(self.sigma), 1e-12)
        return scale * float(self.spectral_norm(self.weight))

    def _estimate(self) -> Tensor:
        with torch.autocast(self.weight.device.type, enabled=False):
            weight = self.weight.detach()
            image = self.operate(self.direction, weight)
            back = self.transpose(image / image.norm().clamp_min(1e-12), weight)
            self.direction.copy_(back / back.norm().clamp_min(1e-12))
            direction = self.direction.clone()
            image = self.operate(direction, weight)
            image = image / image.norm().clamp_min(1e-12)
            sigma: Tensor = (image * self.operate(direction, self.weight)).sum()
            return sigma.clamp_min(1e-12)


def _measure_loaded(layer: nn.Module, _keys: object) -> None:
    """Measure σ of loaded weights: rounded ones have another norm than those that were stored."""
    if isinstance(layer, SpectralLayer) and not layer.training:
        layer.measure()


class SpectralConv2d(SpectralLayer):
    """A convolution (n, c, h, w) ↦ (n, outputs, h, w) of stride 1 and an odd kernel.

    Args:
        inputs, outputs: channels.
        kernel: side of the kernel, odd.
        size: (h, w).
        coefficient: c; None without normalisation.
        boundary: ``zeros`` or ``circular``. The norm of a circular convolution is exact.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        size: tuple[int, int],
        coefficient: float | None,
        *,
        boundary: str = "zeros",
    ) -> None:
        if boundary not in BOUNDARIES:
            raise BadParameter(
                "unknown boundary", got=boundary, expected="one of " + ", ".join(BOUNDARIES)
            )
        if kernel < 1 or kernel % 2 == 0 or kernel > 1 + 2 * min(size):
            raise BadParameter(
                "invalid kernel", got=kernel, expected="odd, at most 1 + 2 min(h, w)"
            )
        self.boundary = boundary
        weight = nn.init.kaiming_normal_(
            torch.empty(outputs, inputs, kernel, kernel), mode="fan_out"
        )
        super().__init__(weight, outputs, (inputs, *size), coefficient)

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        border = weight.shape[-1] // 2
        if border == 0 or self.boundary == "zeros":
            return conv2d(x, weight, padding=border)
        return conv2d(pad(x, [border] * 4, mode="circular"), weight)

    def transpose(self, y: Tensor, weight: Tensor) -> Tensor:
        return self.operate(y, weight.transpose(0, 1).flip(2, 3))

    def spectral_norm(self, weight: Tensor) -> Tensor:
        weight = weight.detach().double().cpu()
        if self.boundary == "circular" or weight.shape[-1] == 1:
            return circular_singular_values(weight, (self.shape[1], self.shape[2])).max()
        return largest_singular_value(
            lambda x: self.operate(x, weight), lambda y: self.transpose(y, weight), self.shape
        )

    def add_bias(self, y: Tensor) -> Tensor:
        return y + self.bias[:, None, None]


class SpectralLinear(SpectralLayer):
    """A linear layer (n, inputs) ↦ (n, outputs)."""

    def __init__(self, inputs: int, outputs: int, coefficient: float | None) -> None:
        weight = nn.init.kaiming_normal_(torch.empty(outputs, inputs), mode="fan_out")
        super().__init__(weight, outputs, (inputs,), coefficient)

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight)

    def transpose(self, y: Tensor, weight: Tensor) -> Tensor:
        return linear(y, weight.T)

    def spectral_norm(self, weight: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.matrix_norm(weight.double(), 2)
        return norm

    def add_bias(self, y: Tensor) -> Tensor:
        return y + self.bias


def circular_singular_values(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Return all singular values of a circular convolution, (h, w, min(outputs, inputs)), from the Fourier transform.

    Args:
        weight: (outputs, inputs, k, k).
        size: (h, w). A kernel that is larger is wrapped, as its positions are.

    References:
        Sedghi, Gupta and Long, The singular values of convolutional layers, ICLR 2019, theorem 6.
    """
    (h, w), (rows, columns) = size, weight.shape[-2:]
    down = torch.arange(rows, device=weight.device).repeat_interleave(columns) % h
    right = torch.arange(columns, device=weight.device).repeat(rows) % w
    flat = weight.new_zeros(*weight.shape[:2], h * w)
    flat.index_add_(2, down * w + right, weight.flatten(2))
    symbols = torch.fft.fft2(flat.reshape(*weight.shape[:2], h, w)).permute(2, 3, 0, 1)
    values: Tensor = torch.linalg.svdvals(symbols)
    return values


def largest_singular_value(
    operate: Operator, transpose: Operator, shape: Sequence[int], *, tolerance: float = 1e-8
) -> Tensor:
    """Return the spectral norm of an operator, in float64, by the Lanczos method on Aᵀ A.

    Args:
        operate: A, maps (n, *shape) to (n, …).
        transpose: Aᵀ.
        shape: shape of an input.
        tolerance: relative error of the largest eigenvalue of Aᵀ A.
    """
    size = math.prod(shape)
    start = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def gram(vector: "np.typing.NDArray[np.float64]") -> "np.typing.NDArray[np.float64]":
        image = operate(torch.from_numpy(vector).reshape(1, *shape))
        product: np.typing.NDArray[np.float64] = transpose(image).flatten().numpy()
        return product

    if size == 1:
        norm: Tensor = operate(torch.ones(1, *shape, dtype=torch.float64)).norm()
        return norm
    operator = LinearOperator((size, size), matvec=gram, dtype=np.float64)
    (value,) = eigsh(operator, 1, v0=start.numpy(), tol=tolerance, return_eigenvectors=False)
    return torch.tensor(max(float(value), 0.0), dtype=torch.float64).sqrt()
