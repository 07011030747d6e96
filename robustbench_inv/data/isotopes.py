"""Synthetic mass spectra of two classes of tissue, made of isotope patterns of average peptides."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustbench_inv.data.arrays import Ids, checked_ids, digest_samples
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG

__all__ = ["IsotopePatterns", "MassAxis", "isotope_pattern", "pattern_bins"]

AVERAGINE_MASS = 111.1254
"""Mass of the average amino acid in Da (Senko, Beu and McLafferty, JASMS 1995)."""

AVERAGINE_CARBON = 4.9384
"""Carbon atoms of the average amino acid."""

HEAVY_CARBON = 0.0107
"""Natural abundance of carbon 13."""

ISOTOPE_DISTANCE = 1.00335
"""Mass difference of carbon 13 and carbon 12 in Da."""

RARE = 0.005
"""Isotopes of less than this share of the most abundant one are left out, t_iso of the thesis, section 7.3.2."""


def isotope_pattern(mass: float) -> list[float]:
    """Return the share of each isotope of a peptide, lightest first, relative to the most abundant one.

    The number of heavy carbon atoms is binomial; isotopes below ``RARE`` are left out at both ends.

    Args:
        mass: of the lightest isotope in Da.

    References:
        Behrmann, thesis, section 7.3.2.

    Example:
        >>> [round(share, 3) for share in isotope_pattern(1000)]
        [1.0, 0.476, 0.111, 0.017]
    """
    carbon = round(mass / AVERAGINE_MASS * AVERAGINE_CARBON)
    heavy = HEAVY_CARBON
    shares = [
        math.comb(carbon, k) * heavy**k * (1 - heavy) ** (carbon - k) for k in range(carbon + 1)
    ]
    return [share / max(shares) for share in shares if share / max(shares) >= RARE]


@dataclass(frozen=True)
class MassAxis:
    """m/z-bins of a time-of-flight spectrum, whose width grows with the square root of the mass.

    Args:
        bins: their number.
        lowest: mass of the first one in Da.
        mean_width: their mean width in Da; 0.163 in the thesis.
    """

    bins: int = 27_286
    lowest: float = 600.0
    mean_width: float = 0.163

    @cached_property
    def edges(self) -> Tensor:
        """Masses between the bins, (bins + 1,) float64: equidistant in time, the square root of mass."""
        highest = self.lowest + self.bins * self.mean_width
        times = torch.linspace(
            math.sqrt(self.lowest), math.sqrt(highest), self.bins + 1, dtype=torch.float64
        )
        return times.square()

    @property
    def widths(self) -> Tensor:
        """Widths of the bins in Da, (bins,)."""
        return self.edges.diff()

    def position(self, mass: float) -> float:
        """Return the position of a mass in bins, from the start of the axis."""
        start, end = math.sqrt(self.edges[0]), math.sqrt(self.edges[-1])
        return (math.sqrt(mass) - start) / (end - start) * self.bins


def pattern_bins(axis: MassAxis, mass: float, deviation: float = 0.2) -> float:
    """Return the number of bins of an isotope pattern, from two deviations before the first peak to two after the last.

    Args:
        axis: the bins.
        mass: of the lightest isotope in Da.
        deviation: of each peak, a Gaussian, in Da.

    References:
        Behrmann, thesis, figure 7.3; its peak width is not stated.
    """
    last = mass + (len(isotope_pattern(mass)) - 1) * ISOTOPE_DISTANCE
    return axis.position(last + 2 * deviation) - axis.position(mass - 2 * deviation)


SPREAD = 0.35
"""Standard deviation of the logarithm of a peptide's abundance within a class."""

CHANGE = 0.5
"""Share by which the abundance of an informative peptide is larger in one class and smaller in the other."""

OFFSETS_PER_BIN = 4
"""Misalignments that the oracle tries."""

UNEXPLAINED = 0.02
"""Deviation beside the noise up to which the oracle accepts a fit."""


