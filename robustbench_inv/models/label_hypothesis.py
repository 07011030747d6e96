"""Label-hypothesis networks: one scalar T(x, y) for each hypothesis y, all hypotheses in one pass."""

from math import ceil

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from robustbench_inv.models.plain_networks import NUM_FEATURES, convolutions

__all__ = ["MAX_BATCH", "HypothesisLinear", "LabelHypothesisNet"]

MAX_BATCH = 125
"""At most so many images are answered at once outside of training. All hypotheses of 250 take buffers so large that the
system hands out fresh pages for every pass, which costs as much as the arithmetic; with 50 the products
lose more than is gained (docs/benchmarks.md)."""


class HypothesisLinear(nn.Module):
    """A linear layer on a vector with a one-hot label appended, for every label at once.

    W [x; e_k] + b = W_x x + (W_k + b): one product for all hypotheses, and one bias for each.

    Args:
        width: d, width of the vector.
        hypotheses: C, number of labels.
        out: m, width of the output.
    """

    def __init__(self, width: int, hypotheses: int, out: int) -> None:
        super().__init__()
        joint = nn.Linear(width + hypotheses, out)
        self.weight = nn.Parameter(joint.weight.detach()[:, :width].clone())
        self.bias = nn.Parameter(joint.bias.detach().clone())
        self.label = nn.Parameter(joint.weight.detach()[:, width:].T.contiguous())

    def forward(self, vectors: Tensor) -> Tensor:
        """Map (n, d) to (n, C, m)."""
        return self.shared(vectors)[:, None] + self.label

    def shared(self, vectors: Tensor) -> Tensor:
        """Return what all hypotheses have in common, W_x x + b, (n, m)."""
        return linear(vectors, self.weight, self.bias)

    def active_units(self, shared: Tensor) -> Tensor:
        """Return the units that are positive for some row under some hypothesis, their indices in order.

        A ReLU makes exact zeros of all others, and of their gradients. A NaN counts as awake.

        Args:
            shared: (n, m) what ``shared`` returned.
        """
        asleep = shared <= -self.label.amax(0)
        return (~asleep).any(0).nonzero()[:, 0]


class LabelHypothesisNet(nn.Module):
    """C-DV and C-JS: the label's one-hot joins the convolutions' output; one scalar T leaves.

    Maps (n, 1, 28, 28) in [0, 1] to (n, 10): T(x, y) for every hypothesis y, used as logits.

    Args:
        num_classes: C, number of hypotheses.
        sigmoid: return σ(T), as C-JS was attacked when it was published. The decisions are the same, but
            gradients vanish where σ saturates, and a softmax over numbers in [0, 1] is nearly flat: what then
            looks like robustness is shown beside the attack on T.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, Appendix F.
    """

    bounds = (0.0, 1.0)

    def __init__(self, num_classes: int = 10, sigmoid: bool = False) -> None:
        super().__init__()
        self.num_classes, self.sigmoid = num_classes, sigmoid
        self.features = convolutions()
        self.guess = HypothesisLinear(NUM_FEATURES, num_classes, 512)
        self.second = nn.Sequential(nn.ReLU(True), nn.Linear(512, 256), nn.ReLU(True))
        self.judge = nn.Sequential(nn.Linear(256, 128), nn.ReLU(True), nn.Linear(128, 1))

    def forward(self, images: Tensor) -> Tensor:
        blocks = 1 if self.training else max(1, ceil(len(images) / MAX_BATCH))
        value = torch.cat(
            [self.judge(self.hidden(block))[..., 0] for block in images.chunk(blocks)]
        )
        return value.sigmoid() if self.sigmoid else value

    def hidden(self, images: Tensor) -> Tensor:
        """Return the second fully connected layer's output under every hypothesis, (n, C, 256)."""
        return self.hidden_of(self.features(images))

    def hidden_of(self, features: Tensor) -> Tensor:
        """Return what ``hidden`` does, from the convolutions' output (n, 1600).

        It equals ``second(guess(features))``; units that sleep do not enter the product, and of trained
        networks a third to three quarters of them sleep through a whole batch.
        """
        shared = self.guess.shared(features)
        active_units = self.guess.active_units(shared)
        labels = self.guess.label.index_select(1, active_units)
        first = (shared.index_select(1, active_units)[:, None] + labels).relu_()
        product = self.second[1]
        assert isinstance(product, nn.Linear)
        return linear(first, product.weight.index_select(1, active_units), product.bias).relu_()
