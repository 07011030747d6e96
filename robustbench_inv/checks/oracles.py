"""Checks of who says that a class has changed, and of what is made of it: C34, C35."""

from robustbench_inv.checks.cells import CellView, listed
from robustbench_inv.checks.verdict import CHECKS, Grade, Verdict, grade
from robustbench_inv.results.invariance import tell_invariance
from robustbench_inv.results.record import Record

__all__ = ["check_agreement", "check_oracle"]

ERROR_LIMIT = 0.1
"""C34: share of clean inputs or catch trials above which an oracle's own error is a warning."""


def check_oracle(view: CellView) -> Verdict:
    """C34: does every invariance success name an oracle, which is not the model itself and whose error is known?

    A class that the data set itself gives, by computation or from people, needs no error rate.
    """
    nameless = [r.sample for r in view.records if _success_by_nobody(r)]
    itself, (error, doubtful) = _judges_itself(view), _own_error(view)
    sources = sorted({r.oracle_source for r in view.records if r.oracle_source}) or ["nobody"]
    evidence = (
        f"Classes of {len(view.records)} inputs as {', '.join(sources)} sees them; {len(nameless)} "
        f"successes without an oracle{': samples ' + listed(nameless) if nameless else ''}{itself}; {error}."
    )
    verdict: Grade = "FAIL" if nameless or itself else "WARN" if doubtful else "PASS"
    return CHECKS["C34"].says(view.subject, verdict, len(nameless), evidence)


def check_agreement(view: CellView) -> Verdict:
    """C35: can agreement with the oracle be told beside agreement with the label of the clean input?

    A model that follows the old label on all of these inputs is not right: that is the failure.
    """
    found = tell_invariance(view.records)
    unknown = found.unknown.value if found.unknown.trials else 0.0
    same, old = found.as_oracle, found.as_label
    evidence = (
        f"Of {same.trials} changed inputs with a class by the oracle, {same.successes} are decided as the oracle "
        f"says and {old.successes} as the label of the clean input says; of {found.unknown.successes} of "
        f"{found.unknown.trials} attacked samples the oracle does not know."
    )
    verdict = grade(unknown, warn=0.5, fail=1 - 1e-9)
    return CHECKS["C35"].says(view.subject, verdict, unknown, evidence)


def _success_by_nobody(record: Record) -> bool:
    won = record.goal_reached and record.status != "already_wrong"
    return won and (record.oracle is None or record.oracle_source is None)


def _judges_itself(view: CellView) -> str:
    """Say if the attacked model is among those that judge; empty if not."""
    oracle, model = view.source.cell["threat"].get("oracle") or {}, view.source.cell["model"]
    members = [*oracle.get("members", ()), oracle]
    own = any(each.get("digest") == model.get("digest", "") for each in members)
    return f"; {view.model} judges itself" if own and model.get("digest") else ""


def _own_error(view: CellView) -> tuple[str, bool]:
    """Return what is known of the oracle's own error, and whether that is a reason for doubt."""
    error = view.source.oracle_error()
    if error is None:
        named = bool(view.source.cell["threat"].get("oracle"))
        return "its own error was not measured" if named else "it comes with the data set", named
    share = error.wrong_rate
    told = (
        f"it is wrong itself on {error.wrong} of {error.trials} {error.measured_on} "
        f"[{100 * share.low:.1f}, {100 * share.high:.1f}] %, and does not know {error.unknown}"
    )
    return told, not share.trials or share.value > ERROR_LIMIT
