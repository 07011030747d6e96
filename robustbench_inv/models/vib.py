"""Deep variational information bottleneck (VIB) as a layer of the Guess First CNN."""

from math import log

from torch import Tensor, nn
from torch.nn.functional import softplus

from robustbench_inv.models.plain_networks import NUM_FEATURES, convolutions
from robustbench_inv.models.stochastic import LatentSamplingNetwork

__all__ = ["BottleneckCNN"]


class BottleneckCNN(LatentSamplingNetwork):
    """The baseline CNN with a Gaussian code z ~ N(μ(x), σ(x)²) as its second fully connected layer.

    z has 256 dimensions, and σ = softplus(ρ − 5). The logits are the logarithm of the mean softmax output over draws of
    z; without draws, z is μ.

    References:
        Alemi et al., Deep variational information bottleneck, ICLR 2017, section 4; Zhu, An and Niu,
        Guess First, arXiv 2001.03311, Appendix F, for the position of the layer.
    """

    default_draws = 12
    code = 256
    latent_shape = (code,)

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = convolutions()
        self.encoder = nn.Sequential(
            nn.Linear(NUM_FEATURES, 512), nn.ReLU(), nn.Linear(512, 2 * self.code)
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

    def averaged_logits(self, images: Tensor, latent: Tensor) -> Tensor:
        mean, deviation = self.encode(images)
        logits: Tensor = self.decoder(mean + deviation * latent)
        return logits.log_softmax(-1).logsumexp(0) - log(len(latent))
