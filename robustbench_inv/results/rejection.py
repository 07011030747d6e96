"""What the records of a cell say of a model that rejects; imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_inv.results.record import Answer, Record
from robustbench_inv.results.summary import Rate

__all__ = [
    "RejectionRates",
    "above_threshold",
    "fooled",
    "is_right",
    "rejection_rates",
    "rejects",
    "thresholds_of",
]


@dataclass(frozen=True)
class RejectionRates:
    """The shares by which a model that rejects is judged; a rejection of everything makes none of them good.

    Args:
        rejected_clean: clean inputs that are rejected.
        right_clean: clean inputs that are answered correctly; a rejection counts as failure.
        right: shown inputs that are answered correctly, of all.
        right_of_answered: shown inputs that are answered correctly, of those that are answered.
        fooled: shown inputs that are answered wrongly, of all (unconditional).
        detected: shown inputs whose decision is wrong that are rejected (conditional: of few, it means little).
        rejected: shown inputs of an attack that ran that are rejected, whatever the decision.
    """

    rejected_clean: Rate
    right_clean: Rate
    right: Rate
    right_of_answered: Rate
    fooled: Rate
    detected: Rate
    rejected: Rate


def rejects(records: Sequence[Record]) -> bool:
    """Say whether the model can reject at all."""
    return any(r.before.accepted is not None for r in records)


def rejection_rates(records: Sequence[Record]) -> RejectionRates:
    """Add the records of one cell up.

    An input is right if it is decided for the class that the oracle sees in it, or its label where there is no oracle.
    """
    n, attacked = len(records), [r for r in records if r.status != "already_wrong"]
    answered = [r for r in records if r.after.accepted is not False]
    right = sum(is_right(r) for r in answered)
    wrong = [r for r in attacked if not is_right(r)]
    clean = [r for r in records if r.before.accepted is not False]
    return RejectionRates(
        rejected_clean=Rate(n - len(clean), n),
        right_clean=Rate(sum(r.before.decision == r.label for r in clean), n),
        right=Rate(right, n),
        right_of_answered=Rate(right, len(answered)),
        fooled=Rate(len(answered) - right, n),
        detected=Rate(sum(r.after.accepted is False for r in wrong), len(wrong)),
        rejected=Rate(sum(r.after.accepted is False for r in attacked), len(attacked)),
    )


def is_right(record: Record) -> bool:
    """Is what is shown decided for the class that the oracle sees in it, or its label where there is no oracle?"""
    truth = record.label if record.oracle is None or record.oracle < 0 else record.oracle
    return record.after.decision == truth


def fooled(record: Record) -> bool:
    """Is what is shown answered wrongly, and accepted?"""
    return record.after.accepted is not False and not is_right(record)


def above_threshold(answer: Answer, model: Mapping[str, Any]) -> float | None:
    """Return how far a score lies above the threshold of the class decided for, None without a score.

    Scores of models whose thresholds are not known, because they are the model's own, stand as they are.

    Args:
        answer: of the model.
        model: what cell.json says of it.
    """
    limits = thresholds_of(model).get("values")
    if answer.score is None or not limits:
        return answer.score
    return answer.score - float(limits[answer.decision])


def thresholds_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what cell.json says of a model's thresholds; nothing where they are its own affair."""
    found: Mapping[str, Any] = (model.get("card") or {}).get("rejection") or {}
    return found
