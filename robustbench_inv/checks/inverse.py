"""Check of what was made through a model's inverse: C32 (is the inverse one, and do metamers re-encode?)."""

from collections.abc import Iterable
from math import inf

from robustbench_inv.checks.cells import CellView, listed
from robustbench_inv.checks.verdict import CHECKS, Verdict, grade
from robustbench_inv.results.measured import read_measured

__all__ = ["EXACT", "LIMIT", "check_inverse", "inverts", "is_off", "worst_of"]

EXACT = 1e-3
"""Largest error of an element, of a reconstructed input or of a re-encoded metamer's logits."""

LIMIT = 0.001
"""Share of samples above which a cell fails."""

ERRORS = {
    "reconstruction": "inputs decoded from their own code",
    "reencoding": "logits of re-encoded metamers",
}


def inverts(view: CellView) -> bool:
    """Did the attack measure how exact an inverse is?"""
    return bool(ERRORS.keys() & read_measured(view.events).keys())


def check_inverse(view: CellView) -> Verdict:
    """C32: is every input its own code's decoding, and has every decoded metamer the logits that it was given?

    Without that a metamer proves nothing: another input, with other logits, was shown.
    """
    columns = read_measured(view.events)
    errors = {name: columns[name] for name in ERRORS if name in columns}
    worst = {name: worst_of(column.values()) for name, column in errors.items()}
    off = {s for column in errors.values() for s, error in column.items() if is_off(error)}
    n = max(map(len, errors.values()), default=0)
    share = len(off) / max(n, 1)
    said = "; ".join(f"{ERRORS[name]} are off by at most {worst[name]:.2g}" for name in errors)
    more = f": samples {listed(off)}; try float64" if off else ""
    evidence = f"{n} samples: {said}; {len(off)} of them by more than {EXACT:g}{more}."
    verdict = grade(share, warn=0, fail=LIMIT) if errors else "NA"
    return CHECKS["C32"].says(view.subject, verdict, share, evidence)


def worst_of(errors: Iterable[float | None]) -> float:
    """Return the largest error, inf where one is no number."""
    return max((inf if error is None else error for error in errors), default=0.0)


def is_off(error: float | None) -> bool:
    """Is an error no number, or larger than what rounding explains?"""
    return error is None or error > EXACT
