"""Small plain networks: the CNN of Guess First, LeNet-5, a perceptron, prototypes, and CNNs of strokes and of strides."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

__all__ = [
    "MLP",
    "NUM_FEATURES",
    "GuessFirstCNN",
    "LeNet5",
    "PrototypeClassifier",
    "StridedCNN",
    "StrokeCNN",
    "convolutions",
]


NUM_FEATURES = 1600
"""Features of the convolutions' output for a 28×28 input: 64 maps of 5×5."""


def convolutions(*, normalise: bool = True) -> nn.Sequential:
    """Return the two convolutions: 32 and 64 filters of 4×4, stride 2, batch norm, ReLU.

    Maps (n, 1, 28, 28) to (n, 1600).

    Args:
        normalise: False for no batch norm.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, Appendix F.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 4, stride=2),
            norm1=nn.BatchNorm2d(32) if normalise else nn.Identity(),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 4, stride=2),
            norm2=nn.BatchNorm2d(64) if normalise else nn.Identity(),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
        )
    )


class GuessFirstCNN(nn.Module):
    """Baseline CNN: the convolutions, then fully connected layers of 512, 256, 128 and num_classes units.

    Maps (n, 1, 28, 28) in [0, 1] to (n, num_classes) logits.

    Args:
        num_classes: number of classes.
        hidden: units of the fully connected layers before the last one.
        normalise: False for no batch norm.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, Appendix F.
    """

    bounds = (0.0, 1.0)

    def __init__(
        self,
        num_classes: int = 10,
        hidden: Sequence[int] = (512, 256, 128),
        *,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = convolutions(normalise=normalise)
        layers: list[nn.Module] = []
        for before, after in pairwise((NUM_FEATURES, *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        last = hidden[-1] if hidden else NUM_FEATURES
        self.head = nn.Sequential(*layers, nn.Linear(last, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


class LeNet5(nn.Module):
    """Two 5×5 convolutions of 6 and 16 filters with ReLU and max pooling, then 120, 84 and num_classes units.

    Maps (n, 1, 28, 28) in [0, 1] to (n, 10) logits.

    Args:
        num_classes: number of classes.

    References:
        LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998,
        section II.B; Zhu, An and Niu, Guess First, arXiv 2001.03311, Appendix F, which uses it as a substitute.
    """

    bounds = (0.0, 1.0)

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


class MLP(nn.Module):
    """A multilayer perceptron with ReLU.

    Maps (n, *shape) in [0, 1] to (n, num_classes) logits.

    Args:
        hidden: units of each hidden layer.
        shape: shape of an input.
        num_classes: number of classes.
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


STRIDES = (1, 2, 1, 1, 1, 2)
"""Strides of the convolutions of WideCIFAR and ThinCIFAR."""


class StridedCNN(nn.Module):
    """3×3 convolutions with strides instead of pooling, then 512 units and the classes, with ReLU and no normalisation.

    Maps (n, *shape) in [0, 1] to (n, C) logits.

    Args:
        maps: feature maps of the six convolutions: 32, 64, 64, 32, 32, 64 for WideCIFAR, 32, 32, 16, 16, 16, 32 for
            ThinCIFAR.
        shape: (c, h, w), h and w divisible by 4.
        num_classes: C.
        hidden: units of the dense layer.

    References:
        Behrmann, thesis, table 3.1.
    """

    bounds = (0.0, 1.0)

    def __init__(
        self,
        maps: Sequence[int] = (32, 64, 64, 32, 32, 64),
        shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        parts: list[nn.Module] = []
        for before, after, stride in zip((shape[0], *maps), maps, STRIDES, strict=False):
            parts += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*parts)
        units = maps[-1] * (shape[1] // 4) * (shape[2] // 4)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(units, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images))
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
