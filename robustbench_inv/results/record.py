"""One record: the result of one attack on one sample (schema version 2)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from types import UnionType
from typing import Any, Literal, get_args, get_type_hints

from robustbench_inv.errors import BadResults

__all__ = [
    "FAILURES",
    "NOT_ATTACKED",
    "NO_PREDICTION",
    "STATUSES",
    "Distances",
    "ModelOutput",
    "Record",
    "Status",
    "record_with",
    "upgrade_record_v1",
]

Status = Literal["ok", "already_wrong", "model_failure", "no_start", "numerics", "crash", "budget"]
"""``ok``: the attack ran. ``already_wrong``: misclassified before the attack. ``model_failure``: the model raised, or
its output was not a number, for the clean input, which counts as misclassified. The others give the reason why
the attack has no valid adversarial input for the sample, which then counts as robust: no starting point, a
non-finite value, an exception, or an input outside the budget or the model's bounds."""

STATUSES: tuple[Status, ...] = get_args(Status)

NOT_ATTACKED: tuple[Status, ...] = ("already_wrong", "model_failure")
"""The statuses of samples that count as misclassified without an attack."""

NO_PREDICTION = -1
"""The prediction of a model that has none: it raised, or its output was not a number."""

FAILURES = STATUSES[3:]
"""The statuses of samples for which the attack has no valid adversarial input."""


_encode = json.JSONEncoder(allow_nan=False).encode


@dataclass(frozen=True)
class ModelOutput:
    """The output for one input: predicted class (also if rejected), rejection score, accepted or rejected.

    Score and ``accepted`` are None for a model without a reject option. Without a valid output the prediction is
    NO_PREDICTION, the score None, and the input counts as accepted.
    """

    prediction: int
    score: float | None
    accepted: bool | None


@dataclass(frozen=True)
class Distances:
    """Distances of the adversarial input from the clean one, in input units (l0: number of elements)."""

    l0: int
    l1: float
    l2: float
    linf: float


@dataclass(frozen=True)
class Record:
    """The result of one attack on one sample.

    Args:
        sample: sample id.
        label: true class of the clean input.
        clean: the model's output for the clean input.
        adversarial: the model's output for the adversarial input.
        oracle_label: true class of the adversarial input by the oracle; None if it names none.
        oracle_source: ``exact``, ``human``, the name of another oracle, or None.
        distance: of the adversarial input from the clean one.
        broken_at: the smallest eps of the sweep at which the sample is broken (without a budget, the
            distance); 0.0 if it was misclassified before the attack; None if it is robust.
        within_budget: does the adversarial input lie inside the (largest) budget and the model's bounds?
        goal_reached: did the attack reach its goal with a valid input, also in the second evaluation?
        forward_passes: of the model or its substitute on this sample during the search.
        backward_passes: gradients for this sample during the search.
        zero_gradient: were all these gradients zero or not finite?
        replayed: did a second evaluation in another batch give the same prediction?
        status: see Status.
    """

    sample: int
    label: int
    clean: ModelOutput
    adversarial: ModelOutput
    oracle_label: int | None
    oracle_source: str | None
    distance: Distances
    broken_at: float | None
    within_budget: bool
    goal_reached: bool
    forward_passes: int
    backward_passes: int
    zero_gradient: bool
    replayed: bool
    status: Status

    @property
    def was_attacked(self) -> bool:
        """Was the sample attacked? One that is misclassified before the attack is not."""
        return self.status not in NOT_ATTACKED

    @property
    def is_broken(self) -> bool:
        """Did the attack succeed on a sample that was correct before?"""
        return self.broken_at is not None and self.was_attacked

    @property
    def is_clean_correct(self) -> bool:
        """Is the prediction for the clean input its label?"""
        return self.clean.prediction == self.label

    @property
    def is_correct(self) -> bool:
        """Is the prediction for the adversarial input its true class: the oracle's, or the label without one?"""
        known = self.oracle_label is not None and self.oracle_label >= 0
        return self.adversarial.prediction == (self.oracle_label if known else self.label)

    def predicts(self, label: int | None) -> bool:
        """Is this class predicted for the adversarial input, and the input accepted?"""
        return self.adversarial.accepted is not False and self.adversarial.prediction == label

    @property
    def keeps_prediction(self) -> bool:
        """Is the prediction for the adversarial input that for the clean one? That of a rejected input is not."""
        return self.predicts(self.clean.prediction)

    @property
    def is_undetected_error(self) -> bool:
        """Is the adversarial input misclassified and accepted?"""
        return self.adversarial.accepted is not False and not self.is_correct

    def to_json_line(self) -> str:
        """Return the record as one line of JSON, newline included, keys in schema order."""
        value = {**vars(self), "clean": vars(self.clean), "adversarial": vars(self.adversarial)}
        value["distance"] = vars(self.distance)
        return _encode(value) + "\n"

    @classmethod
    def from_json_line(cls, line: str | bytes) -> "Record":
        """Read one line.

        Raises:
            BadResults: if it is not a record of this schema.
        """
        try:
            value = json.loads(line)
            if "before" in value:
                value = upgrade_record_v1(value)
            nested = {
                "clean": ModelOutput(**value["clean"]),
                "adversarial": ModelOutput(**value["adversarial"]),
                "distance": Distances(**value["distance"]),
            }
            record = cls(**{**value, **nested})
            _check_types(record)
        except (
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
        ) as error:
            start = line[:80] if isinstance(line, str) else line[:80].decode(errors="replace")
            raise BadResults("unreadable record", got=start, remedy=str(error)) from error
        return record


