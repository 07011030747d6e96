"""What the record checks need of a finished cell, read once, without torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, Protocol

import numpy as np

from robustbench_inv.results.naming import attack_name, substitute_name
from robustbench_inv.results.oracle import OracleError
from robustbench_inv.results.record import Record

__all__ = ["CellView", "FinishedCell", "common_samples", "grouped", "listed"]

_SINGLE_STEP = re.compile(r"f?fgsm|fgm|(l1|l2|linf)fastgradientattack")
_CROSS_ENTROPY = re.compile(r"(?!apgdt).*(pgd|fgsm|fgm|bim|fastgradient|basiciterative).*")
_KEEPS_DECISION = ("keep-decision", "keep-logits")


class FinishedCell(Protocol):
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
class CellView:
    """A cell as the checks see it.

    Args:
        source: where it comes from.
        records: its records, in the order of the file.
        events: its notes.
    """

    source: FinishedCell
    records: tuple[Record, ...]
    events: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, cell: FinishedCell) -> "CellView":
        """Read a cell's records and notes."""
        return cls(cell, tuple(cell.records()), tuple(cell.events()))

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self._part("model")["name"])

    @property
    def attack(self) -> str:
        """The attack's name, and the substitute's if there is one."""
        return attack_name(self.source.cell)

    @property
    def subject(self) -> str:
        """What verdicts about this cell call it."""
        threat, dataset = self._part("threat"), self._part("dataset")
        text = threat.get("text") or f"{self.norm}={','.join(map(str, self.epsilons))}"
        seed = self.source.cell["seed"]
        name = self._part("attack")["name"]
        return f"{name} on {self.model}, {text}, {dataset['name']}, seed {seed}"

    @property
    def setting(self) -> tuple[str, str, str, str]:
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

    def aimed_at(self, record: Record) -> int:
        """Return the class that a goal with a target aims at for a sample."""
        about = self.goal_parameters
        if about.get("offset") is None:
            return int(about["label"])
        classes = self.source.cell["dataset"]["num_classes"]
        return (record.label + int(about["offset"])) % int(classes)

    @property
    def seeks_errors(self) -> bool:
        """Does the attacker want a wrong decision (and not the same decision on other content)?"""
        return self.goal not in _KEEPS_DECISION

    @property
    def kind(self) -> str:
        """How the attack searches: budget, minimal or invariance."""
        return str(self._part("attack").get("kind", "budget"))

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
    def foreign_gradients(self) -> bool:
        """Were the gradients, if any, a substitute's? Then they say nothing about the model."""
        return substitute_name(self.source.cell) is not None

    @cached_property
    def uses_gradients(self) -> bool:
        """Did the attack take gradients of the model on any sample?"""
        return not self.foreign_gradients and any(r.backward_passes > 0 for r in self.records)

    @cached_property
    def free_of_gradients(self) -> bool:
        """Is it noise, an attack that learns from answers alone, or one on a substitute?

        Analytic attacks, which neither ask nor take gradients, are neither.
        """
        restricted = self.foreign_gradients or self.access in ("score", "decision")
        asks = any(r.forward_passes > 0 for r in self.records)
        return not self.uses_gradients and (restricted or asks)

    @property
    def single_step(self) -> bool:
        """Does the attack take one step along the model's gradient?

        One along a substitute's is no measure of more of them: it often transfers better.
        """
        one = self.parameters.get("steps") == 1 or _SINGLE_STEP.fullmatch(self.algorithm)
        return bool(one) and not self.foreign_gradients

    @property
    def iterative(self) -> bool:
        """Does the attack take several gradient steps inside a budget?"""
        return self.kind == "budget" and self.uses_gradients and not self.single_step

    @property
    def climbs_cross_entropy(self) -> bool:
        """Does the attack climb cross-entropy alone? What does not name its loss does if it is a PGD."""
        loss = self.parameters.get("loss")
        return loss == "ce" if loss else bool(_CROSS_ENTROPY.fullmatch(self.algorithm))

    def answers(self, eps: float) -> bool:
        """Does the cell say who falls at this eps?"""
        return not self.epsilons or any(_same(eps, own) for own in self.epsilons)

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


def grouped(views: Iterable[CellView]) -> dict[tuple[str, str, str, str], list[CellView]]:
    """Return the cells that compete with one another, by setting, those that seek errors only."""
    groups: dict[tuple[str, str, str, str], list[CellView]] = {}
    for view in views:
        if view.seeks_errors:
            groups.setdefault(view.setting, []).append(view)
    return groups


def common_samples(views: Iterable[CellView]) -> set[int]:
    """Return the samples that each of the cells has a record of."""
    sets = [{r.sample for r in view.records} for view in views]
    return set.intersection(*sets) if sets else set()


def listed(samples: Iterable[int], most: int = 8) -> str:
    """Return sample ids as text, cut after the first few.

    Example:
        >>> listed([5, 2, 9], most=2)
        '2, 5, … (3 in all)'
    """
    ids = sorted(samples)
    text = ", ".join(map(str, ids[:most]))
    return text if len(ids) <= most else f"{text}, … ({len(ids)} in all)"


def _same(one: float, other: float) -> bool:
    return isfinite(one) and abs(one - other) <= 1e-9 * max(1.0, abs(one))
