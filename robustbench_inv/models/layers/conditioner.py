"""Networks that decide what a coupling does to its active half; zero at the start, unless said otherwise."""

from torch import nn

__all__ = ["bottleneck", "convolutional"]


def convolutional(inputs: int, outputs: int, width: int, *, norm: bool = False) -> nn.Sequential:
    """Return 3×3, 1×1 and 3×3 convolutions with ReLU between; (n, inputs, h, w) to (n, outputs, h, w).

    Args:
        inputs: channels of the passive half, and elements of a condition.
        outputs: channels.
        width: filters of the two layers inside.
        norm: batch norm before each ReLU.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, appendix B.2.
    """
    layers: list[nn.Module] = []
    for before, size in ((inputs, 3), (width, 1)):
        layers.append(nn.Conv2d(before, width, size, padding=size // 2, bias=not norm))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, _zeroed(nn.Conv2d(width, outputs, 3, padding=1)))


def bottleneck(inputs: int, outputs: int, width: int, *, zeroed: bool = True) -> nn.Sequential:
    """Return three linear layers with ReLU between; (n, inputs) to (n, outputs).

    Args:
        inputs: elements of the passive half, and of a condition.
        outputs: elements of the active half, times the parameters of its transform.
        width: of the layers inside.
        zeroed: whether the last layer starts from zero, or at random like the others.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, appendix B.1.
    """
    last = nn.Linear(width, outputs)
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        _zeroed(last) if zeroed else last,
    )


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
