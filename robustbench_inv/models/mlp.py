"""A multilayer perceptron: the classifier whose first layer keeps least of an image."""

from itertools import pairwise
from math import prod

from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """Hidden linear layers with ReLU, then the classes.

    Maps (n, *shape) in [0, 1] to (n, num_classes) logits.

    Args:
        hidden: units of each hidden layer.
        shape: of an input.
        num_classes: of the answer.
    """

    bounds = (0.0, 1.0)

    def __init__(
        self,
        hidden: tuple[int, ...] = (512, 512),
        shape: tuple[int, ...] = (1, 28, 28),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((prod(shape), *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits
