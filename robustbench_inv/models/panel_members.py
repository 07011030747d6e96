"""Classifiers that vote on the class of changed digits and clothing: prototypes in pixel space, and a small CNN."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

__all__ = ["PrototypeClassifier", "StrokeCNN"]


class PrototypeClassifier(nn.Module):
    """The nearest of several prototypes of each class, on blurred pixels.

    Maps (n, 1, 28, 28) in [0, 1] to (n, C) logits: −τ · the soft minimum of the squared distances to a class's
    prototypes, with a learned τ.

    Args:
        prototypes: number of prototypes of each class.
        num_classes: number of classes.

    References:
        Sato and Yamada, Generalized learning vector quantization, NIPS 1995, with the soft minimum of Seo and
        Obermayer, Soft learning vector quantization, Neural Computation 2003.
    """

    bounds = (0.0, 1.0)
    kernel: Tensor

    def __init__(self, prototypes: int = 50, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (taps[:, None] * taps)[None, None])
        self.prototypes = nn.Parameter(0.13 + 0.2 * torch.rand(num_classes * prototypes, 784))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, images: Tensor) -> Tensor:
        pixels = conv2d(images, self.kernel, padding=1).flatten(1)
        products = pixels @ self.prototypes.T
        distances = (
            pixels.square().sum(1, keepdim=True) - 2 * products + self.prototypes.square().sum(1)
        )
        scores = -self.log_scale.exp() * distances
        logits: Tensor = scores.reshape(len(images), self.num_classes, -1).logsumexp(2)
        return logits


class StrokeCNN(nn.Module):
    """Three small convolutions with batch norm and pooling, and a linear layer.

    Maps (n, 1, 28, 28) in [0, 1] to (n, C) logits.

    Args:
        num_classes: number of classes.
    """

    bounds = (0.0, 1.0)

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            *_block(1, 16, 5, stride=2),
            *_block(16, 32, 3),
            nn.MaxPool2d(2),
            *_block(32, 64, 3),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(576, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def _block(channels: int, filters: int, size: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, filters, size, stride, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(filters), nn.ReLU()
