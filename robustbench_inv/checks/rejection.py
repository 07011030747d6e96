"""Checks of models that reject: C24 to C29."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustbench_inv.checks.cells import CellView, common_samples, listed
from robustbench_inv.checks.verdict import CHECKS, Grade, Verdict, grade
from robustbench_inv.results.record import Record
from robustbench_inv.results.rejection import (
    above_threshold,
    fooled,
    rejection_rates,
    rejects,
    thresholds_of,
)
from robustbench_inv.results.summary import Rate

__all__ = [
    "check_adaptive",
    "check_both_rates",
    "check_false_rejection",
    "check_frozen",
    "check_noise",
    "check_small_steps",
    "rejecting",
]

FOREIGN = ("noiseinput", "distal", "outofdistribution")
"""Classes of the attacks that show no version of any input, in lower case."""

KNOWING = {"misclassify-accepted": "misclassify", "target-accepted": "target"}
"""Goals of attacks that know of the rejection, and those of the same attacks that do not."""

LEVELS = (0.01, 0.02, 0.05)
"""Shares of clean inputs whose rejection is borne."""


def rejecting(view: CellView) -> bool:
    """Is the model of a cell one that rejects?"""
    return rejects(view.records)


def check_frozen(views: Sequence[CellView]) -> list[Verdict]:
    """C24: were the thresholds the same for all attacks, and fitted on other inputs than those attacked?"""
    return [_frozen(model, group) for model, group in _by_model(views).items()]


def check_false_rejection(views: Sequence[CellView]) -> list[Verdict]:
    """C25: how many clean inputs are rejected, and what is right and answered when 1, 2 or 5 % of them are?"""
    return [_false_rejection(model, group) for model, group in _by_model(views).items()]


def check_adaptive(views: Sequence[CellView]) -> list[Verdict]:
    """C26: is an attack that knows of the rejection detected more often than the same that does not?

    Then it is too weak: it could have done what the other did. Detected is what is not both wrong and accepted,
    on the samples that both saw.
    """
    return [_adaptive(model, group) for model, group in _by_model(views).items()]


def check_noise(views: Sequence[CellView]) -> list[Verdict]:
    """C29: how much of what is of none of its classes does a model accept: noise, distal inputs, other data?"""
    groups = _by_model(v for v in views if v.algorithm in FOREIGN)
    return [_noise(model, group) for model, group in groups.items()]


def check_both_rates(view: CellView) -> Verdict:
    """C27: detection of all inputs and of those that are wrong; the second says nothing of a weak attack."""
    rates = rejection_rates(view.records)
    wrong, n = rates.detected.trials, rates.rejected.trials
    share = wrong / n if n else 0.0
    verdict: Grade = "WARN" if n and share < 0.1 else "PASS"
    evidence = (
        f"Wrong and accepted {_text(rates.fooled)} of all; rejected {_text(rates.detected)} of the wrong and "
        f"{_text(rates.rejected)} of the attacked."
    )
    return CHECKS["C27"].says(view.subject, verdict if n else "NA", rates.fooled.value, evidence)


def check_small_steps(view: CellView) -> Verdict:
    """C28: how many inputs that were right and accepted are rejected within half of the largest eps?

    References:
        Tramèr, Detecting adversarial examples is (nearly) as hard as classifying them, ICML 2022.
    """
    check, eps = CHECKS["C28"], max(view.epsilons, default=0.0)
    fine = [r for r in view.records if r.before.accepted and r.before.decision == r.label]
    near = [r for r in fine if 0 < getattr(r.distance, view.norm) <= eps / 2]
    if not near:
        reason = "Nothing is shown within half of an eps."
        return check.says(view.subject, "NA", None, reason)
    rate = Rate(sum(r.after.accepted is False for r in near), len(near))
    evidence = f"{_text(rate)} of the inputs shown within {view.norm} {eps / 2:g} are rejected, which were right before."
    return check.says(view.subject, "PASS", rate.value, evidence)


def _by_model(views: Iterable[CellView]) -> dict[str, list[CellView]]:
    groups: dict[str, list[CellView]] = {}
    for view in views:
        if rejecting(view):
            groups.setdefault(view.model, []).append(view)
    return groups


def _frozen(model: str, group: Sequence[CellView]) -> Verdict:
    digests = {_digest(view) for view in group}
    used = sorted({sample for view in group for sample in _fitted(view)})
    about = thresholds_of(next(iter(group)).source.cell["model"])
    where = (about.get("fitted") or {}).get("dataset", "what the model does not say")
    evidence = (
        f"{len(group)} cells, {len(digests)} sets of thresholds ({', '.join(d[:12] for d in sorted(digests))}); "
        f"fitted on {where}, {len(used)} of the attacked samples among them"
    )
    evidence += f": {listed(used)}." if used else "."
    verdict: Grade = "FAIL" if len(digests) > 1 or used else "PASS"
    return CHECKS["C24"].says(model, verdict, len(digests), evidence)


def _digest(view: CellView) -> str:
    """Return what identifies the thresholds: their digest, or that of the model that they are part of."""
    about: Mapping[str, Any] = view.source.cell["model"]
    return str(thresholds_of(about).get("digest") or about.get("digest", "unknown"))


def _fitted(view: CellView) -> set[int]:
    """Return the samples of a cell that the thresholds were fitted on."""
    cell = view.source.cell
    fitted = thresholds_of(cell["model"]).get("fitted") or {}
    if not fitted or fitted.get("dataset_digest") != cell["dataset"].get("digest"):
        return set()
    first, last = int(fitted["first"]), int(fitted["last"])
    return {r.sample for r in view.records if first <= r.sample < last}


def _false_rejection(model: str, group: Sequence[CellView]) -> Verdict:
    widest = max(group, key=lambda view: len(view.records))
    rate = rejection_rates(widest.records).rejected_clean
    scores = [_above(view, before=True) for view in group]
    if any(None in each for each in scores):
        evidence = f"{_text(rate)} of clean inputs are rejected; without scores no other threshold can be tried."
        return CHECKS["C25"].says(model, "FAIL", rate.value, evidence)
    attacks = [view for view in group if view.goal in ("misclassify", "misclassify-accepted")]
    left = "; ".join(_at(level, attacks) for level in LEVELS if attacks) or "none was run"
    evidence = f"{_text(rate)} of clean inputs are rejected. Right and answered under the worst attack: {left}."
    verdict = grade(rate.low, warn=0.1, fail=0.5)
    return CHECKS["C25"].says(model, verdict, rate.value, evidence)


def _at(level: float, group: Sequence[CellView]) -> str:
    """Say what is right and answered under the worst attack when a share of clean inputs is rejected."""
    worst = min(_right_at(level, view) for view in group)
    return f"{worst:.1%} at {level:.0%}"


def _right_at(level: float, view: CellView) -> float:
    clean = sorted(s for s in _above(view, before=True) if s is not None)
    limit = clean[int(level * len(clean))]
    shown = zip(view.records, _above(view, before=False), strict=True)
    held = [s is not None and s >= limit and r.after.decision == r.label for r, s in shown]
    return sum(held) / len(held)


def _above(view: CellView, *, before: bool) -> list[float | None]:
    model = view.source.cell["model"]
    answers = [r.before if before else r.after for r in view.records]
    return [above_threshold(answer, model) for answer in answers]


def _adaptive(model: str, group: Sequence[CellView]) -> Verdict:
    oblivious = [v for v in group if v.goal in KNOWING.values()]
    adaptive = [v for v in group if v.goal in KNOWING]
    pairs = [(one, other) for one in adaptive for other in oblivious if _same_search(one, other)]
    if not pairs:
        verdict: Grade = "WARN" if oblivious and not adaptive else "NA"
        missing = (
            "attack knows of the rejection" if verdict == "WARN" else "attack was run both ways"
        )
        return CHECKS["C26"].says(model, verdict, None, f"No {missing}.")
    found = [_compared(*pair) for pair in pairs]
    worst = max(found)
    return CHECKS["C26"].says(model, grade(worst[0], warn=0, fail=0), worst[0], worst[1])


def _same_search(one: CellView, other: CellView) -> bool:
    def about(view: CellView) -> tuple[object, ...]:
        dataset, aim = view.source.cell["dataset"]["name"], dict(view.goal_parameters)
        wanted = KNOWING.get(view.goal, view.goal)
        search = (view.attack, view.parameters, view.norm, view.epsilons, view.access)
        return (*search, dataset, wanted, aim)

    return about(one) == about(other)


def _compared(adaptive: CellView, oblivious: CellView) -> tuple[float, str]:
    """Return by how much more the adaptive attack is detected, and the figures."""
    samples = common_samples([adaptive, oblivious])
    rates = []
    for view in (adaptive, oblivious):
        mine = [r for r in view.records if r.sample in samples]
        rates.append(Rate(sum(not _fools(r, view) for r in mine), len(mine)))
    evidence = (
        f"{adaptive.attack}, {adaptive.norm}: {_text(rates[0])} not fooled by the attack that knows of the rejection, "
        f"{_text(rates[1])} by the one that does not."
    )
    return rates[0].value - rates[1].value if samples else 0.0, evidence


def _fools(record: Record, view: CellView) -> bool:
    """Is what is shown answered as the attacker wants, and accepted?"""
    if not view.goal.startswith("target"):
        return fooled(record)
    return record.after.accepted is not False and record.after.decision == view.aimed_at(record)


def _noise(model: str, group: Sequence[CellView]) -> Verdict:
    accepted = {view.attack: _accepted(view) for view in group}
    worst = max(accepted.values(), key=lambda rate: rate.value)
    told = ", ".join(f"{_text(rate)} of {name}" for name, rate in accepted.items())
    return CHECKS["C29"].says(
        model, grade(worst.value, warn=0.05), worst.value, f"Accepted {told}."
    )


def _accepted(view: CellView) -> Rate:
    return Rate(sum(r.after.accepted is not False for r in view.records), len(view.records))


def _text(rate: Rate) -> str:
    return f"{rate.successes} of {rate.trials} ({rate.value:.1%})" if rate.trials else "none of 0"
