"""Checks that the attack of a finished cell did anything (C16), and could have crossed its ball (C19)."""

from collections.abc import Mapping
from typing import Any

from robustbench_inv.checks.cells import CellView, listed
from robustbench_inv.checks.verdict import CHECKS, Verdict, grade

__all__ = ["check_changed", "check_reach"]

LEAST_REACH = 2.0
"""C19: way that all steps together should be able to go, in eps: from one end of the ball to the other."""


def check_changed(view: CellView) -> Verdict:
    """C16: does the attack show other inputs than the clean ones?

    A success on an unchanged input is none. An attack inside a budget that leaves most of what it does not break
    as it was may not have run: a loss that is constant, a step of length 0, a mask that is wrong. An attack that
    seeks the nearest success has nothing to show where it finds none.
    """
    attacked = [r for r in view.records if r.status == "ok"]
    held = [r for r in attacked if not r.goal_reached and view.kind == "budget"]
    idle = [r.sample for r in held if r.distance.l0 == 0]
    false = [r.sample for r in attacked if r.goal_reached and r.distance.l0 == 0]
    if not attacked:
        return CHECKS["C16"].says(view.subject, "NA", None, "No sample was attacked.")
    share = len(idle) / max(len(held), 1)
    verdict = "FAIL" if false else grade(share, warn=0.1, fail=0.5)
    evidence = (
        f"Of {len(attacked)} attacked samples {len(false)} count as broken although nothing was changed; of "
        f"{len(held)} that hold {len(idle)} are shown as they were"
        f"{': samples ' + listed([*false, *idle]) if false or idle else ''}."
    )
    return CHECKS["C16"].says(view.subject, verdict, share, evidence)


def check_reach(view: CellView) -> Verdict:
    """C19: could all steps together cross the ball, from a start anywhere in it?"""
    reach = _reach(view)
    if reach is None:
        reason = "Not an attack of several steps of a stated length."
        return CHECKS["C19"].says(view.subject, "NA", None, reason)
    evidence = f"{view.parameters['steps']} steps can go {reach:.3g} eps; the ball is 2 eps wide."
    return CHECKS["C19"].says(
        view.subject, "PASS" if reach >= LEAST_REACH - 1e-9 else "WARN", reach, evidence
    )


def _reach(view: CellView) -> float | None:
    """Return how far all steps together can go, in the largest eps; None where steps have no fixed length."""
    given: Mapping[str, Any] = view.parameters
    steps = given.get("steps")
    if view.single_step or not isinstance(steps, int) or not view.epsilons:
        return None
    length = given.get("rel_step", given.get("rel_stepsize"))
    absolute = given.get("abs_stepsize", given.get("alpha"))
    if length is None and absolute is not None:
        length = absolute / view.epsilons[-1]
    if length is None:
        return None
    return float(length) * ((steps + 1) / 2 if given.get("decay") else steps)
