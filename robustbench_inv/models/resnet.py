"""The residual networks of Supervised Deep InfoMax: the encoder and the discriminative baseline."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from robustbench_inv.errors import BadModel

__all__ = ["FILTERS", "SIDE", "ResNetClassifier", "ResNetEncoder"]

FILTERS = (32, 64, 128, 256)
"""Filters of the four stages, whose maps have 32×32, 16×16, 8×8 and 4×4 elements."""

SIDE = 32
"""Height and width of the input; smaller images get a border of zeros, or are resized."""


class ResNetEncoder(nn.Module):
    """ResNet of 8n + 2 layers for small images, with local features and a global code.

    It consists of a convolution, four stages of n residual blocks, global average pooling of the last 4×4 map and two
    fully connected layers. At the start of a stage, the shortcut takes every second pixel and pads the channels with
    zeros (option A). Convolutions may use bfloat16 in training. The fully connected layers never do, because the class
    conditionals divide the code by standard deviations that are far smaller than the code.

    Args:
        blocks: n: 1 for ResNet10, 3 for ResNet26.
        channels: channels of the images, 1 or 3.
        dimensions: d, dimension of the code.
        resize: resize smaller images to 32×32 by bilinear interpolation, as in the paper, and do not pad them.

    References:
        Reject Illegal Inputs: Scaling Generative Classifiers with Supervised Deep Infomax, ICLR 2020 submission,
        section 5 (the numbers of parameters in table 1 imply a fully connected layer of 256 before the last one);
        He et al., Deep residual learning for image recognition, CVPR 2016, section 4.2.
    """

    def __init__(
        self, blocks: int = 1, channels: int = 1, dimensions: int = 64, *, resize: bool = False
    ) -> None:
        super().__init__()
        self.resize = resize
        self.stem = nn.Sequential(
            nn.Conv2d(channels, FILTERS[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(FILTERS[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            *[_stage(blocks, max(32, width // 2), width) for width in FILTERS]
        )
        self.head = nn.Sequential(
            nn.Linear(FILTERS[-1], FILTERS[-1]),
            nn.BatchNorm1d(FILTERS[-1]),
            nn.ReLU(inplace=True),
            nn.Linear(FILTERS[-1], dimensions),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, channels, h, w), h and w at most 32 and even, to (n, 256, 4, 4) and (n, d).

        Raises:
            BadModel: for larger images.
        """
        rows, columns = ((SIDE - size) // 2 for size in images.shape[-2:])
        if min(rows, columns) < 0:
            got, expected = tuple(images.shape[-2:]), f"at most {SIDE} x {SIDE}"
            raise BadModel("images too large for this network", got=got, expected=expected)
        if self.resize:
            framed = interpolate(images, (SIDE, SIDE), mode="bilinear")
        else:
            framed = pad(images, (columns, columns, rows, rows))
        local = self.stages(self.stem(framed.contiguous(memory_format=torch.channels_last)))
        with torch.autocast(images.device.type, enabled=False):
            pooled = local.mean((2, 3), dtype=self.head[0].weight.dtype)
            return local, self.head(pooled)


class ResNetClassifier(nn.Module):
    """The discriminative baseline: the encoder with one output per class, the logits.

    Maps (n, channels, h, w) in [0, 1] to (n, C).

    Args:
        num_classes: C.
        blocks: n of 8n + 2 layers.
        channels: channels of the images.
        resize: resize smaller images instead of padding them.
    """

    bounds = (0.0, 1.0)

    def __init__(
        self, num_classes: int = 10, blocks: int = 1, channels: int = 1, *, resize: bool = False
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder = ResNetEncoder(blocks, channels, num_classes, resize=resize)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.encoder(images)[1]
        return logits


class _Block(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.added = width - before
        stride = 2 if self.added else 1
        self.residual = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps
        if (
            self.added
        ):  # pooling of single pixels keeps channels_last in the gradient; a slice does not
            shortcut = pad(avg_pool2d(maps, 1, 2), (0, 0, 0, 0, 0, self.added))
        total: Tensor = self.residual(maps) + shortcut
        return total.relu_()


def _stage(blocks: int, before: int, width: int) -> nn.Sequential:
    return nn.Sequential(*[_Block(width if i else before, width) for i in range(blocks)])
