"""The plan of an evaluation: its cells, checked before anything runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from robustbench_inv.catalogue.attacks import LoadedAttack
from robustbench_inv.catalogue.datasets import identify_dataset
from robustbench_inv.catalogue.fingerprint import content
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.evaluation.compatibility import check_compatible, warnings
from robustbench_inv.evaluation.oracles import Oracle, dataset_oracle, describe_oracle
from robustbench_inv.evaluation.provenance import versions
from robustbench_inv.identity import IDENTITY_VERSION, digest_value
from robustbench_inv.threat.threat_model import ThreatModel, describe_threat, digest_threat

if TYPE_CHECKING:
    from robustbench_inv.evaluation.cost import Estimate
    from robustbench_inv.evaluation.jobs import JobSource

__all__ = ["CellSpec", "Job", "Plan", "plan_jobs"]


@dataclass(frozen=True)
class CellSpec:
    """What determines a record; batch size, device and workers are absent on purpose.

    Args:
        model: digest of name, revision, parameters and weights, of a user's model that of its code.
        attack: digest of preset, revision, parameters and goal, of a user's attack that of its code.
        threat: digest of norm, eps, goal and access.
        dataset: digest of the data's bytes, and of the code of a user's own data set.
        seed: the seed of all random numbers.
    """

    model: str
    attack: str
    threat: str
    dataset: str
    seed: int

    @property
    def digest(self) -> str:
        """Name of the cell's folder: 32 hexadecimal digits."""
        return digest_value({"version": IDENTITY_VERSION, **vars(self)})[:32]


@dataclass(frozen=True)
class Job:
    """One cell and the samples that are asked of it.

    Args:
        model: the model.
        attack: the attack.
        threat: budget or sweep, goal, access.
        dataset: the data.
        seed: of all random numbers.
        samples: ascending sample ids.
        origin: the names it was made from, by which another process makes it again; None to pickle it.
        substitute: the model that the threat names, None if it names none.
        oracle: the one that the threat names, None if it names none.
        optional: leave the cell out of a plan, and say so, if its parts do not fit together.
        excluded: samples that were asked for and are of the class that the goal aims at.
    """

    model: LoadedModel
    attack: LoadedAttack
    threat: ThreatModel
    dataset: Dataset
    seed: int
    samples: tuple[int, ...]
    origin: "JobSource | None" = field(default=None, compare=False, repr=False)
    substitute: LoadedModel | None = None
    oracle: Oracle | None = None
    optional: bool = field(default=False, compare=False)
    excluded: int = field(default=0, compare=False)

    @cached_property
    def spec(self) -> CellSpec:
        """What determines the records."""
        return CellSpec(
            model=self.model.digest,
            attack=self.attack.digest,
            threat=digest_threat(self.threat_description),
            dataset=identify_dataset(self.dataset),
            seed=self.seed,
        )

    @cached_property
    def threat_description(self) -> dict[str, Any]:
        """The threat, its substitute and its oracle as plain values."""
        helper, oracle = self.substitute, self.oracle
        return describe_threat(
            self.threat,
            content,
            None if helper is None else {"name": helper.name, "digest": helper.digest},
            None if oracle is None else describe_oracle(str(self.threat.oracle), oracle),
        )

    @property
    def search_model(self) -> LoadedModel:
        """The model that answers while the attack searches."""
        return self.substitute if self.substitute and self.threat.is_transfer else self.model

    @property
    def guide(self) -> LoadedModel | None:
        """The model that gives the gradients in place of the one that answers, if any."""
        return None if self.threat.is_transfer else self.substitute

    @property
    def effective_oracle(self) -> Oracle | None:
        """Who says what class a changed input has: whom the threat names, else the data set, if it can tell."""
        return self.oracle or dataset_oracle(self.dataset)

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The sweep, ascending; empty without a budget."""
        return self.threat.epsilons

    @property
    def title(self) -> str:
        """How messages, and the verdicts of checks, call the cell."""
        threat = self.threat.text
        return (
            f"{self.attack.name} on {self.model.name}, {threat}, {self.dataset.name}, "
            f"seed {self.seed}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross a process boundary as names, where there are names."""
        rest = (self.threat, self.seed, self.samples)
        if self.origin is None:
            found = (self.model, self.attack, self.threat, self.dataset)
            return Job, (*found, *rest[1:], None, self.substitute, self.oracle)
        from robustbench_inv.evaluation.jobs import rebuild_job

        return rebuild_job, (self.origin, self.spec.digest, rest)

    def to_json(self) -> dict[str, object]:
        """Return the cell's entry in plan.json."""
        return {
            "digest": self.spec.digest,
            "model": self.model.name,
            "attack": self.attack.name,
            "threat": self.threat.text,
            "dataset": self.dataset.name,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Plan:
    """The cells of one evaluation, none twice.

    Args:
        name: of its folder, the same for the same cells.
        jobs: the cells, in the order in which they run.
        warnings: what is allowed and yet looks like a mistake, one line each.
        command: what the user typed, for the record.
        deep: run the costly probes of the models as well.
    """

    name: str
    jobs: tuple[Job, ...]
    warnings: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    deep: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the content of plan.json but for its version."""
        return {
            "name": self.name,
            "created_by": versions(),
            "commands": [list(self.command)] if self.command else [],
            "samples": sorted({sample for job in self.jobs for sample in job.samples}),
            "cells": [job.to_json() for job in self.jobs],
        }

    def estimate(self) -> "list[Estimate]":
        """Return what each cell will cost, measured on one small batch of each model."""
        from robustbench_inv.evaluation.cost import estimate_jobs

        return estimate_jobs(self.jobs)


def plan_jobs(
    jobs: Iterable[Job],
    *,
    label: str | None = None,
    command: Iterable[str] = (),
    deep: bool = False,
) -> Plan:
    """Return the plan of some jobs, checked.

    Args:
        jobs: the cells; of two with the same digest, the first stays.
        label: first part of the plan's name; None for the first model's.
        command: what the user typed.
        deep: run the costly probes of the models as well.

    Raises:
        CapabilityMismatch: if model, attack, threat and data set of a cell do not fit together.
    """
    chosen, excluded = _compatible({job.spec.digest: job for job in jobs}.values())
    lines = dict.fromkeys([*excluded, *(line for job in chosen for line in warnings(job))])
    return Plan(_name(chosen, label), chosen, tuple(lines), tuple(command), deep)


def _compatible(jobs: Iterable[Job]) -> tuple[tuple[Job, ...], list[str]]:
    """Return the jobs whose parts fit together, and a line about each optional one that is left out.

    Raises:
        CapabilityMismatch: if a job that is not optional does not fit, or none is left.
    """
    fitting, errors = [], []
    for job in jobs:
        try:
            check_compatible(job)
        except CapabilityMismatch as error:
            if not job.optional:
                raise
            errors.append(error)
        else:
            fitting.append(job)
    if errors and not fitting:
        raise errors[0]
    return tuple(fitting), [f"left out: {error}" for error in errors]


def _name(jobs: tuple[Job, ...], label: str | None) -> str:
    """Return ``<model or suite>-<data set>-<8 hex>``; the samples are left out, so that more can be added."""
    digest = digest_value({"cells": sorted(job.spec.digest for job in jobs)})[:8]
    parts = (label or jobs[0].model.name, jobs[0].dataset.name) if jobs else ("empty",)
    return "-".join([*(_file_name(part) for part in parts), digest])


def _file_name(text: str) -> str:
    short = text.partition("=")[0].rpartition("/")[2].replace(".py", "")
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in short)
    return kept.strip("-")[:40] or "run"
