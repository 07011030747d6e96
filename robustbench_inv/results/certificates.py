"""Certificates: within which distance a model is proven to predict the label, stored beside a cell's records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.errors import BadResults
from robustbench_inv.results.field_types import check_types
from robustbench_inv.results.files import FORMAT_VERSION, read_versioned, write_json
from robustbench_inv.results.rate import Rate

__all__ = [
    "CERTIFICATES_FILE",
    "CertificateOptions",
    "Certificates",
    "SampleCertificate",
    "Sandwich",
    "read_certificates",
    "sandwich_of",
    "sandwiches",
    "write_certificates",
]

CERTIFICATES_FILE = "certificates.json"


@dataclass(frozen=True)
class CertificateOptions:
    """How samples are certified.

    Args:
        milp_seconds: for the MILP of each target class that linear bounds leave open; 0 for no MILP.
        optimise: steps of the optimisation of the bounds (alpha-CROWN); 0 for plain CROWN.
        export: folder for the properties of the samples that are not certified, a subfolder for each model and norm;
            None for no export.
        answers: folder with the answers of a solver to exported properties; None for no answers.
        solver: its name, which becomes the method of its certificates.
    """

    milp_seconds: float = 0.0
    optimise: int = 20
    export: Path | None = None
    answers: Path | None = None
    solver: str = "external"


@dataclass(frozen=True)
class SampleCertificate:
    """What verifiers found about one sample.

    Args:
        sample: sample id.
        radius: the largest distance within which the label is proven to be predicted; 0 without a proof.
        method: what proved it; empty without a proof.
        broken_at: the smallest eps at which a verifier found an input that the judge confirmed; None without any.
        verifier: what found that input; empty without any.
    """

    sample: int
    radius: float = 0.0
    method: str = ""
    broken_at: float | None = None
    verifier: str = ""

    def merged(self, other: "SampleCertificate") -> "SampleCertificate":
        """Return the better of two findings about the same sample."""
        best = max(self, other, key=lambda each: each.radius)
        found = min(self, other, key=lambda each: inf if each.broken_at is None else each.broken_at)
        return SampleCertificate(
            self.sample, best.radius, best.method, found.broken_at, found.verifier
        )


@dataclass(frozen=True)
class Certificates:
    """The certificates of a model's samples in one norm; they do not depend on the attack.

    Args:
        norm: of the distances.
        samples: what was found, by ascending sample id.
        seconds: that the verifiers took.
    """

    norm: str
    samples: tuple[SampleCertificate, ...]
    seconds: float = 0.0

    @cached_property
    def by_sample(self) -> Mapping[int, SampleCertificate]:
        """The findings by sample id."""
        return {each.sample: each for each in self.samples}

    @property
    def methods(self) -> tuple[str, ...]:
        """What proved or broke any sample."""
        names = [name for each in self.samples for name in (each.method, each.verifier)]
        return tuple(dict.fromkeys(filter(None, names)))

    def radii(self, ids: Iterable[int]) -> NDArray[np.float64]:
        """Return the certified radius of samples, (n,); 0 for those without a proof."""
        none = SampleCertificate(-1)
        return np.array([self.by_sample.get(i, none).radius for i in ids], dtype=float)

    def broken_at(self, ids: Iterable[int]) -> NDArray[np.float64]:
        """Return the eps at which a verifier broke samples, (n,); inf for none."""
        found = (self.by_sample.get(i) for i in ids)
        values = [None if each is None else each.broken_at for each in found]
        return np.array([inf if value is None else value for value in values])

    def merged(self, other: "Certificates | None") -> "Certificates":
        """Return these findings together with earlier ones in the same norm."""
        if other is None or other.norm != self.norm:
            return self
        both = dict(other.by_sample)
        for each in self.samples:
            both[each.sample] = each.merged(both.get(each.sample, each))
        ordered = tuple(both[sample] for sample in sorted(both))
        return Certificates(self.norm, ordered, round(self.seconds + other.seconds, 1))

    def to_json(self) -> dict[str, Any]:
        """Return the content of certificates.json but for its version: one list for each field."""
        names = SampleCertificate.__dataclass_fields__
        columns = {name: [getattr(each, name) for each in self.samples] for name in names}
        return {"norm": self.norm, "seconds": self.seconds, **columns}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Certificates":
        """Read certificates.json; other keys are ignored.

        Raises:
            KeyError, TypeError, ValueError: if an entry is missing or wrong.
        """
        names = SampleCertificate.__dataclass_fields__
        rows = zip(*(value[name] for name in names), strict=True)
        found = cls(value["norm"], tuple(SampleCertificate(*row) for row in rows), value["seconds"])
        check_types(found)
        ids = [each.sample for each in found.samples]
        if ids != sorted(set(ids)) or not all(map(_is_possible, found.samples)):
            raise ValueError("a sample is repeated, or a distance is impossible")
        return found


def _is_possible(found: SampleCertificate) -> bool:
    check_types(found)
    known = found.broken_at is None or 0 <= found.broken_at < inf
    return isfinite(found.radius) and found.radius >= 0 and known


def read_certificates(cell: Path) -> Certificates | None:
    """Read the certificates from a cell's folder; None if there are none.

    Raises:
        BadResults: if the file is damaged.
    """
    path = cell / CERTIFICATES_FILE
    if not path.exists():
        return None
    try:
        return Certificates.from_json(read_versioned(path))
    except (KeyError, TypeError, ValueError) as error:
        remedy = "remove it and certify again"
        raise BadResults(f"{path} is damaged: {error!r}", remedy=remedy) from error


def write_certificates(cell: Path, found: Certificates) -> None:
    """Write certificates into a cell's folder.

    Raises:
        BadResults: if they cannot be written.
    """
    write_json(cell / CERTIFICATES_FILE, {"version": FORMAT_VERSION, **found.to_json()})


@dataclass(frozen=True)
class Sandwich:
    """Robust accuracy at one eps as an interval: certified below, attacked above.

    Args:
        eps: the budget; inf is not certified.
        certified: samples that are proven robust and that nothing broke, of all.
        attacked: samples that neither an attack nor a verifier broke, of all.
        by_verifier: samples that only a verifier broke.
        methods: what proved robust or broke any sample.
    """

    eps: float
    certified: Rate
    attacked: Rate
    by_verifier: int
    methods: tuple[str, ...] = field(default=())

    @property
    def open(self) -> int:
        """Number of samples that are neither certified robust nor broken."""
        return self.attacked.successes - self.certified.successes

    @property
    def text(self) -> str:
        """The interval in per cent, with the ends of both sampling intervals.

        Example:
            >>> Sandwich(0.1, Rate(60, 100), Rate(80, 100), 0).text
            'between 60.0 % certified [50.2, 69.1] and 80.0 % attacked [71.1, 86.7], 20 open'
        """
        ends = (self.certified, "certified"), (self.attacked, "attacked")
        shares = [
            f"{100 * r.value:.1f} % {name} [{100 * r.low:.1f}, {100 * r.high:.1f}]"
            for r, name in ends
        ]
        return f"between {shares[0]} and {shares[1]}, {self.open} open"

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        rates = {"certified": self.certified.to_json(), "attacked": self.attacked.to_json()}
        return {**asdict(self), **rates, "methods": list(self.methods), "open": self.open}


def sandwich(
    found: Sequence[Certificates], ids: Sequence[int], robust: NDArray[np.bool_], eps: float
) -> Sandwich:
    """Return the interval of some samples of one model at an eps.

    Args:
        found: certificates of the model in the norm of eps, at least one; they are combined.
        ids: the samples.
        robust: (n,) samples that no attack broke.
        eps: the budget.
    """
    certified = np.any([each.radii(ids) >= eps * (1 - 1e-9) for each in found], axis=0)
    broken = np.any([each.broken_at(ids) <= eps * (1 + 1e-9) for each in found], axis=0)
    left, n = robust & ~broken, len(ids)
    methods = dict.fromkeys(name for each in found for name in each.methods)
    rates = Rate(int((left & certified).sum()), n), Rate(int(left.sum()), n)
    return Sandwich(eps, *rates, int((robust & broken).sum()), tuple(methods))


class CertifiedCell(Protocol):
    """What the interval needs of a finished cell."""

    @property
    def certificates(self) -> Certificates | None: ...
    @property
    def norm(self) -> str: ...
    @property
    def goal(self) -> str: ...
    @property
    def can_reject(self) -> bool: ...
    @property
    def epsilons(self) -> tuple[float, ...]: ...
    @property
    def ids(self) -> NDArray[np.int64]: ...
    def robust_mask(self, eps: float) -> NDArray[np.bool_]: ...


def sandwich_of(
    cells: Sequence[CertifiedCell], ids: Sequence[int], robust: NDArray[np.bool_], eps: float
) -> Sandwich | None:
    """Return the robust accuracy of one model as an interval, certified below and attacked above; None if none applies.

    Args:
        cells: attacks on the model.
        ids: the samples.
        robust: (n,) samples that no attack broke.
        eps: the budget; inf cannot be certified.
    """
    found = [c.certificates for c in cells if c.certificates and c.certificates.norm == c.norm]
    plain = all(cell.goal == "misclassify" and not cell.can_reject for cell in cells)
    return sandwich(found, ids, robust, eps) if found and plain and eps < inf else None


def sandwiches(cell: CertifiedCell) -> list[Sandwich]:
    """Return the interval of a cell at each eps; empty without certificates."""
    ids = cell.ids.tolist()
    found = (sandwich_of([cell], ids, cell.robust_mask(eps), eps) for eps in cell.epsilons)
    return [each for each in found if each is not None]
