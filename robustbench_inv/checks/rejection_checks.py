"""Checks of models with a reject option: C24 to C29."""

from collections.abc import Iterable, Sequence
from functools import partial

from robustbench_inv.arguments import format_eps
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.comparisons import common_samples, group_by, verdict_about
from robustbench_inv.checks.verdict import Grade, Verdict, format_ids, grade
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.record import Record
from robustbench_inv.results.summary import Rate, rejection_rates

__all__ = [
    "check_detection_rates",
    "check_detector_aware",
    "check_false_rejection",
    "check_ood_rejection",
    "check_small_perturbations",
    "check_thresholds_frozen",
]


OOD_ATTACKS = ("noiseinput", "distal", "outofdistribution")
"""Classes of the attacks whose inputs belong to no class, in lower case."""

OBLIVIOUS_GOAL = {"misclassify-accepted": "misclassify", "target-accepted": "target"}
"""Goals of detector-aware attacks, and those of the same attacks that are oblivious."""

FALSE_REJECTION_LEVELS = (0.01, 0.02, 0.05)
"""False-rejection rates at which accuracy is reported."""


def check_thresholds_frozen(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C24: are the thresholds the same for all attacks, and fitted on inputs that were not attacked?

    A model that rejects by itself does not state what its thresholds were fitted on: WARN. ``invbench calibrate`` fits
    thresholds of its score and states it (``reject=own``).
    """
    return [_thresholds_verdict(group) for group in group_by(_rejecting(cells), _fitted_model)]


def check_false_rejection(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C25: how many clean inputs are rejected, and what is the robust accuracy when 1, 2 or 5 % of them are?"""
    return [_false_rejection(group) for group in group_by(_rejecting(cells), _model_key)]


def check_detector_aware(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C26: does a detector-aware attack fail on more samples than the same oblivious attack?

    Then it is too weak, since it could return the oblivious attack's inputs. An input counts as a success if it
    is misclassified and accepted; both attacks are compared on their common samples. Without such a pair of searches
    nothing shows that the aware one is strong: WARN. The suites ``audit`` and ``rejection`` run one.
    """
    return [_detector_aware_verdict(group) for group in group_by(_rejecting(cells), _model_key)]


def check_ood_rejection(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C29: how many inputs that belong to no class does the model accept: noise, distal inputs, other data?"""
    found = (v for v in _rejecting(cells) if v.attack.algorithm in OOD_ATTACKS)
    return [_ood_verdict(group) for group in group_by(found, _model_key)]


def check_detection_rates(cell: FinishedCell) -> Verdict:
    """C27: the detection rate of all attacked inputs and of misclassified ones; a weak attack has few of these."""
    rates = rejection_rates(cell.records)
    wrong, n = rates.rejected_errors.trials, rates.rejected_adversarial.trials
    share = wrong / n if n else 0.0
    few: Grade = "NOTE" if cell.gradient_free else "WARN"
    weak = share < 0.1 and not cell.threat.wants_same_prediction  # C45 judges those attacks
    verdict: Grade = few if weak else "PASS"
    evidence = (
        f"Misclassified and accepted: {_rate_text(rates.undetected_errors)} inputs; rejected: "
        f"{_rate_text(rates.rejected_errors)} misclassified and {_rate_text(rates.rejected_adversarial)} attacked inputs."
    )
    return CHECKS["C27"].make_verdict(
        cell.subject, verdict if n else "NA", rates.undetected_errors.value, evidence
    )


def check_small_perturbations(cell: FinishedCell) -> Verdict:
    """C28: how many correct and accepted inputs are rejected within half of the largest eps?

    References:
        Tramèr, Detecting adversarial examples is (nearly) as hard as classifying them, ICML 2022.
    """
    check, eps = CHECKS["C28"], max(cell.epsilons, default=0.0)
    fine = [r for r in cell.records if r.clean.accepted and r.clean.prediction == r.label]
    near = [r for r in fine if 0 < getattr(r.distance, cell.norm) <= eps / 2]
    if not near:
        reason = "No adversarial input lies within half of the largest eps."
        return check.make_verdict(cell.subject, "NA", None, reason)
    rate = Rate(sum(r.adversarial.accepted is False for r in near), len(near))
    evidence = f"{_rate_text(rate)} adversarial inputs within {cell.norm} {format_eps(eps / 2)} are rejected although the clean input is correct and accepted."
    return check.make_verdict(cell.subject, "PASS", rate.value, evidence)


_verdict = partial(verdict_about, any_data=True)


def _rejecting(cells: Iterable[FinishedCell]) -> list[FinishedCell]:
    return [cell for cell in cells if cell.can_reject]


def _model_key(cell: FinishedCell) -> str:
    return cell.model.key


def _fitted_model(cell: FinishedCell) -> tuple[str, str]:
    """Return the model without its thresholds, and its name, which has other thresholds on purpose."""
    rejection = cell.model.rejection
    fitted = rejection.fitted.get("model") if rejection else None
    return cell.model.name, str(fitted or cell.model.key)


def _thresholds_verdict(group: Sequence[FinishedCell]) -> Verdict:
    digests = {cell.model.thresholds_digest for cell in group}
    used = sorted({sample for cell in group for sample in _fitted_samples(cell)})
    rejection = group[0].model.rejection
    fitted = rejection.fitted if rejection else {}
    about = f"{len(group)} cells, {len(digests)} sets of thresholds ({', '.join(d[:12] for d in sorted(digests))})"
    if "dataset_digest" not in fitted:
        evidence = (
            f"{about}; what they were fitted on is unknown, so attacked samples cannot be excluded."
        )
        return _verdict(
            "C24", group[0], "FAIL" if len(digests) > 1 else "WARN", len(digests), evidence
        )
    where = fitted.get("dataset", "unknown data")
    evidence = f"{about}; fitted on {where}, {len(used)} of the attacked samples among them"
    evidence += f": {format_ids(used)}." if used else "."
    verdict: Grade = "FAIL" if len(digests) > 1 or used else "PASS"
    return _verdict("C24", group[0], verdict, len(digests), evidence)


def _fitted_samples(cell: FinishedCell) -> set[int]:
    """Return the samples of a cell that the thresholds were fitted on."""
    rejection, digest = cell.model.rejection, cell.dataset.digest
    if rejection is None:
        return set()
    return {r.sample for r in cell.records if rejection.was_fitted_on(digest, r.sample)}


def _false_rejection(group: Sequence[FinishedCell]) -> Verdict:
    widest = max(group, key=lambda cell: len(cell.records))
    rate = rejection_rates(widest.records).false_rejection
    valid = [
        score
        for cell in group
        for record, score in zip(cell.records, _scores_above(cell, clean=True), strict=True)
        if record.status != "model_failure"
    ]
    if not valid or None in valid:
        evidence = f"{_rate_text(rate)} of clean inputs are rejected; there are no scores, so the accuracy at other thresholds is unknown."
        return _verdict("C25", group[0], "FAIL", rate.value, evidence)
    attacks = [cell for cell in group if cell.goal in ("misclassify", "misclassify-accepted")]
    left = (
        "; ".join(_accuracy_text_at(level, attacks) for level in FALSE_REJECTION_LEVELS if attacks)
        or "no attack was run"
    )
    evidence = f"{_rate_text(rate)} of clean inputs are rejected. Correct and accepted under the worst attack on the model's own threshold, at most: {left}."
    verdict = grade(rate.low, warn=0.1, fail=0.5)
    return _verdict("C25", group[0], verdict, rate.value, evidence)


def _accuracy_text_at(level: float, group: Sequence[FinishedCell]) -> str:
    """Return the share of correct and accepted inputs under the worst attack at a false-rejection rate."""
    worst = min(_accuracy_at(level, cell) for cell in group)
    return f"{worst:.1%} at {level:.0%}"


def _accuracy_at(level: float, cell: FinishedCell) -> float:
    clean = sorted(s for s in _scores_above(cell, clean=True) if s is not None)
    limit = clean[int(level * len(clean))]
    scored = zip(cell.records, _scores_above(cell, clean=False), strict=True)
    accepted_and_correct = [
        s is not None and s >= limit and r.adversarial.prediction == r.label for r, s in scored
    ]
    return sum(accepted_and_correct) / len(accepted_and_correct)


def _scores_above(cell: FinishedCell, *, clean: bool) -> list[float | None]:
    outputs = (r.clean if clean else r.adversarial for r in cell.records)
    return [cell.model.score_above_threshold(output) for output in outputs]


def _detector_aware_verdict(group: Sequence[FinishedCell]) -> Verdict:
    searches = [v for v in group if v.kind != "fixed-input"]
    oblivious = [v for v in searches if v.goal in OBLIVIOUS_GOAL.values()]
    adaptive = [v for v in searches if v.goal in OBLIVIOUS_GOAL]
    pairs = [(one, other) for one in adaptive for other in oblivious if _same_search(one, other)]
    if not pairs:
        verdict: Grade = "WARN" if oblivious or adaptive else "NA"
        missing = "attack was run with both goals" if adaptive else "detector-aware attack was run"
        return _verdict("C26", group[0], verdict, None, f"No {missing}.")
    found = [_detection_difference(*pair) for pair in pairs]
    worst = max(found)
    return _verdict("C26", group[0], grade(worst[0], warn=0, fail=0), worst[0], worst[1])


def _same_search(one: FinishedCell, other: FinishedCell) -> bool:
    def about(cell: FinishedCell) -> tuple[object, ...]:
        threat = cell.threat
        goal = OBLIVIOUS_GOAL.get(cell.goal, cell.goal), dict(threat.goal_parameters)
        helper = threat.substitute and threat.substitute.digest
        search = cell.attack.key, cell.attack.own_parameters, helper, cell.info.dataset_key
        return (*search, cell.norm, cell.epsilons, threat.access, *goal)

    return about(one) == about(other)


def _detection_difference(adaptive: FinishedCell, oblivious: FinishedCell) -> tuple[float, str]:
    """Return by how much more the detector-aware attack fails, and the figures."""
    samples = common_samples([adaptive, oblivious])
    rates = []
    for cell in (adaptive, oblivious):
        mine = [r for r in cell.records if r.sample in samples]
        rates.append(Rate(sum(not _is_undetected(r, cell) for r in mine), len(mine)))
    evidence = (
        f"{adaptive.attack_label}, {adaptive.norm}: the detector-aware attack fails on {_rate_text(rates[0])} samples, "
        f"the oblivious one on {_rate_text(rates[1])}."
    )
    return rates[0].value - rates[1].value if samples else 0.0, evidence


def _is_undetected(record: Record, cell: FinishedCell) -> bool:
    """Is the adversarial input accepted, and predicted as the attacker wants?"""
    if not cell.threat.is_targeted:
        return record.is_undetected_error
    return (
        record.adversarial.accepted is not False
        and record.adversarial.prediction == cell.info.target_class(record)
    )


def _ood_verdict(group: Sequence[FinishedCell]) -> Verdict:
    accepted = [(cell.attack_label, _accepted_rate(cell)) for cell in group]
    worst = max(rate.value for _, rate in accepted)
    listed = ", ".join(f"{_rate_text(rate)} of {name}" for name, rate in accepted)
    return _verdict("C29", group[0], grade(worst, warn=0.05), worst, f"Accepted: {listed}.")


def _accepted_rate(cell: FinishedCell) -> Rate:
    return Rate(sum(r.adversarial.accepted is not False for r in cell.records), len(cell.records))


def _rate_text(rate: Rate) -> str:
    return f"{rate.successes} of {rate.trials} ({rate.value:.1%})" if rate.trials else "none of 0"
