"""Checks of one finished cell by its records, events and kept images: C14, C15, C16, C19, C22, C23, C30."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.verdict import Grade, Verdict, format_ids, grade
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.record import NOT_ATTACKED, Record, Status

__all__ = [
    "check_adversarial_inputs",
    "check_completeness",
    "check_consistency",
    "check_crashes",
    "check_inputs_changed",
    "check_lost_successes",
    "check_step_budget",
    "one_class",
]


REPLAY_LIMIT = 0.001
"""C14: share of samples above which a cell fails."""

DISTANCE_TOLERANCE = 1e-4
"""Relative difference between a distance recorded in the model's dtype and one computed in float64."""

BOUNDS_TOLERANCE = 1e-6
"""What rounding the bounds to the model's dtype may add to them."""


def check_adversarial_inputs(cell: FinishedCell) -> Verdict:
    """C14: does every adversarial input replay, and lie inside its budget and the data's box?

    The bounds and distances of kept images are computed again, in numpy and float64. A minimum-norm attack may
    end beyond the largest eps of a sweep, which is no violation. A stochastic model is evaluated and replayed
    with the same noise, which the search did not use.
    """
    moved = [r.sample for r in cell.records if not r.replayed]
    none = [r.sample for r in cell.records if r.status == "numerics"]
    outside = [
        r.sample for r in cell.records if r.status != "numerics" and _outside_budget(r, cell)
    ]
    different = _different_images(cell)
    wrong, n = {*moved, *none, *outside, *different}, max(len(cell.records), 1)
    kept = "no images kept" if cell.read_images() is None else "kept images recomputed"
    evidence = (
        f"Of {len(cell.records)} samples {len(moved)} did not replay, {len(none)} have an input or output that is not "
        f"a number, {len(outside)} left budget or bounds, {len(different)} differ from their record "
        f"({kept}){_ids_text(wrong)}."
    )
    share = len(wrong) / n
    verdict = grade(share, warn=0, fail=REPLAY_LIMIT)
    return CHECKS["C14"].make_verdict(cell.subject, verdict, share, evidence)


def check_lost_successes(cell: FinishedCell) -> Verdict:
    """C15: did the attack return a failure although one of its queries was a success?

    The engine keeps that success, so the reported number is correct although the attack is not. For a transfer
    attack the check does not apply: success on the substitute is no success.

    References:
        Pintor et al., Indicators of attack failure, NeurIPS 2022: silent success.
    """
    if cell.threat.access == "transfer":
        reason = "The search queries a substitute, whose outputs are no successes."
        return CHECKS["C15"].make_verdict(cell.subject, "NA", None, reason)
    notes = [event for event in cell.events if event.get("event") == "silent_success"]
    lost = {sample for event in notes for sample in event.get("samples", ())}
    broken = {r.sample for r in cell.records if r.is_broken}
    gone = (
        f"; {len(lost - broken)} others were no successes in the second evaluation"
        if lost - broken
        else ""
    )
    evidence = (
        f"{len(lost & broken)} of {len(broken)} successes were found by a query and not returned"
        f"{gone}{_ids_text(lost)}."
    )
    return CHECKS["C15"].make_verdict(cell.subject, grade(len(lost), warn=0), len(lost), evidence)


def check_consistency(cell: FinishedCell) -> Verdict:
    """C22: do records contradict themselves or the rates computed from them?"""
    problems = [p for r in cell.records for p in _contradictions(r, cell)] + _rate_problems(cell)
    n, wrong = len(cell.records), sum(not r.was_attacked for r in cell.records)
    broken = sum(r.is_broken for r in cell.records)
    rejected = sum(r.clean.accepted is False for r in cell.records)
    evidence = (
        f"{n} samples, {n - wrong} attacked, {broken} broken, {wrong} misclassified before the "
        f"attack, {rejected} rejected before the attack; {len(problems)} contradictions"
    )
    first = f", the first: {problems[0]}." if problems else "."
    verdict: Grade = "FAIL" if problems else "PASS"
    return CHECKS["C22"].make_verdict(cell.subject, verdict, len(problems), evidence + first)


def check_completeness(cell: FinishedCell, requested: Iterable[int]) -> Verdict:
    """C23: is there exactly one record of each requested sample?

    Args:
        cell: the cell; it may hold samples of earlier, larger requests.
        requested: the samples of the current request.
    """
    counts = Counter(r.sample for r in cell.records)
    wanted = set(requested)
    missing = wanted - counts.keys()
    doubled = {sample for sample, count in counts.items() if count > 1}
    foreign = counts.keys() - wanted - set(cell.requested)
    if not counts:
        evidence = f"None of {len(wanted)} samples is recorded."
        return CHECKS["C23"].make_verdict(cell.subject, "NOTE", len(missing), evidence)
    bad = len(missing) + len(doubled) + len(foreign)
    evidence = (
        f"{len(wanted)} samples requested, {len(counts)} recorded: {len(missing)} missing, "
        f"{len(doubled)} doubled, {len(foreign)} not requested{_ids_text(missing | doubled | foreign)}."
    )
    return CHECKS["C23"].make_verdict(cell.subject, "FAIL" if bad else "PASS", bad, evidence)


def check_crashes(cell: FinishedCell) -> Verdict:
    """C30: on how many samples did the attack raise an exception, or query an input whose output is not a number?

    A sample also counts if the attack raised at a smaller eps than the one that broke it: at that eps it was not
    searched. The evidence counts samples without a start, with a value that is not finite or with a proposal
    outside the budget; like crashed ones they count as robust.
    """
    n = max(len(cell.records), 1)
    counts = Counter(r.status for r in cell.records)
    kinds: list[Status] = ["no_start", "numerics", "budget"]
    kinds += ["model_failure"] if counts["model_failure"] else []
    others = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
    events = [event for event in cell.events if event.get("event") == "crash"]
    crashed = {r.sample for r in cell.records if r.status == "crash"}
    broken_at = {r.sample: r.broken_at for r in cell.records if r.broken_at is not None}
    crashed.update(
        sample
        for event in events
        for sample in event.get("samples", ())
        if broken_at.get(sample, math.inf) > event.get("eps", math.inf)
    )
    queried = (event for event in cell.events if event.get("event") == "undefined_output")
    undefined = {sample for event in queried for sample in event.get("samples", ())}
    undefined |= {r.sample for r in cell.records if r.status == "numerics"}
    undefined -= broken_at.keys()
    share = len(crashed | undefined) / n
    reasons = Counter(map(_reason, events))
    why = "".join(f"; {reason}" for reason, _ in reasons.most_common(3))
    evidence = (
        f"{len(crashed)} of {len(cell.records)} samples crashed{why}; an input or an output was not a number on "
        f"{len(undefined)} unbroken ones ({share:.1%} in all){_ids_text(undefined)}; {others}."
    )
    return CHECKS["C30"].make_verdict(
        cell.subject, grade(share, warn=0, fail=0.01), share, evidence
    )


def _outside_budget(record: Record, cell: FinishedCell) -> bool:
    """Is the adversarial input invalid, or farther away than the eps at which it counts?"""
    if not record.was_attacked:
        return False
    left = cell.kind == "fixed-budget" and not record.within_budget
    return left or record.status == "budget" or _outside_broken_eps(record, cell)


def _outside_broken_eps(record: Record, cell: FinishedCell) -> bool:
    """Is the adversarial example farther away than the eps at which its record counts it?"""
    if record.broken_at is None:
        return False
    distance: float = getattr(record.distance, cell.norm)
    return distance > record.broken_at + DISTANCE_TOLERANCE * max(1.0, record.broken_at)


def _different_images(cell: FinishedCell) -> set[int]:
    kept = cell.read_images()
    if kept is None:
        return set()
    records = {r.sample: r for r in cell.records}
    rows = zip(kept["samples"].tolist(), kept["clean"], kept["adversarial"], strict=True)
    return {
        s
        for s, x, y in rows
        if s not in records or _differs_from_record(records[s], x, y, cell.dataset.bounds)
    }


def _differs_from_record(
    record: Record, clean: np.ndarray, shown: np.ndarray, bounds: tuple[float, float]
) -> bool:
    """Does an image leave the bounds, or have another distance than its record?"""
    image = shown.astype(np.float64)
    inside = (image >= bounds[0] - BOUNDS_TOLERANCE) & (image <= bounds[1] + BOUNDS_TOLERANCE)
    if image.shape != clean.shape or not inside.all():
        return True
    delta = np.abs(image - clean.astype(np.float64)).ravel()
    l0, l1, l2 = np.count_nonzero(delta), delta.sum(), np.sqrt((delta**2).sum())
    distance = record.distance
    largest = delta.max(initial=0.0)
    pairs = ((l1, distance.l1), (l2, distance.l2), (largest, distance.linf))
    far = any(abs(a - b) > DISTANCE_TOLERANCE * max(1.0, abs(b)) for a, b in pairs)
    return bool(l0 != distance.l0 or far)


def _contradictions(record: Record, cell: FinishedCell) -> list[str]:
    broken, wrong = record.broken_at is not None, not record.was_attacked
    unchanged = record.distance.l0 == 0
    findings = {
        "goal_reached and broken_at disagree": record.goal_reached != broken,
        "misclassified before the attack, yet not broken at eps 0": wrong and record.broken_at != 0,
        "changed and broken at eps 0": record.broken_at == 0 and not wrong and not unchanged,
        "status and the clean decision disagree": _misclassified_clean(record, cell)
        not in (None, wrong),
        "a success with another status than ok": broken
        and record.status not in ("ok", *NOT_ATTACKED),
        "a success that is not allowed": broken and not wrong and not record.within_budget,
        "an invariance failure whose prediction changes or is rejected": cell.threat.wants_same_prediction
        and record.is_broken
        and not record.keeps_prediction,
        "broken at an eps that is not in the sweep": broken
        and not wrong
        and not _in_sweep(record, cell),
        "a distance that is not finite": not np.isfinite(
            list(vars(record.distance).values())
        ).all(),
    }
    return [f"sample {record.sample}: {what}" for what, found in findings.items() if found]


def _misclassified_clean(record: Record, cell: FinishedCell) -> bool | None:
    """Is the clean input misclassified? A rejected error does not count if the goal requires acceptance.

    None if the record cannot show it: a targeted goal with confidence depends on the margin of the logits.
    """
    if record.status == "model_failure":
        return None
    if cell.threat.no_class:
        return False
    accepted = record.clean.accepted is not False or not cell.goal.endswith("-accepted")
    if not cell.threat.is_targeted:
        return record.clean.prediction != record.label and accepted
    there = record.label != cell.info.target_class(record) == record.clean.prediction
    return None if there and cell.threat.goal_parameters.get("confidence") else there and accepted


def _in_sweep(record: Record, cell: FinishedCell) -> bool:
    return not record.broken_at or cell.covers(record.broken_at)


def _rate_problems(cell: FinishedCell) -> list[str]:
    """Recompute the accuracies from one record of each sample, and compare them with the summary."""
    samples = {r.sample: r for r in cell.records}
    n, correct = len(samples), sum(r.clean.prediction == r.label for r in samples.values())
    summary = cell.summary
    clean = (summary.clean_accuracy.successes, summary.clean_accuracy.trials)
    broken_at = [math.inf if r.broken_at is None else r.broken_at for r in samples.values()]
    limits = [eps * (1 + 1e-9) for eps in cell.epsilons] or [sys.float_info.max]
    surviving = [sum(at > limit for at in broken_at) for limit in limits]
    robust = [rate.successes for rate in summary.robust_accuracy]
    trials = {rate.trials for rate in summary.robust_accuracy}
    problems = []
    if clean != (correct, n) or robust != surviving or trials != {n}:
        problems.append(
            f"rates {clean}, {robust} of {trials}, recomputed ({correct}, {n}), {surviving}"
        )
    if sum(summary.statuses.values()) != n:
        problems.append(f"statuses add up to {sum(summary.statuses.values())}, not {n}")
    if robust != sorted(robust, reverse=True):
        problems.append(f"robust accuracy rises along the sweep: {robust}")
    return problems


