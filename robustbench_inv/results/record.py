"""One record: what happened to one sample in one cell (schema v1)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from robustbench_inv.errors import BadResults

__all__ = ["SCHEMA_VERSION", "Distances", "ModelOutput", "Record", "Status", "upgrade_record_v1"]

SCHEMA_VERSION = 2
"""Version 1 has other keys (see ``upgrade_record_v1``); it is still read."""

Status = Literal["ok", "already_wrong", "no_start", "numerics", "crash", "budget"]
"""``ok``: the attack ran. ``already_wrong``: broken at eps 0. The others say why the attack has no valid
proposal for the sample, which then counts as robust: no starting point, a non-finite value, an exception,
or a proposal outside the budget or the model's bounds."""


@dataclass(frozen=True)
class ModelOutput:
    """A model's answer: ``prediction`` is the argmax class even when the input is rejected."""

    prediction: int
    score: float | None
    accepted: bool | None


@dataclass(frozen=True)
class Distances:
    """How far the shown input is from the clean one, in input units (l0: number of elements)."""

    l0: int
    l1: float
    l2: float
    linf: float


@dataclass(frozen=True)
class Record:
    """What happened to one sample.

    Args:
        sample: sample id.
        label: true class of the clean input.
        clean: the model's answer to the clean input.
        adversarial: the model's answer to the proposed input.
        oracle: true class of the proposed input; None where unknown.
        oracle_source: ``exact``, ``human``, a proxy's name, or None.
        distance: of the proposed input from the clean one.
        broken_at: the smallest eps of the sweep at which the sample fell (0.0 if it was wrong to begin with;
            without a budget, the distance at which it fell), None if it held.
        within_budget: is the proposed input inside the (largest) budget and the model's bounds?
        goal_reached: did the attack reach its goal with an allowed input, also when replayed?
        forward_passes: inputs of this sample that the model, or a substitute for it, was asked about in the
            search.
        backward_passes: gradients taken for this sample in the search.
        zero_gradient: was every gradient taken for it zero or not finite?
        replayed: did a second evaluation in another batch give the same decision?
        status: see Status.
    """

    sample: int
    label: int
    clean: ModelOutput
    adversarial: ModelOutput
    oracle: int | None
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

    def to_json_line(self) -> str:
        """Return the record as one line of JSON, newline included, keys in schema order."""
        value = {**vars(self), "clean": vars(self.clean), "adversarial": vars(self.adversarial)}
        value["distance"] = vars(self.distance)
        return json.dumps(value, allow_nan=False) + "\n"

    @classmethod
    def from_json_line(cls, line: str) -> "Record":
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
        except (ValueError, KeyError, TypeError) as error:
            raise BadResults("unreadable record", got=line[:80], remedy=str(error)) from error
        if record.status not in get_args(Status):
            raise BadResults(
                "unknown record status", got=record.status, expected=str(get_args(Status))
            )
        return record


def upgrade_record_v1(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of schema version 1 with the keys of version 2.

    ``before`` and ``after`` became ``clean`` and ``adversarial``, and ``decision`` became ``prediction``.
    """
    outputs = {"before": "clean", "after": "adversarial"}
    return {
        outputs.get(key, key): _upgrade_output_v1(part) if key in outputs else part
        for key, part in value.items()
    }


def _upgrade_output_v1(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"prediction" if key == "decision" else key: part for key, part in value.items()}
