"""A share with its interval, a decision, and how well an oracle notices changes; imports nothing, so that listings stay fast."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isnan, sqrt
from typing import Any

__all__ = ["ChangeDetection", "CorrectedRate", "Decision", "Rate"]

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Rate:
    """A share of trials, with its 95 % Wilson interval; 0 trials give the whole interval.

    Example:
        >>> Rate(9, 10).value, round(Rate(9, 10).low, 3), round(Rate(9, 10).high, 3)
        (0.9, 0.596, 0.982)

    References:
        Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """

    successes: int
    trials: int

    @property
    def value(self) -> float:
        """The share; nan without trials."""
        return self.successes / self.trials if self.trials else float("nan")

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return 0.0 if self.successes == 0 else self._centre() - self._half()

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return 1.0 if self.successes == self.trials else self._centre() + self._half()

    @property
    def percent(self) -> str:
        """The share in per cent with its interval; ``unknown`` without trials.

        Example:
            >>> Rate(9, 10).percent
            '90.0 % [59.6, 98.2]'
        """
        if not self.trials:
            return "unknown"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def to_json(self) -> dict[str, float]:
        """Return the mapping that ``--json`` prints."""
        return {
            "successes": self.successes,
            "trials": self.trials,
            "low": self.low,
            "high": self.high,
        }

    def _centre(self) -> float:
        return (self.successes + Z95**2 / 2) / (self.trials + Z95**2)

    def _half(self) -> float:
        n, p = self.trials, self.value
        return Z95 / (n + Z95**2) * sqrt(n * p * (1 - p) + Z95**2 / 4)


@dataclass(frozen=True)
class CorrectedRate:
    """A failure rate corrected for the changes that an oracle misses and for those that it reports falsely.

    Args:
        value: the estimate of Rogan and Gladen; nan for a search by the oracle's decisions, whose false reports are unknown.
        low: lower end of the 95 % interval, if the oracle missed no change; 0 for such a search.
        high: upper end, if the oracle reported no change falsely.
    """

    value: float
    low: float
    high: float

    @property
    def percent(self) -> str:
        """The estimate in per cent with its interval, as ``Rate.percent``; without an estimate the interval alone.

        Example:
            >>> CorrectedRate(float("nan"), 0, 0.25).percent
            '0.0 to 25.0 %'
        """
        low, high = f"{100 * self.low:.1f}", f"{100 * self.high:.1f}"
        return (
            f"{low} to {high} %"
            if isnan(self.value)
            else f"{100 * self.value:.1f} % [{low}, {high}]"
        )

    def to_json(self) -> dict[str, float | None]:
        """Return what ``--json`` prints."""
        return {**asdict(self), "value": None if isnan(self.value) else self.value}


@dataclass(frozen=True)
class ChangeDetection:
    """How many changes of the true class an oracle reports, on changed inputs that people labelled.

    Args:
        measured_on: the inputs, and how the oracle was kept from seeing them.
        changed: inputs whose class has changed for people.
        found: those of them that have another class than the label for the oracle as well.
        unchanged: inputs whose class has not changed for people.
        false: those of them that have another class than the label for the oracle.
        perturbed: PGD examples, whose class has not changed; 0 if these were not measured.
        perturbed_false: those of them that have another class than the label for the oracle.
    """

    measured_on: str
    changed: int
    found: int
    unchanged: int
    false: int
    perturbed: int = 0
    perturbed_false: int = 0

    @property
    def recall(self) -> Rate:
        """Share of the changes that the oracle reports: its sensitivity."""
        return Rate(self.found, self.changed)

    @property
    def precision(self) -> Rate:
        """Share of the oracle's changes that are changes for people."""
        return Rate(self.found, self.found + self.false)

    @property
    def false_rate(self) -> Rate:
        """Share of the unchanged inputs for which the oracle reports a change: one minus its specificity."""
        return Rate(self.false, self.unchanged)

    @property
    def text(self) -> str:
        """One line.

        Example:
            >>> ChangeDetection("altered digits", 157, 59, 193, 11).text
            'of 157 changes that people see on altered digits it reports 59, of 193 others 11'
        """
        return (
            f"of {self.changed} changes that people see on {self.measured_on} it reports {self.found}, "
            f"of {self.unchanged} others {self.false}"
            + (
                f", of {self.perturbed} PGD examples {self.perturbed_false}"
                if self.perturbed
                else ""
            )
        )


@dataclass(frozen=True)
class Decision:
    """What an evaluation decided, with as many samples as it needed.

    Args:
        question: what was to decide, the same for the same models, eps and limit.
        sentence: the answer, and how it was found.
        decided: False if all samples were evaluated without a decision.
        models: the names of the compared models, or of the one that is compared with a limit.
        eps: the budget; None without one.
        samples: evaluated samples at the decision.
        population: samples that could have been evaluated.
        looks: numbers of samples after which a decision was possible.
        level: largest probability of a false decision.
    """

    question: str
    sentence: str
    decided: bool
    models: tuple[str, ...]
    eps: float | None
    samples: int
    population: int
    looks: tuple[int, ...]
    level: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Decision":
        """Read a decision from plan.json.

        Raises:
            KeyError, TypeError: if a value is missing or has the wrong type.
        """
        texts = (value["question"], value["sentence"], *value["models"])
        counts = (value["samples"], value["population"], *value["looks"])
        if not all(isinstance(text, str) for text in texts) or {int}.union(map(type, counts)) != {
            int
        }:
            raise TypeError(f"a decision is {str(dict(value))[:60]!r}")
        lists = {key: tuple(value[key]) for key in ("models", "looks")}
        return cls(**{**{key: value[key] for key in cls.__dataclass_fields__}, **lists})

    @classmethod
    def all_of(cls, plan: Mapping[str, Any]) -> "list[Decision]":
        """Return what evaluations into a folder decided before their last sample."""
        return [cls.from_json(each) for each in plan.get("decisions", ())]

    def to_json(self) -> dict[str, Any]:
        """Return what plan.json holds."""
        return {**asdict(self), "models": list(self.models), "looks": list(self.looks)}