@dataclass(frozen=True)
class IsotopePatterns:
    """Synthetic spectra (bins,) in [0, 1] of two classes, which differ in the abundance of some peptides.

    All spectra share the peptides. Each has a single peak beside its second isotope, whose abundance varies more: the
    class is in whole patterns rather than in single bins. A spectrum depends on seed and id alone.

    ``classify`` gives the class of any spectrum: the likelihood ratio of the abundances that fit it best.

    Args:
        bins: elements of a spectrum; the bins are those of ``MassAxis`` with 0.163 Da on average.
        peptides: number of isotope patterns.
        informative: share of them that differ between the classes, by half of their abundance.
        noise: deviation of the measurement of each bin.
        shift: largest misalignment in bins.
        seed: of peptides and spectra.
        size: number of spectra.
        split: ``test`` or ``train``, different spectra of the same peptides.
    """

    bins: int = 2_048
    peptides: int = 40
    informative: float = 0.2
    noise: float = 0.02
    shift: float = 1.0
    seed: int = 0
    size: int = 1_000
    split: str = "test"

    num_classes = 2
    bounds = (0.0, 1.0)
    classes = ("synthetic tissue A", "synthetic tissue B")
    oracle_source = "generator"
    budgets = ("linf=0.01,0.02,0.05",)

    def __post_init__(self) -> None:
        right = self.bins >= 64 and self.peptides >= 1 and self.size >= 1 and self.seed >= 0
        if not right or not 0 <= self.informative <= 1 or min(self.noise, self.shift) < 0:
            raise BadParameter(
                "invalid synthetic spectra",
                got=self.name,
                expected="bins >= 64, peptides and size >= 1, informative in [0, 1], other numbers >= 0",
            )
        if self.split not in ("test", "train"):
            raise BadParameter("unknown split", got=self.split, expected="test or train")

    @property
    def name(self) -> str:
        """Reference with the parameters that differ from their defaults."""
        own = {key: value for key, value in vars(self).items() if key in self.__dataclass_fields__}
        given = [
            f"{key}={value}" for key, value in own.items() if value != getattr(type(self), key)
        ]
        return ":".join(["isotopes", ",".join(given)]) if given else "isotopes"

    @property
    def shape(self) -> tuple[int, ...]:
        """(bins,)."""
        return (self.bins,)

    @cached_property
    def labels(self) -> Tensor:
        """(size,) int64: 0, 1, 0, 1, …."""
        return torch.arange(self.size) % 2

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all spectra, 64 hexadecimal digits."""
        parts = torch.split(torch.arange(self.size), 250)
        return digest_samples((self.batch(ids)[0] for ids in parts), self.labels, self.bounds)

    def __len__(self) -> int:
        return self.size

    def batch(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Return spectra (n, bins) float32 and labels (n,) int64.

        Raises:
            BadParameter: if an id is out of range.
        """
        ids = checked_ids(ids, self.size)
        rng = SampleRNG(self.seed, ids, f"isotopes-{self.split}")
        peaks = self._peaks
        abundance = (SPREAD * rng.normal((self.peptides,), dtype=torch.float64)).exp()
        change = 1 + CHANGE * self._effect * (2 * self.labels[ids][:, None] - 1)
        disturbed = (0.6 * rng.normal((self.peptides,), step=1, dtype=torch.float64)).exp()
        spectra = (abundance * change) @ peaks[0] + disturbed @ peaks[1]
        spectra = self._moved(spectra, rng)
        spectra = spectra + self.noise * rng.normal((self.bins,), step=2, dtype=torch.float64)
        return spectra.clamp(0, 1).float(), self.labels[ids]

    def classify(self, images: Tensor) -> Tensor:
        """Return the class of spectra (n, bins), (n,) int64: the more likely one, given their abundances.

        Patterns and single peaks are fitted by least squares at several misalignments. The best fit gives the abundance
        of each peptide, whose logarithm is normal in each class. An input that no fit explains has no class: −1, if
        the deviation of its residuals is above twice the noise plus ``UNEXPLAINED``.
        """
        values = images.detach().to("cpu", torch.float64)
        abundances = torch.stack([values @ inverse for inverse, _ in self._fits])
        errors = [
            (values - found @ peaks).square().sum(1)
            for found, (_, peaks) in zip(abundances, self._fits, strict=True)
        ]
        error, best = torch.stack(errors).min(0)
        chosen = abundances[best, torch.arange(len(values))][:, : self.peptides].clamp_min(1e-3)
        effect = self._effect * CHANGE
        distances = [(chosen.log() - (1 + sign * effect).log()).square() for sign in (-1, 1)]
        ratio = ((distances[0] - distances[1]) * effect.abs()).sum(1)
        explained = (error / self.bins).sqrt() <= 2 * self.noise + UNEXPLAINED
        return torch.where(explained, (ratio > 0).long(), -1).to(images.device)

    def _moved(self, spectra: Tensor, rng: SampleRNG) -> Tensor:
        return self._at(
            spectra, self.shift * (2 * rng.uniform((1,), step=3, dtype=torch.float64) - 1)
        )

    def _at(self, spectra: Tensor, offset: Tensor) -> Tensor:
        """Return spectra (n, bins) moved by (n or 1, 1) bins."""
        position = (torch.arange(self.bins) + offset).clamp(0, self.bins - 1)
        before, part = position.floor().long(), position - position.floor()
        after = (before + 1).clamp(max=self.bins - 1)
        left, right, weight = (each.expand(len(spectra), -1) for each in (before, after, part))
        return torch.lerp(spectra.gather(1, left), spectra.gather(1, right), weight)

    @cached_property
    def _fits(self) -> list[tuple[Tensor, Tensor]]:
        """The least-squares inverse (bins, 2 peptides) of all peaks, and the peaks, for each misalignment."""
        steps = round(2 * self.shift * OFFSETS_PER_BIN) + 1
        offsets = torch.linspace(-self.shift, self.shift, steps, dtype=torch.float64)
        moved = [self._at(torch.cat(self._peaks), offset.reshape(1, 1)) for offset in offsets]
        return [(torch.linalg.pinv(peaks), peaks) for peaks in moved]

    @cached_property
    def _peptides(self) -> tuple[Tensor, Tensor]:
        """Masses in Da and heights of the peptides."""
        generator = torch.Generator().manual_seed(self.seed)
        highest = float(self._axis.edges[-1]) - 10
        masses = torch.rand(self.peptides, generator=generator, dtype=torch.float64)
        heights = 0.1 + 0.2 * torch.rand(self.peptides, generator=generator, dtype=torch.float64)
        return self._axis.lowest + 2 + masses * (highest - self._axis.lowest - 2), heights

    @cached_property
    def _axis(self) -> MassAxis:
        return MassAxis(self.bins)

    @property
    def _effect(self) -> Tensor:
        """+1 and −1 in turns for the peptides that differ between the classes, 0 for the others."""
        number = round(self.informative * self.peptides)
        signs = torch.zeros(self.peptides, dtype=torch.float64)
        signs[:number] = 1.0 - 2.0 * (torch.arange(number) % 2)
        return signs

    @cached_property
    def _peaks(self) -> tuple[Tensor, Tensor]:
        """The patterns of the peptides, and single peaks beside their second isotope, (peptides, bins) each."""
        centres = (self._axis.edges[1:] + self._axis.edges[:-1]) / 2

        def peak(mass: float) -> Tensor:
            return torch.exp(-((centres - mass) ** 2) / (2 * 0.2**2))

        patterns, single = [], []
        for mass, height in zip(*(part.tolist() for part in self._peptides), strict=True):
            shares = enumerate(isotope_pattern(mass))
            pattern = [share * peak(mass + k * ISOTOPE_DISTANCE) for k, share in shares]
            patterns.append(height * torch.stack(pattern).sum(0))
            single.append(height * peak(mass + 1.3 * ISOTOPE_DISTANCE))
        return torch.stack(patterns), torch.stack(single)
