"""Certifies the samples of an evaluation, and writes the certificates beside the records."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_inv.certification.bounds import (
    Bounds,
    Network,
    Region,
    bound,
    margins,
    optimised_margins,
    wrong_class_rows,
)
from robustbench_inv.certification.handover import read_answers, write_properties
from robustbench_inv.certification.milp import Program, refuse_unsuited
from robustbench_inv.certification.tracing import trace
from robustbench_inv.errors import BadModel, InvbenchError
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.judge import Judge
from robustbench_inv.foreign import foreign_call
from robustbench_inv.models.iresnet import InvertibleResNet, safe_radii
from robustbench_inv.models.wrapping import ModuleClassifier
from robustbench_inv.results.certificates import (
    CertificateOptions,
    Certificates,
    SampleCertificate,
    read_certificates,
    write_certificates,
)
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.results.summary import same_eps
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import Misclassify
from robustbench_inv.torch_state import evaluation_mode

__all__ = ["Verifier", "certify_jobs"]

BATCH = 20
"""Samples that are bounded at once."""

NORMS = ("linf", "l2")


def certify_jobs(jobs: Sequence[Job], root: Path, options: CertificateOptions) -> tuple[str, ...]:
    """Certify the samples of finished cells, each model and norm once, and return notes for the user.

    Cells whose model or threat has no sound certificate get none, and a note gives the reason.

    Args:
        jobs: the cells.
        root: folder of the run.
        options: how samples are certified.

    Raises:
        BadResults: if the certificates cannot be written.
    """
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job in jobs:
        if (root / job.spec.digest).is_dir():
            key = job.model.digest, job.spec.dataset, job.threat.budget.norm
            groups.setdefault(key, []).append(job)
    return tuple(note for group in groups.values() for note in _certify_group(group, root, options))


def _certify_group(jobs: Sequence[Job], root: Path, options: CertificateOptions) -> Iterator[str]:
    """Certify one model in one norm, and write the certificates of each cell; yield why it has none."""
    suited = [
        job
        for job in jobs
        if type(job.threat.goal) is Misclassify and not job.threat.goal.same_class
    ]
    if not suited:
        return
    name = suited[0].label or suited[0].model.name
    eps = sorted({eps for job in suited for eps in job.epsilons})
    samples = sorted({sample for job in suited for sample in job.samples})
    try:
        broken = _broken([root / job.spec.digest for job in suited])
        found = Verifier(suited[0], options, broken).certify(samples, eps)
    except InvbenchError as error:
        yield f"no certificates for {name}: {error}"
        return
    for job in suited:
        folder, wanted = root / job.spec.digest, set(job.samples)
        mine = tuple(each for each in found.samples if each.sample in wanted)
        known = read_certificates(folder)
        write_certificates(folder, replace(found, samples=mine).merged(known))


def _broken(folders: Sequence[Path]) -> dict[int, float]:
    """Return the smallest eps at which an attack broke each sample."""
    found: dict[int, float] = {}
    for record in (record for folder in folders for record in CellFolder(folder).records()):
        if record.broken_at is not None:
            found[record.sample] = min(record.broken_at, found.get(record.sample, inf))
    return found


@dataclass(frozen=True)
class Verifier:
    """Certifies the decision of ``Judge.predict`` for samples of one model.

    Args:
        job: names model, data, norm and seed.
        options: how samples are certified.
        broken: smallest eps at which an attack broke a sample, for which no MILP is solved.

    Raises:
        BadModel: if the model has no sound certificate in this norm.
    """

    job: Job
    options: CertificateOptions = field(default_factory=CertificateOptions)
    broken: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        classifier, norm = self.job.model.classifier, self.job.threat.budget.norm
        if not isinstance(classifier, ModuleClassifier):
            raise BadModel(
                "its decision cannot be certified",
                got=type(classifier).__name__,
                expected="a deterministic network without a reject option",
            )
        if norm not in NORMS:
            raise BadModel("no certificates in this norm", got=norm, expected=" or ".join(NORMS))

    @cached_property
    def judge(self) -> Judge:
        """What decides on predictions and counterexamples."""
        return Judge(self.job.model.classifier, self.job.dataset, self.job.seed)

    @property
    def norm(self) -> str:
        """The norm of the certificates."""
        return self.job.threat.budget.norm

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value of an input element."""
        return self.job.model.classifier.bounds

    @property
    def module(self) -> nn.Module:
        """The judged network."""
        classifier = self.job.model.classifier
        assert isinstance(classifier, ModuleClassifier)
        return classifier.module

    def network(self) -> Network:
        """Return the operations of the network.

        Raises:
            BadModel: if one has no sound bounds, or they do not compute the judged logits.
        """
        images, _, ids = self.samples(self.job.samples[:8])
        classifier = self.job.model.classifier
        with evaluation_mode(self.module), foreign_call("the model"):
            network = trace(self.module, tuple(images.shape[1:]), classifier.num_classes)
        before = self.judge.predict(images, ids)
        size = float(before.logits.abs().amax())
        if before.accepted is not None:
            raise BadModel("no certificates for models with a reject option")
        if float((network(images) - before.logits.double()).abs().amax()) > 1e-3 * max(1.0, size):
            raise BadModel("the traced network computes other logits than the model")
        return network

    def samples(self, ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return images (n, …) in the model's type, labels (n,) and ids (n,)."""
        rows = torch.tensor(list(ids), dtype=torch.int64)
        images, labels = self.job.dataset.batch(rows)
        return images.to(self.job.model.classifier.dtype), labels, rows

    def certify(self, samples: Sequence[int], eps_values: Sequence[float]) -> Certificates:
        """Return the certificates of some samples, for each eps from the smallest until a sample is not certified.

        Args:
            samples: sample ids, ascending.
            eps_values: ascending; a Lipschitz certificate needs none.
        """
        began = time.perf_counter()
        found = {sample: SampleCertificate(sample) for sample in samples}
        if isinstance(self.module, InvertibleResNet) and self.norm == "l2":
            for block in _blocks(samples, 250):
                found |= self._lipschitz(block)
        elif not eps_values:
            raise BadModel(
                "a certificate needs a budget", got="none", expected="linf=EPS or l2=EPS"
            )
        else:
            network = self.network()
            for block in _blocks(samples, BATCH):
                found |= _Block(self, network, block).certify(eps_values)
            self._hand_over(network, found, eps_values)
        seconds = round(time.perf_counter() - began, 1)
        return Certificates(self.norm, tuple(found[sample] for sample in samples), seconds)

    def _hand_over(
        self, network: Network, found: dict[int, SampleCertificate], eps_values: Sequence[float]
    ) -> None:
        """Read the answers of a solver, then export the properties of the samples that are not certified."""
        place = Path(f"{self.job.model.name.replace('/', '-')}-{self.norm}")
        if self.options.answers:
            answers = read_answers(self.options.answers / place, self.job.model.digest)
            for sample, eps, status, image in answers:
                if sample in found and any(same_eps(eps, each) for each in eps_values):
                    found[sample] = found[sample].merged(self._answer(sample, eps, status, image))
        if self.options.export:
            for eps in eps_values:
                self._export(self.options.export / place, network, found, eps)

    def _answer(
        self, sample: int, eps: float, status: str, image: Tensor | None
    ) -> SampleCertificate:
        """Return what an answer proves; a counterexample counts if the judge confirms it."""
        clean, labels, ids = self.samples([sample])
        before = self.judge.predict(clean, ids)
        if status == "robust" and bool(before.valid) and int(before.decision) == int(labels):
            return SampleCertificate(sample, eps, self.options.solver)
        if image is None or image.numel() != clean.numel():
            return SampleCertificate(sample)
        given = (clean[0], image.reshape(clean.shape[1:]), int(labels), sample, eps)
        if not self.is_counterexample(*given):
            return SampleCertificate(sample)
        return SampleCertificate(sample, broken_at=eps, verifier=self.options.solver)

    def _export(
        self, folder: Path, network: Network, found: dict[int, SampleCertificate], eps: float
    ) -> None:
        left = [i for i, each in found.items() if each.radius < eps * (1 - 1e-9)]
        left = [i for i in left if found[i].broken_at is None]
        for block in _blocks(left, 250):
            images, labels, ids = self.samples(block)
            right = (self.judge.predict(images, ids).decision == labels).nonzero()[:, 0]
            region = Region.of(images[right], eps, self.norm, self.bounds)
            about = dict(zip(ids[right].tolist(), labels[right].tolist(), strict=True))
            write_properties(folder, network, region, eps, about, self.job.model.digest)

    def _lipschitz(self, samples: Sequence[int]) -> Mapping[int, SampleCertificate]:
        """Return the certified radii of an i-ResNet, less what rounding may change."""
        images, labels, _ = self.samples(samples)
        assert isinstance(self.module, InvertibleResNet)
        with evaluation_mode(self.module), foreign_call("the model"):
            safe = safe_radii(self.module.certified_radii(images, labels)).tolist()
        return {
            sample: SampleCertificate(sample, radius, "lipschitz" if radius else "")
            for sample, radius in zip(samples, safe, strict=True)
        }

    def is_counterexample(
        self, clean: Tensor, image: Tensor, label: int, sample: int, eps: float
    ) -> bool:
        """Does the judged model misclassify an input (…) of the budget? The input is moved into the budget first."""
        nearest = LpBall(self.norm, eps).project(clean[None].double(), image[None].double())
        moved = nearest.clamp(*self.bounds).to(clean.dtype)
        if not LpBall(self.norm, eps).contains(clean[None], moved).all():
            return False
        output = self.judge.predict(moved, torch.tensor([sample]))
        return bool(output.valid.all()) and int(output.decision) != label


def _blocks(samples: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (samples[start : start + size] for start in range(0, len(samples), size))


class _Block:
    """The certification of a few samples by bounds.

    Args:
        verifier: the model.
        network: its operations.
        samples: sample ids.
    """

    def __init__(self, verifier: Verifier, network: Network, samples: Sequence[int]) -> None:
        self.verifier, self.network = verifier, network
        self.images, self.labels, self.ids = verifier.samples(samples)
        self.found = {sample: SampleCertificate(sample) for sample in samples}
        before = verifier.judge.predict(self.images, self.ids)
        self.todo = (before.valid & (before.decision == self.labels)).nonzero()[:, 0]

    def certify(self, eps_values: Sequence[float]) -> Mapping[int, SampleCertificate]:
        """Return what was found, from the smallest eps until no sample is certified."""
        for eps in eps_values:
            if len(self.todo):
                self._certify_at(eps)
        return self.found

    def _certify_at(self, eps: float) -> None:
        """Certify the remaining samples at one eps, by the cheapest method first; keep those that are certified."""
        proven: list[Tensor] = []
        rest = self.todo
        for method in ("ibp", "crown", "alpha-crown"):
            if not len(rest) or (method == "alpha-crown" and not self.verifier.options.optimise):
                continue
            if method != "alpha-crown":
                bounds = bound(self.network, self._region(rest, eps), linear=method == "crown")
            found = self._margins(method, bounds, rest)
            certified = (found > 0).all(1)
            proven.append(self._keep(rest[certified], eps, method))
            rest, bounds = rest[~certified], _select(bounds, ~certified)
        known = self.verifier.broken
        unbroken = torch.tensor(
            [known.get(sample, inf) > eps for sample in self.ids[rest].tolist()], dtype=torch.bool
        )
        if self.verifier.options.milp_seconds and unbroken.any():
            proven.append(self._by_milp(rest[unbroken], _select(bounds, unbroken), eps))
        self.todo = torch.cat(proven).sort().values

    def _margins(self, method: str, bounds: Bounds, rows: Tensor) -> Tensor:
        labels = self.labels[rows]
        if method == "alpha-crown":
            return optimised_margins(bounds, labels, self.verifier.options.optimise)
        return margins(bounds, labels, linear=method == "crown")

    def _region(self, rows: Tensor, eps: float) -> Region:
        return Region.of(self.images[rows], eps, self.verifier.norm, self.verifier.bounds)

    def _keep(self, rows: Tensor, eps: float, method: str) -> Tensor:
        for sample in self.ids[rows].tolist():
            self.found[sample] = replace(self.found[sample], radius=eps, method=method)
        return rows

    def _by_milp(self, rows: Tensor, bounds: Bounds, eps: float) -> Tensor:
        """Return the samples that a MILP certifies, given their bounds; keep the counterexamples of the others."""
        refuse_unsuited(bounds)
        lowest, seconds = margins(bounds, self.labels[rows]), self.verifier.options.milp_seconds
        return torch.cat(
            [
                rows[:0],
                *(
                    self._keep(row[None], eps, "milp")
                    for place, row in enumerate(rows)
                    if self._solve(Program(bounds, place), int(row), lowest[place], eps, seconds)
                ),
            ]
        )

    def _solve(
        self, program: Program, row: int, lowest: Tensor, eps: float, seconds: float
    ) -> bool:
        """Is a sample robust? Each target class has so many seconds; those with the smallest bound come first."""
        label, sample = int(self.labels[row]), int(self.ids[row])
        weights, _ = wrong_class_rows(self.labels[row][None], program.bounds.steps[-1][0].shape[1])
        for target in lowest.argsort().tolist():
            if lowest[target] > 0:
                return True
            answer = program.search(weights[target], seconds)
            if answer.image is not None:
                given = (self.images[row], answer.image, label, sample, eps)
                if self.verifier.is_counterexample(*given):
                    self.found[sample] = replace(self.found[sample], broken_at=eps, verifier="milp")
            if answer.status != "robust":
                return False
        return True


def _select(bounds: Bounds, mask: Tensor) -> Bounds:
    """Return the bounds of some of the samples."""
    region = bounds.region
    smaller = Region(region.clean[mask], region.eps[mask], region.norm, region.bounds)
    steps = tuple((low[mask], high[mask]) for low, high in bounds.steps)
    errors = tuple(None if each is None else each[mask] for each in bounds.errors)
    return Bounds(bounds.network, smaller, steps, errors)
