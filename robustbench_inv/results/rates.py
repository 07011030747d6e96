"""Rates beyond accuracy, computed from the records of a cell: invariance and rejection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.record import ModelOutput, Record
from robustbench_inv.results.summary import Rate

__all__ = [
    "InvarianceRates",
    "RejectionRates",
    "can_reject",
    "invariance_json",
    "invariance_rates",
    "is_correct",
    "is_undetected_error",
    "rejection_rates",
    "score_above_threshold",
    "thresholds_in_card",
    "wants_same_prediction",
]


@dataclass(frozen=True)
class InvarianceRates:
    """Shares of the attacked samples; those that were wrong to begin with are left out.

    Args:
        kept: the decision is that for the clean input.
        changed: the oracle names another class than the label.
        failed: the goal was reached; for ``keep-prediction`` that is both of these.
        unknown: the oracle names no class.
        agrees_with_oracle: decided as the oracle says, of the changed inputs of which it names a class.
        agrees_with_label: decided as the label of the clean input says, of the same inputs. A model that is right on all
            of these by the label is wrong wherever the class has changed.
    """

    kept: Rate
    changed: Rate
    failed: Rate
    unknown: Rate
    agrees_with_oracle: Rate
    agrees_with_label: Rate

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return each share as ``--json`` prints it."""
        return {name: rate.to_json() for name, rate in vars(self).items()}


def wants_same_prediction(cell: Mapping[str, Any]) -> bool:
    """Say whether the attacker wanted the decision to stay while the content changes.

    Args:
        cell: the content of cell.json.
    """
    return str(cell["threat"].get("goal", "")).startswith("keep")


def invariance_json(records: Sequence[Record], error: OracleError | None) -> dict[str, Any]:
    """Return what ``--json`` prints of decisions and classes: the shares, who judged, how often that errs.

    Args:
        records: of one cell.
        error: of the oracle, None if it was not measured.
    """
    sources = sorted({r.oracle_source for r in records if r.oracle_source})
    return {
        **invariance_rates(records).to_json(),
        "oracle": "+".join(sources) or None,
        "oracle_wrong": error and error.error_rate.to_json(),
        "oracle_unknown": error and error.undecided_rate.to_json(),
    }


def invariance_rates(records: Sequence[Record]) -> InvarianceRates:
    """Add the records of an invariance cell up.

    References:
        Behrmann, thesis on invertible networks, definition 6.3; Tramèr et al., Fundamental tradeoffs between
        invariance and sensitivity to adversarial perturbations, ICML 2020, for agreement with the oracle.
    """
    attacked = [r for r in records if r.status != "already_wrong"]
    n, told = len(attacked), [r for r in records if r.oracle is not None and r.distance.l0]
    return InvarianceRates(
        kept=Rate(sum(r.adversarial.prediction == r.clean.prediction for r in attacked), n),
        changed=Rate(sum(r.oracle not in (None, r.label) for r in attacked), n),
        failed=Rate(sum(r.goal_reached for r in attacked), n),
        unknown=Rate(sum(r.oracle is None for r in attacked), n),
        agrees_with_oracle=Rate(sum(r.adversarial.prediction == r.oracle for r in told), len(told)),
        agrees_with_label=Rate(sum(r.adversarial.prediction == r.label for r in told), len(told)),
    )


@dataclass(frozen=True)
class RejectionRates:
    """The shares by which a model that rejects is judged; a rejection of everything makes none of them good.

    Args:
        false_rejection: clean inputs that are rejected.
        clean_accuracy_with_rejection: clean inputs that are answered correctly; a rejection counts as failure.
        accuracy_with_rejection: shown inputs that are answered correctly, of all.
        accuracy_on_accepted: shown inputs that are answered correctly, of those that are answered.
        undetected_errors: shown inputs that are answered wrongly, of all (unconditional).
        rejected_errors: shown inputs whose decision is wrong that are rejected (conditional: of few, it means little).
        rejected_adversarial: shown inputs of an attack that ran that are rejected, whatever the decision.
    """

    false_rejection: Rate
    clean_accuracy_with_rejection: Rate
    accuracy_with_rejection: Rate
    accuracy_on_accepted: Rate
    undetected_errors: Rate
    rejected_errors: Rate
    rejected_adversarial: Rate


def can_reject(records: Sequence[Record]) -> bool:
    """Say whether the model can reject at all."""
    return any(r.clean.accepted is not None for r in records)


def rejection_rates(records: Sequence[Record]) -> RejectionRates:
    """Add the records of one cell up.

    An input is right if it is decided for the class that the oracle sees in it, or its label where there is no oracle.
    """
    n, attacked = len(records), [r for r in records if r.status != "already_wrong"]
    answered = [r for r in records if r.adversarial.accepted is not False]
    right = sum(is_correct(r) for r in answered)
    wrong = [r for r in attacked if not is_correct(r)]
    clean = [r for r in records if r.clean.accepted is not False]
    return RejectionRates(
        false_rejection=Rate(n - len(clean), n),
        clean_accuracy_with_rejection=Rate(sum(r.clean.prediction == r.label for r in clean), n),
        accuracy_with_rejection=Rate(right, n),
        accuracy_on_accepted=Rate(right, len(answered)),
        undetected_errors=Rate(len(answered) - right, n),
        rejected_errors=Rate(sum(r.adversarial.accepted is False for r in wrong), len(wrong)),
        rejected_adversarial=Rate(
            sum(r.adversarial.accepted is False for r in attacked), len(attacked)
        ),
    )


def is_correct(record: Record) -> bool:
    """Is what is shown decided for the class that the oracle sees in it, or its label where there is no oracle?"""
    truth = record.label if record.oracle is None or record.oracle < 0 else record.oracle
    return record.adversarial.prediction == truth


def is_undetected_error(record: Record) -> bool:
    """Is what is shown answered wrongly, and accepted?"""
    return record.adversarial.accepted is not False and not is_correct(record)


def score_above_threshold(answer: ModelOutput, model: Mapping[str, Any]) -> float | None:
    """Return how far a score lies above the threshold of the class decided for, None without a score.

    Scores of models whose thresholds are not known, because they are the model's own, stand as they are.

    Args:
        answer: of the model.
        model: what cell.json says of it.
    """
    limits = thresholds_in_card(model).get("values")
    if answer.score is None or not limits:
        return answer.score
    return answer.score - float(limits[answer.prediction])


def thresholds_in_card(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what cell.json says of a model's thresholds; nothing where they are its own affair."""
    found: Mapping[str, Any] = (model.get("card") or {}).get("rejection") or {}
    return found
