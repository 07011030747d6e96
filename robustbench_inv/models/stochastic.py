"""Networks whose output is a mean over latent draws, and their wrapper as classifiers."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_inv.models.precision import cast_inputs, input_dtype
from robustbench_inv.tensors import Output

__all__ = ["LatentSamplingNetwork", "StochasticClassifier"]


class LatentSamplingNetwork(nn.Module, ABC):
    """A network that averages over draws of a latent variable; without draws, it uses the mean of the variable.

    ``default_draws`` is the number of draws in the network's paper.
    """

    default_draws: ClassVar[int]
    bounds: tuple[float, float] = (0.0, 1.0)
    num_classes: int
    latent_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, C) at the mean of the latent variable."""

    @abstractmethod
    def averaged_logits(self, images: Tensor, latent: Tensor) -> Tensor:
        """Return the logits (n, C) of (n, …) images under (k, n, *latent_shape) standard normal draws."""


class StochasticClassifier(nn.Module):
    """A latent-sampling network as a classifier (``protocol.Stochastic``).

    Args:
        module: the network.
        draws: number of draws averaged per output.
        fixed_noise: use the same draws for a sample in every query, known to the attacker.
    """

    def __init__(self, module: LatentSamplingNetwork, draws: int, fixed_noise: bool) -> None:
        super().__init__()
        self.module, self.draws, self.fixed_noise = module, draws, fixed_noise
        self.bounds, self.num_classes = module.bounds, module.num_classes
        self.latent_shape = module.latent_shape
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the inputs: float64 if the network's weights are, else float32."""
        return input_dtype(self.module)

    def forward(self, images: Tensor) -> Output:
        return Output(self.module(cast_inputs(images, self.module)))

    def respond(self, images: Tensor, latent: Tensor) -> Output:
        images, latent = (cast_inputs(each, self.module) for each in (images, latent))
        return Output(self.module.averaged_logits(images, latent))
