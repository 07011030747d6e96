"""Deep variational information bottleneck, in the middle of the Guess First CNN."""

from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from robustbench_inv.models.cnn import FEATURES, convolutions
from robustbench_inv.tensors import Output

__all__ = ["BottleneckCNN", "StochasticClassifier"]


class BottleneckCNN(nn.Module):
    """The baseline CNN whose second fully connected layer is a Gaussian code z ~ N(μ(x), σ(x)²).

    z has 256 dimensions, σ = softplus(ρ − 5). Called on images alone it answers at z = μ.

    References:
        Alemi et al., Deep variational information bottleneck, ICLR 2017, section 4; Zhu, An and Niu,
        Guess First, arXiv 2001.03311, Appendix F, for its place.
    """

    bounds = (0.0, 1.0)
    code = 256

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = convolutions()
        self.encoder = nn.Sequential(
            nn.Linear(FEATURES, 512), nn.ReLU(), nn.Linear(512, 2 * self.code)
        )
        self.decoder = nn.Sequential(
            nn.Linear(self.code, 128), nn.ReLU(), nn.Linear(128, num_classes)
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the code, each (n, 256)."""
        mean, raw = self.encoder(self.features(images)).chunk(2, 1)
        return mean, softplus(raw - 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.encode(images)[0])
        return logits


class StochasticClassifier(nn.Module):
    """A bottleneck network that answers with the mean softmax over draws of its code.

    Args:
        module: the network.
        draws: codes drawn for one answer (Alemi et al. average 12).
        fixed_noise: the same draws for a sample in every answer, known to the attacker.
    """

    def __init__(self, module: BottleneckCNN, draws: int, fixed_noise: bool) -> None:
        super().__init__()
        self.module, self.draws, self.fixed_noise = module, draws, fixed_noise
        self.bounds, self.num_classes = module.bounds, module.num_classes
        self.latent_shape = (module.code,)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.module.parameters()).dtype

    def forward(self, images: Tensor) -> Output:
        return Output(self.module(images))

    def respond(self, images: Tensor, latent: Tensor) -> Output:
        mean, deviation = self.module.encode(images)
        logits = self.module.decoder(mean + deviation * latent)
        return Output(logits.log_softmax(-1).logsumexp(0) - log(len(latent)))
