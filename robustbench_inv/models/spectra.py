"""Networks of mass spectra: IsotopeNet and ResidualNet, residual networks of one dimension, and their linear baseline."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor, nn
from torch.nn.functional import pad

from robustbench_inv.errors import BadParameter

__all__ = ["BINS", "Discriminant", "IsotopeNet", "ResidualNet", "receptive_field"]

BINS = 27_286
"""Number d of m/z-bins of the thesis, section 7.3.1. With it both networks have the published number of parameters."""

ISOTOPE_LAYERS = ((8, 1), (8, 5), (8, 1), (1, 3))
"""Features and stride of the residual layers of IsotopeNet (table 7.2)."""

RESIDUAL_LAYERS = (
    *((16, 1), (32, 3), (32, 1), (64, 3), (64, 1)),
    *((128, 3), (128, 1), (128, 3), (128, 1), (128, 3), (128, 1), (128, 3), (128, 1), (128, 3)),
    (256, 3),
)
"""Features and stride of the residual layers of ResidualNet (table A.1), whose rows with 128 features alternate strides."""


class _ResidualLayer(nn.Module):
    """relu(BN(A₂ relu(BN(A₁ x))) + S x): A₁ has the stride, S is the identity or a 1×1 convolution where shapes differ."""

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        border = kernel // 2
        self.residual = nn.Sequential(
            nn.Conv1d(before, after, kernel, stride, border, bias=False),
            nn.BatchNorm1d(after),
            nn.ReLU(),
            nn.Conv1d(after, after, kernel, 1, border, bias=False),
            nn.BatchNorm1d(after),
        )
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv1d(before, after, 1, stride, bias=False)

    def forward(self, spectra: Tensor) -> Tensor:
        total: Tensor = self.residual(spectra) + self.shortcut(spectra)
        return total


def _residual_layers(layers: Sequence[tuple[int, int]], kernel: int) -> nn.Sequential:
    """Return residual layers with ReLU between them, for spectra (n, 1, d)."""
    widths = (1, *(width for width, _ in layers))
    parts: list[nn.Module] = []
    for (before, after), (_, stride) in zip(pairwise(widths), layers, strict=True):
        parts += [_ResidualLayer(before, after, kernel, stride), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class _Spectra(nn.Module):
    bounds = (0.0, 1.0)

    def __init__(self, bins: int, num_classes: int) -> None:
        super().__init__()
        if bins < 1 or num_classes < 2:
            raise BadParameter(
                "invalid network of spectra",
                got=(bins, num_classes),
                expected="bins >= 1, classes >= 2",
            )
        self.bins, self.num_classes = bins, num_classes


class IsotopeNet(_Spectra):
    """Residual layers of the size of isotope patterns, a locally connected layer and a linear layer.

    The thesis lists layers and the number of 13,935 parameters. Batch norm after each convolution, before the ReLU and,
    per position, after the locally connected layer; shortcuts without bias or batch norm: this gives that number.

    Args:
        bins: d, elements of a spectrum.
        num_classes: C.
        dropout: share of the inputs of the last layer that are dropped in training.

    References:
        Behrmann, thesis, table 7.2; Behrmann et al., Deep learning for tumor classification in imaging mass spectrometry,
        Bioinformatics 2018.
    """

    def __init__(self, bins: int = BINS, num_classes: int = 2, dropout: float = 0.3) -> None:
        super().__init__(bins, num_classes)
        length = ceil(ceil(bins / 5) / 3)
        self.layers = _residual_layers(ISOTOPE_LAYERS, kernel=3)
        self.norm = nn.BatchNorm1d(1)
        self.local = nn.Parameter(torch.randn(length, 3) / 3**0.5)
        self.local_norm = nn.BatchNorm1d(length)
        self.last = nn.Sequential(nn.Dropout(dropout), nn.Linear(length, num_classes))

    def forward(self, spectra: Tensor) -> Tensor:
        """Return the logits (n, C) of spectra (n, d)."""
        features = torch.relu(self.norm(self.layers(spectra[:, None])))[:, 0]
        patches = pad(features, (1, 1)).unfold(1, 3, 1)
        logits: Tensor = self.last(self.local_norm((patches * self.local).sum(2)))
        return logits


class ResidualNet(_Spectra):
    """A residual network without knowledge of isotope patterns: 15 layers of kernel 5, the mean over positions, softmax.

    With nine layers of 128 features of alternating strides it has the thesis's 2,132,130 parameters.

    Args:
        bins: d, elements of a spectrum; the number of parameters does not depend on it.
        num_classes: C.

    References:
        Behrmann, thesis, table A.1.
    """

    def __init__(self, bins: int = BINS, num_classes: int = 2) -> None:
        super().__init__(bins, num_classes)
        self.layers = _residual_layers(RESIDUAL_LAYERS, kernel=5)
        self.last = nn.Linear(RESIDUAL_LAYERS[-1][0], num_classes)

    def forward(self, spectra: Tensor) -> Tensor:
        """Return the logits (n, C) of spectra (n, d)."""
        logits: Tensor = self.last(torch.relu(self.layers(spectra[:, None])).mean(2))
        return logits


class Discriminant(_Spectra):
    """Linear discriminant analysis of the K bins that separate two classes best (ROC/LDA).

    Args:
        bins: d, elements of a spectrum.
        features: K; all bins if there are fewer.

    References:
        Behrmann, thesis, section 7.4.1; Hastie, Tibshirani and Friedman, The elements of statistical learning,
        equation 4.10.
    """

    chosen: Tensor

    def __init__(self, bins: int = BINS, features: int = 20) -> None:
        super().__init__(bins, 2)
        count = min(features, bins)
        self.register_buffer("chosen", torch.arange(count))
        self.linear = nn.Linear(count, 2)

    def forward(self, spectra: Tensor) -> Tensor:
        """Return the discriminants (n, 2) of spectra (n, d)."""
        logits: Tensor = self.linear(spectra[:, self.chosen])
        return logits

    @torch.no_grad()
    def fit(self, spectra: Tensor, labels: Tensor) -> "Discriminant":
        """Choose the bins by the Mann-Whitney-Wilcoxon statistic, and fit means and common covariance, in float64.

        Args:
            spectra: (n, d).
            labels: 0 or 1, (n,).
        """
        groups = [spectra[labels == k].double() for k in (0, 1)]
        statistic = torch.from_numpy(mannwhitneyu(*(g.numpy() for g in groups), axis=0).statistic)
        distance = (statistic / (len(groups[0]) * len(groups[1])) - 0.5).abs()
        self.chosen.copy_(distance.argsort(descending=True, stable=True)[: len(self.chosen)])
        parts = [group[:, self.chosen] for group in groups]
        means = torch.stack([part.mean(0) for part in parts])
        centred = torch.cat([part - mean for part, mean in zip(parts, means, strict=True)])
        covariance = centred.T @ centred / (len(centred) - 2)
        weight = means @ torch.linalg.pinv(covariance, hermitian=True)
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(-(weight * means).sum(1) / 2)
        return self


def receptive_field(layers: Sequence[tuple[int, int]] = ISOTOPE_LAYERS, kernel: int = 3) -> int:
    """Return the number of bins that a feature after residual layers depends on.

    Args:
        layers: features and stride of each layer.
        kernel: of their two convolutions, of which the first has the stride.

    Example:
        >>> receptive_field(((8, 1),))
        5
    """
    size, jump = 1, 1
    for _, stride in layers:
        size += (kernel - 1) * jump
        jump *= stride
        size += (kernel - 1) * jump
    return size