def _reason(event: Mapping[str, Any]) -> str:
    return str(
        event.get("reason") or event.get("error") or event.get("message") or "no reason noted"
    )


def _ids_text(samples: Iterable[int]) -> str:
    text = format_ids(samples)
    return f": samples {text}" if text else ""


MIN_STEP_BUDGET = 2.0
"""C19: length of all steps together that is needed, in eps: from one end of the ball to the other."""

DEFAULT_STEP_BUDGET = 2.5
"""Length of all steps of ``pgd`` together, in eps, if its ``rel_step`` is left at its default, 2.5/steps."""


def check_inputs_changed(cell: FinishedCell) -> Verdict:
    """C16: do the adversarial inputs differ from the clean ones?

    A success on an unchanged input is no success. A fixed-budget attack that leaves most robust samples unchanged
    may not have run: a constant loss, a step of length 0, a wrong mask. A minimum-norm attack without a success
    returns the clean input, which is no fault.
    """
    attacked = [r for r in cell.records if r.status == "ok"]
    surviving = [r for r in attacked if not r.goal_reached and cell.kind == "fixed-budget"]
    unchanged_ids = [r.sample for r in surviving if r.distance.l0 == 0]
    false = [r.sample for r in attacked if r.goal_reached and r.distance.l0 == 0]
    if not attacked:
        return CHECKS["C16"].make_verdict(cell.subject, "NA", None, "No sample was attacked.")
    share = len(unchanged_ids) / max(len(surviving), 1)
    verdict = "FAIL" if false else grade(share, warn=0.1, fail=0.5)
    evidence = (
        f"Of {len(attacked)} attacked samples {len(false)} count as broken although unchanged; of "
        f"{len(surviving)} robust proposals {len(unchanged_ids)} are unchanged"
        f"{': samples ' + format_ids([*false, *unchanged_ids]) if false or unchanged_ids else ''}."
    )
    return CHECKS["C16"].make_verdict(cell.subject, verdict, share, evidence)


def check_step_budget(cell: FinishedCell) -> Verdict:
    """C19: could all steps together cross the ball, from a start anywhere in it?"""
    reach = _step_budget(cell)
    if reach is None:
        reason = "The attack has no fixed number of steps of a fixed length."
        return CHECKS["C19"].make_verdict(cell.subject, "NA", None, reason)
    evidence = f"{cell.attack.own_parameters['steps']} steps reach {reach:.3g} eps together; the ball is 2 eps wide."
    return CHECKS["C19"].make_verdict(
        cell.subject, "PASS" if reach >= MIN_STEP_BUDGET - 1e-9 else "WARN", reach, evidence
    )


def _step_budget(cell: FinishedCell) -> float | None:
    """Return the length of all steps together, in the largest eps; None if steps have no fixed length."""
    given: Mapping[str, Any] = cell.attack.own_parameters
    steps = given.get("steps")
    if cell.single_step or not isinstance(steps, int) or not cell.epsilons:
        return None
    length = given.get("rel_step", given.get("rel_stepsize"))
    absolute = given.get("abs_stepsize", given.get("alpha"))
    if length is None and absolute is not None:
        length = absolute / cell.epsilons[-1]
    if length is None and "rel_step" in given:
        return DEFAULT_STEP_BUDGET
    if length is None:
        return None
    return float(length) * ((steps + 1) / 2 if given.get("decay") else steps)


LEAST_OF_ONE_CLASS = 10
"""Fewer samples may belong to one class by chance."""


def one_class(cell: FinishedCell) -> str:
    """Return a sentence about samples that all belong to one class, as the first ones of a sorted data set do."""
    labels = set(np.unique(cell.records.columns.label).tolist())
    if len(labels) > 1 or len(cell.records) < LEAST_OF_ONE_CLASS or cell.dataset.num_classes < 2:
        return ""
    count, (label,) = len(cell.records), labels
    return f"All {count} samples belong to class {label}: name a class-balanced subset, --samples {count}."
