"""Label-hypothesis networks: one scalar T(x, y) for each hypothesis y, all hypotheses in one pass."""

import torch
from torch import Tensor, nn

from robustbench_inv.models.cnn import FEATURES, convolutions

__all__ = ["HypothesisLinear", "LabelHypothesisNet"]


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
        return torch.nn.functional.linear(vectors, self.weight, self.bias)[:, None] + self.label


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
        self.guess = HypothesisLinear(FEATURES, num_classes, 512)
        self.second = nn.Sequential(nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
        self.judge = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, images: Tensor) -> Tensor:
        value: Tensor = self.judge(self.hidden(images))[..., 0]
        return value.sigmoid() if self.sigmoid else value

    def hidden(self, images: Tensor) -> Tensor:
        """Return the second fully connected layer's output under every hypothesis, (n, C, 256)."""
        hidden: Tensor = self.second(self.guess(self.features(images)))
        return hidden
