"""Check of what was made by linear programming inside a ReLU network: C33 (are the hidden activations the same?)."""

from robustbench_inv.checks.cells import CellView, listed
from robustbench_inv.checks.inverse import EXACT, LIMIT, is_off, worst_of
from robustbench_inv.checks.verdict import CHECKS, Verdict, grade
from robustbench_inv.results.measured import read_measured

__all__ = ["check_preimage", "solves_for_preimages"]


def solves_for_preimages(view: CellView) -> bool:
    """Did the attack measure how far hidden activations are from those that it meant to keep?"""
    return {"activation", "pattern", "solver"} <= read_measured(view.events).keys()


def check_preimage(view: CellView) -> Verdict:
    """C33: has every shown input the activations of the clean one, with every unit on its side of the ReLU?

    Without that it lies in no preimage, and what it shows is no invariance of the layer. A solver that stopped before its
    optimum has shown less than there is: WARN.
    """
    columns = read_measured(view.events)
    activation, pattern, solver = (columns[name] for name in ("activation", "pattern", "solver"))
    off = {s for s, moved in activation.items() if is_off(moved)}
    crossed = {s for s, units in pattern.items() if units is None or units > 0}
    stopped = {s for s, status in solver.items() if status != 0}
    bad = off | crossed
    share = len(bad) / max(len(activation), 1)
    which = f": samples {listed(bad)}" if bad else ""
    evidence = (
        f"{len(activation)} samples: activations differ by at most {worst_of(activation.values()):.2g}, on {len(off)} by more than {EXACT:g}; units "
        f"changed sides on {len(crossed)}{which}; the solver ended early on {len(stopped)}."
    )
    verdict = grade(share, warn=0, fail=LIMIT)
    if verdict == "PASS" and stopped:
        verdict = "WARN"
    return CHECKS["C33"].says(view.subject, verdict, share, evidence)