def record_with(record: Record, extras: Mapping[str, str]) -> Record:
    """Return a record with optional keys, whose values are JSON."""
    value = json.loads(record.to_json_line())
    value |= {key: json.loads(text) for key, text in extras.items()}
    return Record.from_json_line(json.dumps(value))


LARGEST = 2**62
"""Whole numbers are read into arrays of 64 bits."""


def _check_types(record: Record) -> None:
    """Raise TypeError or ValueError if a value has another type than its annotation, or is not finite."""
    for part in (record, record.clean, record.adversarial, record.distance):
        values = part.__dict__
        kind: type = type(part)
        if wrong := _misfits(kind, tuple(map(type, values.values()))):
            name = tuple(values)[wrong[0]]
            raise TypeError(f"{name} is {values[name]!r}")
    d, scores = record.distance, (record.broken_at, record.clean.score, record.adversarial.score)
    if not isfinite(sum((d.l1, d.l2, d.linf, *(value or 0.0 for value in scores)))):
        raise ValueError("a number is not finite")
    counts = (record.forward_passes, record.backward_passes, record.oracle_label or 0, d.l0)
    classes = (record.label, record.clean.prediction or 0, record.adversarial.prediction or 0)
    if max(map(abs, (record.sample, *counts, *classes))) > LARGEST:
        raise ValueError(f"a whole number is above {LARGEST:,}")
    if record.status not in STATUSES:
        raise ValueError(f"status is {record.status!r}, not one of {', '.join(STATUSES)}")


@cache
def _misfits(kind: type, found: tuple[type, ...]) -> list[int]:
    """Return the positions of the fields whose values have a wrong type."""
    wanted = [kinds for (owner, _), kinds in _TYPES.items() if owner is kind]
    return [i for i, (own, kinds) in enumerate(zip(found, wanted, strict=True)) if own not in kinds]


_SCALARS: dict[object, tuple[type, ...]] = {float: (float, int), Status: (str,)}


def _types(kind: type) -> dict[tuple[type, str], frozenset[type]]:
    """Return the types of the values of a dataclass by field."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        kinds = (each for part in hints for each in _SCALARS.get(part, (part,)))
        found[kind, name] = frozenset(kinds)
    return found


_TYPES = {
    key: kinds for kind in (Record, ModelOutput, Distances) for key, kinds in _types(kind).items()
}


_KEYS_V1 = {
    "before": "clean",
    "after": "adversarial",
    "decision": "prediction",
    "oracle": "oracle_label",
}


def upgrade_record_v1(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of schema version 1 with the keys of version 2, in the same order."""
    return {
        _KEYS_V1.get(key, key): upgrade_record_v1(part) if isinstance(part, Mapping) else part
        for key, part in value.items()
    }
