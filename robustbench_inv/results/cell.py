"""A finished cell: which attack ran on which model, under which threat, on which data, and its records."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, Protocol

import numpy as np

from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.record import Record

__all__ = [
    "SAMPLE_VALUES",
    "CellSource",
    "FinishedCell",
    "attack_label",
    "common_samples",
    "format_ids",
    "group_competing",
    "label_with_substitute",
    "sample_values",
    "substitute_name",
]


def substitute_name(cell: Mapping[str, Any]) -> str | None:
    """Return the name of the model that answered or led the search in place of the attacked one, if any.

    Args:
        cell: the content of cell.json.
    """
    substitute = cell["threat"].get("substitute")
    return str(substitute["name"]) if substitute else None


def attack_label(cell: Mapping[str, Any]) -> str:
    """Return the name of a cell's attack with the class that it aims at and its substitute's, if any.

    Args:
        cell: the content of cell.json.
    """
    access = str(cell["threat"].get("access", "white-box"))
    name = str(cell["attack"]["name"]) + _target_label(cell["threat"])
    return label_with_substitute(name, access, substitute_name(cell))


def label_with_substitute(attack: str, access: str, substitute: str | None) -> str:
    """Return how an attack is called when another model helps it: it is another attack then.

    Example:
        >>> label_with_substitute("fgsm", "transfer", "mnist-lenet5")
        'fgsm via mnist-lenet5'
        >>> label_with_substitute("pgd", "score", "mnist-lenet5")
        'pgd guided by mnist-lenet5'
    """
    if substitute is None:
        return attack
    return f"{attack} {'via' if access == 'transfer' else 'guided by'} {substitute}"


def _target_label(threat: Mapping[str, Any]) -> str:
    """Return what stands behind an attack that aims at a class: for every class it is another attack."""
    about = threat.get("goal_parameters") or {}
    if not str(threat.get("goal", "")).startswith("target") or not about:
        return ""
    to = f"{about['label']}" if about.get("offset") is None else f"y+{about['offset']}"
    by = about.get("confidence") or 0.0
    return f" → {to} by {by:g}" if by else f" → {to}"


_SINGLE_STEP = re.compile(r"f?fgsm|fgm|(l1|l2|linf)fastgradientattack")
_CROSS_ENTROPY = re.compile(r"(?!apgdt).*(pgd|fgsm|fgm|bim|fastgradient|basiciterative).*")
_INVARIANCE_GOALS = ("keep-decision", "keep-logits")


class CellSource(Protocol):
    """A cell's folder, or anything in memory that holds the same."""

    @property
    def cell(self) -> Mapping[str, Any]:
        """The content of cell.json."""
        ...

    @property
    def digest(self) -> str:
        """The digest of the cell's spec."""
        ...

    @property
    def samples(self) -> Sequence[int]:
        """The samples that the cell was asked for."""
        ...

    def records(self) -> Sequence[Record]: ...

    def events(self) -> Sequence[Mapping[str, Any]]:
        """Return the append-only notes of the cell."""
        ...

    def adversarial(self) -> Mapping[str, np.ndarray] | None:
        """Return the kept images (``samples``, ``clean``, ``adversarial``), None if none were kept."""
        ...

    def oracle_error(self) -> OracleError | None:
        """Return how often the cell's oracle errs itself, None if that was not measured."""
        ...


