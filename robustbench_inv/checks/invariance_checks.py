"""Checks of invariance cells: exact inverse (C32), exact ReLU preimage (C33), oracle (C34, C35)."""

from collections.abc import Iterable
from math import inf

from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.verdict import Grade, Verdict, format_ids, grade
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.rates import invariance_rates
from robustbench_inv.results.record import Record

__all__ = [
    "EXACT_TOLERANCE",
    "FAILURE_SHARE",
    "check_inverse",
    "check_oracle",
    "check_oracle_agreement",
    "check_preimage",
    "exceeds_tolerance",
    "largest_error",
    "uses_inverse",
    "uses_preimage_solver",
]


ORACLE_ERROR_LIMIT = 0.1
"""C34: error rate of an oracle, on clean inputs or catch trials, above which the check warns."""


def check_oracle(cell: FinishedCell) -> Verdict:
    """C34: does every success name an oracle that is not the model itself and whose error rate is known?

    Classes that the data set itself defines, by computation or by human labels, need no error rate.
    """
    nameless = [r.sample for r in cell.records if _success_without_oracle(r)]
    itself, (error, doubtful) = _attacked_model_in_oracle(cell), _oracle_error_text(cell)
    sources = sorted({r.oracle_source for r in cell.records if r.oracle_source}) or ["no oracle"]
    evidence = (
        f"Classes of {len(cell.records)} inputs are from {', '.join(sources)}; {len(nameless)} "
        f"successes without an oracle{': samples ' + format_ids(nameless) if nameless else ''}{itself}; {error}."
    )
    verdict: Grade = "FAIL" if nameless or itself else "WARN" if doubtful else "PASS"
    return CHECKS["C34"].make_verdict(cell.subject, verdict, len(nameless), evidence)


def check_oracle_agreement(cell: FinishedCell) -> Verdict:
    """C35: can agreement with the oracle be reported beside agreement with the label of the clean input?

    A model that predicts the old label on all changed inputs is wrong: that is the invariance failure.
    """
    found = invariance_rates(cell.records)
    unknown = found.oracle_undecided.value if found.oracle_undecided.trials else 0.0
    same, old = found.agrees_with_oracle, found.agrees_with_label
    evidence = (
        f"Of {same.trials} changed inputs with a class by the oracle, {same.successes} are predicted as the "
        f"oracle's class and {old.successes} as the label of the clean input; on {found.oracle_undecided.successes} of "
        f"{found.oracle_undecided.trials} attacked samples the oracle is undecided."
    )
    verdict = grade(unknown, warn=0.5, fail=1 - 1e-9)
    return CHECKS["C35"].make_verdict(cell.subject, verdict, unknown, evidence)


def _success_without_oracle(record: Record) -> bool:
    return record.is_broken and None in (record.oracle_label, record.oracle_source)


def _attacked_model_in_oracle(cell: FinishedCell) -> str:
    """Return a note if the attacked model is part of the oracle; else an empty text."""
    oracle, model = cell.threat.oracle, cell.model
    if oracle is None or not model.digest:
        return ""
    digests = {oracle.digest, *(member.digest for member in oracle.members)}
    return f"; {model.name} is part of its own oracle" if model.digest in digests else ""


def _oracle_error_text(cell: FinishedCell) -> tuple[str, bool]:
    """Return the oracle's error rate as text, and whether it is unknown or too high."""
    error = cell.oracle_error
    if error is None:
        named = cell.threat.oracle is not None
        return "its error rate was not measured" if named else "it belongs to the data set", named
    share = error.error_rate
    text = (
        f"it is wrong on {error.errors} of {error.trials} {error.measured_on} "
        f"[{100 * share.low:.1f}, {100 * share.high:.1f}] %, undecided on {error.undecided}"
    )
    return text, not share.trials or share.value > ORACLE_ERROR_LIMIT


EXACT_TOLERANCE = 1e-3
"""Largest error of an element, of a reconstructed input or of a re-encoded metamer's logits."""

FAILURE_SHARE = 0.001
"""Share of samples above which a cell fails."""

INVERSE_ERRORS = {
    "reconstruction_error": "inputs that are decoded from their own code",
    "reencoding_error": "logits of re-encoded metamers",
}


PREIMAGE_VALUES = ("activation_error", "changed_units", "solver_status")


def uses_inverse(cell: FinishedCell) -> bool:
    """Did the attack measure the error of an inverse?"""
    return bool(INVERSE_ERRORS.keys() & cell.sample_values.keys())


def check_inverse(cell: FinishedCell) -> Verdict:
    """C32: is the inverse exact: does every input decode from its code, and every metamer encode to its logits?

    If not, a metamer has other logits than its source and proves nothing.
    """
    columns = cell.sample_values
    errors = {name: columns[name] for name in INVERSE_ERRORS if name in columns}
    worst = {name: largest_error(column.values()) for name, column in errors.items()}
    off = {
        s for column in errors.values() for s, error in column.items() if exceeds_tolerance(error)
    }
    n = max(map(len, errors.values()), default=0)
    share = len(off) / max(n, 1)
    listed = "; ".join(
        f"{INVERSE_ERRORS[name]} are off by at most {worst[name]:.2g}" for name in errors
    )
    more = f": samples {format_ids(off)}; try float64" if off else ""
    evidence = f"{n} samples: {listed}; {len(off)} of them by more than {EXACT_TOLERANCE:g}{more}."
    verdict = grade(share, warn=0, fail=FAILURE_SHARE) if errors else "NA"
    return CHECKS["C32"].make_verdict(cell.subject, verdict, share, evidence)


def largest_error(errors: Iterable[float | None]) -> float:
    """Return the largest error; inf if one is not finite."""
    return max((inf if error is None else error for error in errors), default=0.0)


def exceeds_tolerance(error: float | None) -> bool:
    """Is an error not finite, or larger than rounding explains?"""
    return error is None or error > EXACT_TOLERANCE


def uses_preimage_solver(cell: FinishedCell) -> bool:
    """Did the attack measure the errors of the activations that it keeps?"""
    return set(PREIMAGE_VALUES) <= cell.sample_values.keys()


def check_preimage(cell: FinishedCell) -> Verdict:
    """C33: has every adversarial input the activations of the clean one, with every unit on its side of the ReLU?

    If not, it does not lie in the preimage and shows no invariance of the layer. A solver that stopped before
    its optimum gives WARN: the preimage may reach farther.
    """
    columns = cell.sample_values
    activation, pattern, solver = (columns[name] for name in PREIMAGE_VALUES)
    off = {s for s, moved in activation.items() if exceeds_tolerance(moved)}
    crossed = {s for s, units in pattern.items() if units is None or units > 0}
    stopped = {s for s, status in solver.items() if status != 0}
    bad = off | crossed
    share = len(bad) / max(len(activation), 1)
    which = f": samples {format_ids(bad)}" if bad else ""
    evidence = (
        f"{len(activation)} samples: activations differ by at most {largest_error(activation.values()):.2g}, on {len(off)} by more than {EXACT_TOLERANCE:g}; units "
        f"changed sides on {len(crossed)}{which}; the solver ended early on {len(stopped)}."
    )
    verdict = grade(share, warn=0, fail=FAILURE_SHARE)
    if verdict == "PASS" and stopped:
        verdict = "WARN"
    return CHECKS["C33"].make_verdict(cell.subject, verdict, share, evidence)
