"""A finished cell: one attack on one model under one threat on one data set, with its records."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.identity import digest_bytes
from robustbench_inv.results.cell_events import SampleValues, looks_of, sample_values
from robustbench_inv.results.cell_parts import (
    JSON,
    AttackInfo,
    DatasetInfo,
    ModelInfo,
    Segment,
    ThreatInfo,
    upgrade_cell_v1,
)
from robustbench_inv.results.certificates import Certificates
from robustbench_inv.results.files import DIGEST
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.record import Record
from robustbench_inv.results.record_columns import Records, as_array, as_set
from robustbench_inv.results.summary import (
    CellSummary,
    Rate,
    broken_within,
    same_eps,
    summarise,
)

__all__ = [
    "CellInfo",
    "FinishedCell",
]

KEPT_VALUES = 10_000
"""The numbers of larger cells are read again each time, since they would fill the memory."""

SOFTWARE = ("device", "dtype", "versions", "git")


@dataclass(frozen=True)
class CellInfo:
    """The content of cell.json: everything that the records of a cell depend on, and how they were made.

    Args:
        identity: version and digests that name the cell.
        model: the attacked model.
        attack: the attack.
        threat: budget, goal and access.
        dataset: the data set.
        seed: of all random numbers.
        software: device, dtype, versions, git.
        batch_size: of new blocks.
        segments: the samples in the order of their records.
        rejudged_from: digest of the cell whose images another oracle judged; None for an evaluation.
        version: of the file that was read.
        answers: what model, substitute, oracle and data set return for fixed inputs; empty in older files.
        sealed: did the file carry its digest?
    """

    identity: JSON
    model: ModelInfo
    attack: AttackInfo
    threat: ThreatInfo
    dataset: DatasetInfo
    seed: int
    software: JSON = field(default_factory=dict, repr=False)
    batch_size: int | None = None
    segments: tuple[Segment, ...] = ()
    rejudged_from: str | None = None
    version: int = 2
    answers: JSON = field(default_factory=dict, repr=False)
    sealed: bool = False

    @classmethod
    def from_json(cls, value: JSON) -> "CellInfo":
        """Read cell.json of version 1 or 2.

        Raises:
            KeyError, TypeError, ValueError: if an entry is missing or has the wrong type.
        """
        version = value.get("version", 2)
        value = upgrade_cell_v1(value) if version == 1 else value
        return cls(
            identity=value.get("identity") or {},
            model=ModelInfo.from_json(value["model"]),
            attack=AttackInfo.from_json(value["attack"]),
            threat=ThreatInfo.from_json(value["threat"]),
            dataset=DatasetInfo.from_json(value["dataset"]),
            seed=value["seed"],
            software={key: value[key] for key in SOFTWARE if key in value},
            batch_size=value.get("batch_size"),
            segments=tuple(map(Segment.from_json, value.get("segments", ()))),
            rejudged_from=value.get("rejudged_from"),
            version=version,
            answers=dict(value.get("answers") or {}),
            sealed=DIGEST in value,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of cell.json, version 2."""
        parts = {key: getattr(self, key).to_json() for key in ("model", "threat", "dataset")}
        rejudged = {"rejudged_from": self.rejudged_from} if self.rejudged_from else {}
        return {
            "version": 2,
            "identity": dict(self.identity),
            "model": parts["model"],
            "attack": dict(vars(self.attack)),
            "threat": parts["threat"],
            "dataset": parts["dataset"],
            "seed": self.seed,
            **self.software,
            **rejudged,
            **({"answers": dict(self.answers)} if self.answers else {}),
            "batch_size": self.batch_size,
            "segments": [segment.to_json() for segment in self.segments],
        }

    @property
    def dataset_key(self) -> str:
        """What distinguishes the data set: its identity, which covers a user's code; its name if a file has none."""
        return str(self.identity.get("dataset") or self.dataset.digest or self.dataset.name)

    @property
    def attack_label(self) -> str:
        """The attack's name with its target class and its substitute, as in ``fgsm via mnist-lenet5``."""
        name, helper = self.attack.name + self.threat.target_label, self.threat.substitute
        if helper is None:
            return name
        return f"{name} {'via' if self.threat.access == 'transfer' else 'guided by'} {helper.name}"

    def target_class(self, record: Record) -> int:
        """Return the class that a targeted goal wants for a sample."""
        about = self.threat.goal_parameters
        if about.get("offset") is None:
            return int(about["label"])
        return (record.label + int(about["offset"])) % self.dataset.num_classes