@dataclass(frozen=True)
class FinishedCell:
    """A cell as the checks see it.

    Args:
        source: where it comes from.
        records: its records, in the order of the file.
        events: its notes.
    """

    source: CellSource
    records: tuple[Record, ...]
    events: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, cell: CellSource) -> "FinishedCell":
        """Read a cell's records and notes."""
        return cls(cell, tuple(cell.records()), tuple(cell.events()))

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self._part("model")["name"])

    @property
    def attack(self) -> str:
        """The attack's name, and the substitute's if there is one."""
        return attack_label(self.source.cell)

    @property
    def subject(self) -> str:
        """What verdicts about this cell call it."""
        threat, dataset = self._part("threat"), self._part("dataset")
        text = threat.get("text") or f"{self.norm}={','.join(map(str, self.epsilons))}"
        seed = self.source.cell["seed"]
        name = self._part("attack")["name"]
        return f"{name} on {self.model}, {text}, {dataset['name']}, seed {seed}"

    @property
    def comparison_key(self) -> tuple[str, str, str, str]:
        """Cells of the same (model, data set, norm, goal) compete with one another."""
        model, dataset = self._part("model"), self._part("dataset")
        about = self.goal_parameters
        aim = " ".join([self.goal, *(f"{key}={value}" for key, value in sorted(about.items()))])
        return (str(model["name"]), str(dataset["name"]), self.norm, aim)

    @property
    def norm(self) -> str:
        """The norm that the threat measures in."""
        return str(self._part("threat")["norm"])

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The sweep, ascending; empty without a budget."""
        return tuple(float(eps) for eps in self._part("threat").get("epsilons") or ())

    @property
    def goal(self) -> str:
        """Name of the goal."""
        goal = self._part("threat").get("goal", "misclassify")
        return str(goal["name"] if isinstance(goal, Mapping) else goal).split(":")[0]

    @property
    def goal_parameters(self) -> Mapping[str, Any]:
        """What the goal leaves open: the class that is aimed at."""
        found: Mapping[str, Any] = self._part("threat").get("goal_parameters") or {}
        return found

    def target_class(self, record: Record) -> int:
        """Return the class that a goal with a target aims at for a sample."""
        about = self.goal_parameters
        if about.get("offset") is None:
            return int(about["label"])
        classes = self.source.cell["dataset"]["num_classes"]
        return (record.label + int(about["offset"])) % int(classes)

    @property
    def seeks_errors(self) -> bool:
        """Does the attacker want a wrong decision (and not the same decision on other content)?"""
        return self.goal not in _INVARIANCE_GOALS

    @property
    def kind(self) -> str:
        """How the attack searches: budget, minimal or invariance."""
        return str(self._part("attack").get("kind", "fixed-budget"))

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The attack's parameters; of a library's attack, those of the library."""
        parameters: dict[str, Any] = dict(self._part("attack").get("parameters") or {})
        return {**parameters, **dict(parameters.pop("parameters", ()))}

    @property
    def algorithm(self) -> str:
        """Name of the attack's class, of a library's attack the library's, in lower case."""
        implementation = str(self._part("attack").get("implementation", self.attack))
        return str(self.parameters.get("attack", implementation.rpartition(":")[2])).lower()

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest value of an input element of the data set."""
        low, high = self._part("dataset")["bounds"]
        return float(low), float(high)

    @property
    def dimension(self) -> int:
        """Number of elements of one input."""
        return int(np.prod(self._part("dataset")["shape"]))

    @property
    def access(self) -> str:
        """What the attacker sees of the model."""
        return str(self._part("threat").get("access", "white-box"))

    @property
    def uses_substitute(self) -> bool:
        """Were the gradients, if any, a substitute's? Then they say nothing about the model."""
        return substitute_name(self.source.cell) is not None

    @cached_property
    def uses_gradients(self) -> bool:
        """Did the attack take gradients of the model on any sample?"""
        return not self.uses_substitute and any(r.backward_passes > 0 for r in self.records)

    @cached_property
    def gradient_free(self) -> bool:
        """Is it noise, an attack that learns from answers alone, or one on a substitute?

        Analytic attacks, which neither ask nor take gradients, are neither.
        """
        restricted = self.uses_substitute or self.access in ("score", "decision")
        asks = any(r.forward_passes > 0 for r in self.records)
        return not self.uses_gradients and (restricted or asks)

    @property
    def single_step(self) -> bool:
        """Does the attack take one step along the model's gradient?

        One along a substitute's is no measure of more of them: it often transfers better.
        """
        one = self.parameters.get("steps") == 1 or _SINGLE_STEP.fullmatch(self.algorithm)
        return bool(one) and not self.uses_substitute

    @property
    def iterative(self) -> bool:
        """Does the attack take several gradient steps inside a budget?"""
        return self.kind == "fixed-budget" and self.uses_gradients and not self.single_step

    @property
    def uses_cross_entropy_only(self) -> bool:
        """Does the attack climb cross-entropy alone? What does not name its loss does if it is a PGD."""
        loss = self.parameters.get("loss")
        return loss == "ce" if loss else bool(_CROSS_ENTROPY.fullmatch(self.algorithm))

    def covers(self, eps: float) -> bool:
        """Does the cell say who falls at this eps?"""
        return not self.epsilons or any(_same_eps(eps, own) for own in self.epsilons)

    def broken(self, eps: float) -> set[int]:
        """Return the samples that fell at this eps or below, those wrong to begin with included."""
        slack = eps * (1 + 1e-9)
        return {r.sample for r in self.records if r.broken_at is not None and r.broken_at <= slack}

    def held(self, eps: float) -> set[int]:
        """Return the samples that did not fall at this eps."""
        return {r.sample for r in self.records} - self.broken(eps)

    def _part(self, name: str) -> Mapping[str, Any]:
        part: Mapping[str, Any] = self.source.cell[name]
        return part


def group_competing(
    views: Iterable[FinishedCell],
) -> dict[tuple[str, str, str, str], list[FinishedCell]]:
    """Return the cells that compete with one another, by setting, those that seek errors only."""
    groups: dict[tuple[str, str, str, str], list[FinishedCell]] = {}
    for view in views:
        if view.seeks_errors:
            groups.setdefault(view.comparison_key, []).append(view)
    return groups


def common_samples(views: Iterable[FinishedCell]) -> set[int]:
    """Return the samples that each of the cells has a record of."""
    sets = [{r.sample for r in view.records} for view in views]
    return set.intersection(*sets) if sets else set()


def format_ids(samples: Iterable[int], most: int = 8) -> str:
    """Return sample ids as text, cut after the first few.

    Example:
        >>> format_ids([5, 2, 9], most=2)
        '2, 5, … (3 in all)'
    """
    ids = sorted(samples)
    text = ", ".join(map(str, ids[:most]))
    return text if len(ids) <= most else f"{text}, … ({len(ids)} in all)"


def _same_eps(one: float, other: float) -> bool:
    return isfinite(one) and abs(one - other) <= 1e-9 * max(1.0, abs(one))


SAMPLE_VALUES = "measured"
"""Kind of the notes that hold such numbers."""

SampleValues = dict[int, float | None]


def sample_values(events: Iterable[Mapping[str, Any]]) -> dict[str, SampleValues]:
    """Return name → sample → number; None for one that was not finite.

    A block that is evaluated again notes its numbers again: the last one counts.

    Example:
        >>> note = {"kind": "measured", "samples": [3, 8], "values": {"donor": [5, 1]}}
        >>> sample_values([{"kind": "time"}, note])
        {'donor': {3: 5, 8: 1}}
    """
    columns: dict[str, SampleValues] = {}
    for event in events:
        if event.get("kind") != SAMPLE_VALUES:
            continue
        for name, values in event["values"].items():
            columns.setdefault(name, {}).update(zip(event["samples"], values, strict=True))
    return columns
