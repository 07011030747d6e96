"""What the records of an invariance cell add up to: decisions that stayed, classes that changed, and both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_inv.results.oracle import OracleError
from robustbench_inv.results.record import Record
from robustbench_inv.results.summary import Rate

__all__ = ["Invariance", "describe_invariance", "keeps_decision", "tell_invariance"]


@dataclass(frozen=True)
class Invariance:
    """Shares of the attacked samples; those that were wrong to begin with are left out.

    Args:
        kept: the decision is that for the clean input.
        changed: the oracle names another class than the label.
        failed: the goal was reached; for ``keep-decision`` that is both of these.
        unknown: the oracle names no class.
        as_oracle: decided as the oracle says, of the changed inputs of which it names a class.
        as_label: decided as the label of the clean input says, of the same inputs. A model that is right on all
            of these by the label is wrong wherever the class has changed.
    """

    kept: Rate
    changed: Rate
    failed: Rate
    unknown: Rate
    as_oracle: Rate
    as_label: Rate

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return each share as ``--json`` prints it."""
        return {name: rate.to_json() for name, rate in vars(self).items()}


def keeps_decision(cell: Mapping[str, Any]) -> bool:
    """Say whether the attacker wanted the decision to stay while the content changes.

    Args:
        cell: the content of cell.json.
    """
    return str(cell["threat"].get("goal", "")).startswith("keep")


def describe_invariance(records: Sequence[Record], error: OracleError | None) -> dict[str, Any]:
    """Return what ``--json`` prints of decisions and classes: the shares, who judged, how often that errs.

    Args:
        records: of one cell.
        error: of the oracle, None if it was not measured.
    """
    sources = sorted({r.oracle_source for r in records if r.oracle_source})
    return {
        **tell_invariance(records).to_json(),
        "oracle": "+".join(sources) or None,
        "oracle_wrong": error and error.wrong_rate.to_json(),
        "oracle_unknown": error and error.unknown_rate.to_json(),
    }


def tell_invariance(records: Sequence[Record]) -> Invariance:
    """Add the records of an invariance cell up.

    References:
        Behrmann, thesis on invertible networks, definition 6.3; Tramèr et al., Fundamental tradeoffs between
        invariance and sensitivity to adversarial perturbations, ICML 2020, for agreement with the oracle.
    """
    attacked = [r for r in records if r.status != "already_wrong"]
    n, told = len(attacked), [r for r in records if r.oracle is not None and r.distance.l0]
    return Invariance(
        kept=Rate(sum(r.after.decision == r.before.decision for r in attacked), n),
        changed=Rate(sum(r.oracle not in (None, r.label) for r in attacked), n),
        failed=Rate(sum(r.goal_reached for r in attacked), n),
        unknown=Rate(sum(r.oracle is None for r in attacked), n),
        as_oracle=Rate(sum(r.after.decision == r.oracle for r in told), len(told)),
        as_label=Rate(sum(r.after.decision == r.label for r in told), len(told)),
    )
