"""Label-hypothesis networks: one scalar T(x, y) per hypothesis y, with all hypotheses in one pass."""

from math import ceil

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.plain_networks import NUM_FEATURES, convolutions
from robustbench_inv.models.protocol import wants_all_units

__all__ = ["MAX_BATCH", "HypothesisLinear", "LabelHypothesisNet"]

MAX_BATCH = 125
"""Largest number of images per pass outside of training. For 250 images, the buffers of all hypotheses are so large that
the operating system allocates new pages in every pass, which takes as long as the arithmetic; for 50, matrix products
are less efficient (docs/benchmarks.md)."""


class HypothesisLinear(nn.Module):
    """A linear layer of a vector with an appended one-hot label, for all labels at once.

    W [x; e_k] + b = W_x x + (W_k + b): one product for all hypotheses, and one bias per hypothesis.

    Args:
        width: d, dimension of the vector.
        hypotheses: C, number of labels.
        out: m, dimension of the output.
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
        """Return W_x x + b, (n, m), which all hypotheses have in common."""
        return linear(vectors, self.weight, self.bias)

    def active_units(self, shared: Tensor) -> Tensor:
        """Return the ascending indices of the units that are positive for some row and hypothesis.

        After a ReLU all other units and their gradients are exactly zero. A unit with a NaN counts as active.

        Args:
            shared: (n, m) output of ``shared``.
        """
        inactive = shared <= -self.label.amax(0)
        return (~inactive).any(0).nonzero()[:, 0]


class LabelHypothesisNet(nn.Module):
    """C-DV and C-JS: a one-hot label is appended to the convolutions' output, and the network returns a scalar T.

    Maps (n, 1, 28, 28) in [0, 1] to (n, 10): T(x, y) for every hypothesis y, used as logits.

    Args:
        num_classes: C, number of hypotheses.
        sigmoid: return σ(T), which the published attacks on C-JS used. Predictions are the same. Gradients vanish where
            σ saturates, and the softmax of numbers in [0, 1] is nearly uniform, so that the model looks more
            robust than under an attack on T.
        clip: return log p of the probabilities p = softmax(T), clipped to [clip, 1 − clip]; 0 returns T. Keras clips at
            1e-7 before its cross-entropy. Where p is clipped for all hypotheses, the gradient is exactly zero.

    Raises:
        BadParameter: for a clip outside [0, 0.5), or one of σ(T).

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, Appendix F.
    """

    bounds = (0.0, 1.0)

    def __init__(self, num_classes: int = 10, sigmoid: bool = False, clip: float = 0.0) -> None:
        super().__init__()
        if not 0 <= clip < 0.5:
            raise BadParameter("invalid clip", got=clip, expected=">= 0 and < 0.5")
        if sigmoid and clip:
            raise BadParameter("clip is a limit of softmax(T)", remedy="drop sigmoid or clip")
        self.num_classes, self.sigmoid, self.clip = num_classes, sigmoid, clip
        self.features = convolutions()
        self.guess = HypothesisLinear(NUM_FEATURES, num_classes, 512)
        self.second = nn.Sequential(nn.ReLU(True), nn.Linear(512, 256), nn.ReLU(True))
        self.judge = nn.Sequential(nn.Linear(256, 128), nn.ReLU(True), nn.Linear(128, 1))

    def forward(self, images: Tensor) -> Tensor:
        blocks = 1 if self.training else max(1, ceil(len(images) / MAX_BATCH))
        value = torch.cat(
            [self.judge(self.hidden(block))[..., 0] for block in images.chunk(blocks)]
        )
        if self.clip:
            return value.softmax(1).clamp(self.clip, 1 - self.clip).log()
        return value.sigmoid() if self.sigmoid else value

    def hidden(self, images: Tensor) -> Tensor:
        """Return the second fully connected layer's output under every hypothesis, (n, C, 256)."""
        return self.hidden_of(self.features(images))

    def hidden_of(self, features: Tensor) -> Tensor:
        """Return the output of ``hidden`` from the convolutions' output (n, 1600).

        The result equals ``second(guess(features))``, computed without inactive units unless ``all_units`` is
        active. In trained networks, a third to three quarters of the units are inactive for a whole batch.
        """
        if wants_all_units():
            hidden: Tensor = self.second(self.guess(features))
            return hidden
        shared = self.guess.shared(features)
        active_units = self.guess.active_units(shared)
        labels = self.guess.label.index_select(1, active_units)
        first = (shared.index_select(1, active_units)[:, None] + labels).relu_()
        product = self.second[1]
        assert isinstance(product, nn.Linear)
        return linear(first, product.weight.index_select(1, active_units), product.bias).relu_()