_SINGLE_STEP = re.compile(r"f?fgsm|fgm|(l1|l2|linf)fastgradientattack")
_CROSS_ENTROPY = re.compile(r"(?!apgdt).*(pgd|fgsm|fgm|bim|fastgradient|basiciterative).*")


@dataclass(frozen=True, eq=False)
class FinishedCell:
    """One attack on one model: what was evaluated, and the records.

    Args:
        digest: identifies the cell.
        info: the content of cell.json.
        records: by ascending sample id.
        requested: ids of the requested samples, ascending.
        events: the entries of events.jsonl.
        oracle_error: the error rate of the oracle itself; None if it was not measured.
        certificates: what verifiers proved about the samples; None if the model was not certified.
        remarks: on the files, one clause each.
        read_images: returns ``samples`` (n,), ``clean`` and ``adversarial`` (n, …); None without kept images.
        model_label: how a report calls the model.
        attack_label: how a report calls the attack, with its target class and its substitute.
        whole: all records of the cell, if ``records`` are some of them; None if they are all.
    """

    digest: str
    info: CellInfo
    records: Records
    requested: tuple[int, ...]
    events: Sequence[JSON] = ()
    oracle_error: OracleError | None = None
    certificates: Certificates | None = None
    remarks: tuple[str, ...] = ()
    read_images: Callable[[], Mapping[str, np.ndarray] | None] = field(default=lambda: None)
    model_label: str = ""
    attack_label: str = ""
    whole: Records | None = None
    _values: "dict[str, SampleValues] | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Sort the records, and take the labels of a report from the names."""
        object.__setattr__(self, "records", Records.of(self.records).by_sample())
        object.__setattr__(self, "model_label", self.model_label or self.info.model.name)
        object.__setattr__(self, "attack_label", self.attack_label or self.info.attack_label)

    @property
    def model(self) -> ModelInfo:
        """The attacked model."""
        return self.info.model

    @property
    def attack(self) -> AttackInfo:
        """The attack."""
        return self.info.attack

    @property
    def threat(self) -> ThreatInfo:
        """Budget, goal and access."""
        return self.info.threat

    @property
    def dataset(self) -> DatasetInfo:
        """The data set."""
        return self.info.dataset

    @property
    def norm(self) -> str:
        """The norm of distances."""
        return self.threat.norm

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The sweep, ascending; empty without a budget."""
        return self.threat.epsilons

    @property
    def goal(self) -> str:
        """Name of the attacker's goal."""
        return self.threat.goal

    @property
    def kind(self) -> str:
        """The kind of the attack: ``fixed-budget``, ``minimum-norm``, ``invariance`` or ``fixed-input``."""
        return self.attack.kind

    @property
    def subject(self) -> str:
        """How verdicts about this cell call it."""
        text = self.threat.text or f"{self.norm}={','.join(map(str, self.epsilons))}"
        name = f"{self.attack.name} on {self.model.name}"
        return f"{name}, {text}, {self.dataset.name}, seed {self.info.seed}"

    @property
    def finished(self) -> bool:
        """Does every requested sample have a record?"""
        return self.sample_ids.issuperset(self.requested)

    @cached_property
    def can_reject(self) -> bool:
        """Does the model have a reject option?"""
        return bool((self.records.columns.clean.accepted >= 0).any())

    @cached_property
    def oracle_source(self) -> str | None:
        """Who named the true classes of the adversarial inputs; None if nobody did."""
        found = self.records.columns
        used = np.unique(found.oracle_source[found.oracle_source >= 0]).tolist()
        return "+".join(sorted(found.sources[number] for number in used)) or None

    @property
    def sample_values(self) -> "dict[str, SampleValues]":
        """What the attack measured of each sample: name → sample → number."""
        found = self._values
        if found is None:
            found = sample_values(self.events)
            if len(self.records) <= KEPT_VALUES:
                object.__setattr__(self, "_values", found)
        return found

    @cached_property
    def summary(self) -> CellSummary:
        """The rates of the records."""
        distances = self.attacked_distances if self.minimizes_distance else None
        no_class = self.threat.no_class
        return summarise(self.records, self.epsilons, distances, no_class=no_class)

    @property
    def minimizes_distance(self) -> bool:
        """Does the attack minimise a distance? One inside a budget does not, and fixed inputs have a fixed one."""
        return self.kind == "minimum-norm" or not (self.epsilons or self.kind == "fixed-input")

    @property
    def uses_substitute(self) -> bool:
        """Did the search use another model? Then its gradients are not the attacked model's."""
        return self.threat.substitute is not None

    @cached_property
    def uses_gradients(self) -> bool:
        """Did the attack take gradients of the attacked model on any sample?"""
        return not self.uses_substitute and bool(self.records.columns.backward_passes.any())

    @cached_property
    def gradient_free(self) -> bool:
        """Is it a random, score-based, decision-based or transfer attack?

        An analytic attack, which neither queries the model nor takes gradients, is not.
        """
        restricted = self.uses_substitute or self.threat.access in ("score", "decision")
        queries = bool(self.records.columns.forward_passes.any())
        return not self.uses_gradients and (restricted or queries)

    @property
    def single_step(self) -> bool:
        """Does the attack take one step along the model's gradient?

        One along a substitute's gradient does not count: it often transfers better than many.
        """
        one = self.attack.own_parameters.get("steps") == 1
        known = _SINGLE_STEP.fullmatch(self.attack.algorithm)
        return bool(one or known) and not self.uses_substitute

    @property
    def iterative(self) -> bool:
        """Does the attack take several gradient steps inside a budget?"""
        return self.kind == "fixed-budget" and self.uses_gradients and not self.single_step

    @property
    def uses_cross_entropy_only(self) -> bool:
        """Is cross-entropy the attack's only loss? So it is for a PGD whose parameters name no loss."""
        loss = self.attack.own_parameters.get("loss")
        return loss == "ce" if loss else bool(_CROSS_ENTROPY.fullmatch(self.attack.algorithm))

    @cached_property
    def sample_ids(self) -> frozenset[int]:
        """The samples that have a record."""
        return as_set(self.ids.tobytes())

    @property
    def all_records(self) -> Records:
        """The records of the cell, also if ``records`` are only some of them."""
        return self.records if self.whole is None else self.whole

    @cached_property
    def records_digest(self) -> str:
        """Identifies all records of the cell by their samples and by what broke them."""
        found = self.all_records.columns
        return digest_bytes(found.sample.tobytes() + found.broken_at.tobytes())

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(n,) the samples that have a record, ascending."""
        return self.records.columns.sample

    @cached_property
    def broken_at(self) -> NDArray[np.float64]:
        """(n,) smallest eps, or distance without a budget, that broke each sample; inf for robust ones."""
        return self.records.columns.broken_at

    @cached_property
    def failure_distance(self) -> NDArray[np.float64]:
        """(n,) distance of each adversarial example; 0 if misclassified before the attack, inf if robust."""
        found = self.records.columns
        distance = np.where(found.is_broken, found.distance[self.norm], inf).astype(float)
        return np.where(found.was_attacked, distance, 0.0)

    @property
    def attacked_distances(self) -> NDArray[np.float64]:
        """The distance at which each attacked sample is broken; inf for robust ones."""
        return self.failure_distance[self.was_attacked]

    @cached_property
    def was_attacked(self) -> NDArray[np.bool_]:
        """(n,) was the sample attacked? One that is misclassified before the attack is not."""
        return self.records.columns.was_attacked

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Numbers of samples after which the results could be seen before more were added."""
        return looks_of(self.events, len(self.records))

    def covers(self, eps: float) -> bool:
        """Do the records show which samples are broken at this eps?"""
        return not self.epsilons or any(same_eps(eps, own) for own in self.epsilons)

    def bounds_accuracy(self, eps: float) -> bool:
        """Do the records limit the robust accuracy at this eps? A sample broken at a smaller eps is broken here."""
        return not self.epsilons or self.epsilons[0] < eps or same_eps(self.epsilons[0], eps)

    def robust_mask(self, eps: float, ids: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """Return which samples are robust at ``eps`` (inf: at any distance), for ``ids`` or for all, in order."""
        robust = ~broken_within(self.broken_at, eps)
        return robust if ids is None else robust[self.positions(ids)]

    def robust_rate(self, eps: float, ids: Sequence[int] | None = None) -> Rate:
        """Return the robust accuracy at ``eps`` on ``ids`` or on all samples."""
        robust = self.robust_mask(eps, ids)
        return Rate(int(robust.sum()), len(robust))

    def positions(self, ids: Sequence[int]) -> NDArray[np.intp]:
        """Return the positions of samples among the records."""
        wanted = as_array(tuple(ids))
        places = np.searchsorted(self.ids, wanted)
        known = np.append(self.ids, -1)[places] == wanted
        if not known.all():
            raise KeyError(int(wanted[~known][0]))
        return places

    def broken_samples(self, eps: float) -> set[int]:
        """Return the samples broken at this eps or below, and those misclassified before the attack."""
        return set(self.ids[~self.robust_mask(eps)].tolist())

    def robust_samples(self, eps: float) -> set[int]:
        """Return the samples that are not broken at this eps."""
        return set(self.ids[self.robust_mask(eps)].tolist())
