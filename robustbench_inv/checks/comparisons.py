"""Checks that compare finished cells: C1, C3, C5, C40, C46, C47, the eps of C17, the losses of C7."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations, product

import numpy as np

from robustbench_inv.arguments import format_eps, is_tiny
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.verdict import Grade, Verdict, format_ids, grade
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.certificates import Certificates, SampleCertificate
from robustbench_inv.results.rates import example_distances
from robustbench_inv.results.record import NO_PREDICTION, Record
from robustbench_inv.results.summary import Rate

__all__ = [
    "check_card_accuracy",
    "check_certificates",
    "check_distances",
    "check_eps_scale",
    "check_gradient_free",
    "check_monotone",
    "check_single_step",
    "common_samples",
    "escalate_saturation",
    "goal_key",
    "group_by",
    "group_comparable",
    "verdict_about",
]

TOLERATED_SHARE = 0.002
"""C5: share of samples that may be broken by other attacks only."""

FARTHER, TOO_FAR = 1.05, 0.1
"""C47: ratio of distances that counts, and the share of samples that FAILs, since it moves the median."""

CARD_DIFFERENCE, CARD_FAILURE, FEWEST_SAMPLES = 0.05, 0.2, 20
"""C40: distances from the card's accuracy that WARN and FAIL, and samples from which on they are compared."""


def check_monotone(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C1: is a sample robust at an eps in one cell although a smaller eps broke it in another?

    Inside a sweep an adversarial example counts at every larger eps, so a single cell has no such samples.
    Only cells of the same attack and seed with different eps are compared. Without such cells the records
    give no verdict; the probe of each model measures C1 with independent runs.
    """
    verdicts = []
    for group in group_comparable(v for v in cells if v.epsilons):
        pairs = [p for p in permutations(group, 2) if _same_attack(*p) and p[0] is not p[1]]
        if pairs:
            verdicts.append(_monotone(group[0], pairs))
    return verdicts


def check_single_step(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C3: does one gradient step break a sample, at the same norm and eps, that iterations do not break?

    Rounding, or a random start that ends in another corner, may explain a few samples near the decision
    boundary. Up to 1 % of samples give WARN with their ids, more give FAIL.
    """
    return [_single_step(group) for group in group_comparable(cells)]


def check_gradient_free(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C5: do noise, score-based or transfer attacks break samples that no gradient attack breaks at the same eps?

    The limit is that of AutoAttack's flag for Square Attack: 0.2 points of worst-case accuracy. One sample in a
    hundred exceeds it by chance, so FAIL requires that the lower end of the interval lies above.

    References:
        Croce and Hein, Reliable evaluation of adversarial robustness, ICML 2020; Carlini et al.,
        On evaluating adversarial robustness, arXiv 1902.06705, section 4.3.
    """
    return [_gradient_free(group) for group in group_comparable(cells)]


def check_distances(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C47: does an attack that minimises another distance, or none, find closer adversarial examples?

    The minimum-norm attacks of a norm are compared with all other attacks of the same goal, whose examples have a
    distance in that norm too. A search that ends at infinity is farther than any example.
    """
    sought = [c for c in cells if c.minimizes_distance and not c.threat.wants_same_prediction]
    sought = [c for c in sought if not (c.epsilons or c.threat.no_class)]
    return [_distances(group, cells) for group in group_by(sought, _comparison_key)]


def check_eps_scale(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C17 for the plan: is eps smaller than the diameter of the data's box?"""
    return [_eps_scale(group) for group in group_by(cells, lambda cell: cell.model.key)]


def check_card_accuracy(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C40: is the clean accuracy that of the model's card on the same data, and was it not trained on these?

    The samples of all cells of a model on a data set count once. A model whose card neither states an accuracy on these
    data nor calls them training images gets no verdict. Recipes may hold out a part of a training split: WARN.
    """
    known = (c for c in cells if _training_images(c) or _stated_accuracy(c) is not None)
    stated = (c for c in known if not c.threat.no_class)
    groups = group_by(stated, lambda cell: (cell.model.key, cell.info.dataset_key))
    return [_card_accuracy(group) for group in groups]


def check_certificates(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C46: does any attack on a model misclassify an input within a distance that is certified for its sample?

    Every record counts, whatever the attack's norm and goal, if its input lies inside the bounds. A misclassified clean
    input contradicts a certificate as well. Models without certificates get no verdict.

    References:
        Zhou et al., SoundnessBench: a soundness benchmark for neural network verifiers, arXiv 2412.03154.
    """
    groups = group_by(cells, lambda cell: (cell.model.key, cell.info.dataset_key))
    return [_certificates(group) for group in groups if any(c.certificates for c in group)]


def escalate_saturation(probes: Sequence[Verdict], cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C7 for the plan: turn the probe's NOTE or WARN into FAIL if every gradient attack uses cross-entropy alone.

    Returns:
        the verdicts of the models' probes, in the same order.
    """
    return [_escalated(verdict, cells) for verdict in probes]


def common_samples(cells: Iterable[FinishedCell]) -> set[int]:
    """Return the samples that have a record in every cell."""
    sets = [cell.sample_ids for cell in cells]
    return set(frozenset.intersection(*sets)) if sets else set()


def group_by(
    cells: Iterable[FinishedCell], key: Callable[[FinishedCell], Hashable]
) -> list[list[FinishedCell]]:
    """Return the cells of each key, in order; keys are digests, since two models may have one name."""
    groups: dict[Hashable, list[FinishedCell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return list(groups.values())


def group_comparable(cells: Iterable[FinishedCell]) -> list[list[FinishedCell]]:
    """Return the cells that share model, data set, norm, goal and its oracle, without invariance cells."""
    return group_by((c for c in cells if not c.threat.wants_same_prediction), _comparison_key)


def verdict_about(
    id_: str,
    cell: FinishedCell,
    verdict: Grade,
    value: float | None,
    evidence: str,
    *,
    any_data: bool = False,
) -> Verdict:
    """Return a check's verdict about the model of a cell on its data set, or on any."""
    made = CHECKS[id_].make_verdict(cell.model_label, verdict, value, evidence)
    data = () if any_data else (cell.info.dataset_key,)
    return replace(made, about=(cell.model.key, *data))


def _comparison_key(cell: FinishedCell) -> Hashable:
    """Return what comparable cells share: digests of model and data set, norm, goal, and the oracle if it matters."""
    return cell.norm, goal_key(cell)


def goal_key(cell: FinishedCell) -> Hashable:
    """Return what cells share whose adversarial examples count for each other, whatever the norm."""
    threat, goal = cell.threat, tuple(sorted(cell.threat.goal_parameters.items()))
    judged = threat.oracle if cell.goal.endswith("same-class") else None
    oracle = judged.digest if judged else ""
    return cell.model.key, cell.info.dataset_key, cell.goal, str(goal), oracle


def _same_attack(one: FinishedCell, other: FinishedCell) -> bool:
    """Are two cells of the same attack, on the same substitute, with the same seed?"""

    def about(cell: FinishedCell) -> Hashable:
        helper = cell.threat.substitute
        return cell.attack.key, cell.threat.access, helper and helper.digest, cell.info.seed

    same = one.attack.own_parameters == other.attack.own_parameters
    return same and about(one) == about(other)


def _monotone(cell: FinishedCell, pairs: Sequence[tuple[FinishedCell, FinishedCell]]) -> Verdict:
    violations = trials = 0
    for smaller, larger in pairs:
        samples = common_samples([smaller, larger])
        for eps in larger.epsilons:
            if smaller.epsilons[0] <= eps:
                reached = max(own for own in smaller.epsilons if own <= eps)
                violations += len(
                    smaller.broken_samples(reached) & larger.robust_samples(eps) & samples
                )
                trials += len(samples)
    share = violations / trials if trials else 0.0
    evidence = (
        f"{violations} of {trials} (sample, eps) pairs are robust in one cell although a smaller or equal eps "
        f"broke them in another cell of the same attack ({share:.2%})."
    )
    return verdict_about("C1", cell, grade(share, warn=0.005), share, evidence)


def _single_step(group: Sequence[FinishedCell]) -> Verdict:
    single = [v for v in group if v.single_step]
    iterative = [v for v in group if v.iterative]
    worst: tuple[float, str] | None = None
    for one, many in product(single, iterative):
        samples = common_samples([one, many])
        for eps in (e for e in one.epsilons if samples and many.covers(e)):
            extra = one.broken_samples(eps) & many.robust_samples(eps)
            found = (len(extra) / len(samples), _single_step_evidence(one, many, eps, extra))
            worst = max(worst or found, found)
    if worst is None:
        reason = f"There are no one-step and iterative attacks at the same eps ({group[0].norm}, {group[0].dataset.name})."
        return verdict_about("C3", group[0], "NA", None, reason)
    return verdict_about("C3", group[0], grade(worst[0], warn=0, fail=0.01), worst[0], worst[1])


def _single_step_evidence(
    one: FinishedCell, many: FinishedCell, eps: float, extra: set[int]
) -> str:
    first = f"{one.attack_label} at {one.norm} eps {format_eps(eps)}"
    samples = common_samples([one, many])
    if not extra:
        broken = len(one.broken_samples(eps) & samples)
        return f"{many.attack_label} breaks all {broken} of {len(samples)} samples that {first} breaks."
    count = f"{len(extra)} of {len(samples)} samples are broken by {first}"
    return f"{count}, which {many.attack_label} does not break: {format_ids(extra)}."


def _gradient_free(group: Sequence[FinishedCell]) -> Verdict:
    white = [v for v in group if v.uses_gradients]
    black = [v for v in group if v.gradient_free]
    worst: tuple[Rate, str] | None = None
    for eps in sorted({eps for cell in (*white, *black) for eps in cell.epsilons}):
        here = [v for v in white if v.covers(eps)], [v for v in black if v.covers(eps)]
        samples = common_samples([*here[0], *here[1]])
        if all(here) and samples:
            found = _gradient_free_gain(here[0], here[1], eps, samples)
            worst = max(worst or found, found, key=lambda gap: gap[0].value)
    if worst is None:
        reason = f"There are no gradient attack and gradient-free attack at the same eps ({group[0].norm}, {group[0].dataset.name})."
        return verdict_about("C5", group[0], "NA", None, reason)
    gap, evidence = worst
    verdict = "FAIL" if gap.low > TOLERATED_SHARE else grade(gap.value, warn=TOLERATED_SHARE)
    return verdict_about("C5", group[0], verdict, gap.value, evidence)


def _gradient_free_gain(
    white: Sequence[FinishedCell], black: Sequence[FinishedCell], eps: float, samples: set[int]
) -> tuple[Rate, str]:
    broken = set().union(*(v.broken_samples(eps) for v in white)) & samples
    extra = set().union(*(v.broken_samples(eps) for v in black)) & samples - broken
    n, names = len(samples), " and ".join(sorted({v.attack_label for v in black}))
    accuracy = f"{1 - len(broken) / n:.1%} to {1 - len(broken | extra) / n:.1%}"
    which = f" (samples {format_ids(extra)})" if extra else ""
    evidence = (
        f"At {white[0].norm} eps {format_eps(eps)} {names} lowered the worst-case accuracy of gradient attacks "
        f"from {accuracy} on {n} samples{which}."
    )
    return Rate(len(extra), n), evidence


def _distances(group: Sequence[FinishedCell], cells: Sequence[FinishedCell]) -> Verdict:
    norm = group[0].norm
    others = [c for c in cells if goal_key(c) == goal_key(group[0]) and c not in group]
    shared = sorted(_attacked_samples(group) & _attacked_samples(others))
    if not shared:
        reason = f"No attack but the minimum-norm attacks in {norm} has examples of these samples."
        return verdict_about("C47", group[0], "NA", None, reason)
    own, found = (example_distances(each, norm, shared) for each in (group, others))
    far = own > FARTHER * found
    farther, none = np.array(shared)[far].tolist(), int(np.isinf(own[far]).sum())
    names = " and ".join(sorted({cell.attack_label for cell in group}))
    which = f": {format_ids(farther)}; on {none} of them it found none" if farther else ""
    evidence = (
        f"On {len(farther)} of {len(shared)} samples other attacks have an example that is closer in {norm} than that of "
        f"{names}, by more than 5 %{which}."
    )
    share = len(farther) / len(shared)
    verdict = grade(share, warn=TOLERATED_SHARE, fail=TOO_FAR)
    return verdict_about("C47", group[0], verdict, share, evidence)


def _attacked_samples(cells: Sequence[FinishedCell]) -> set[int]:
    return set().union(*(cell.ids[cell.was_attacked].tolist() for cell in cells))


def _eps_scale(group: Sequence[FinishedCell]) -> Verdict:
    about_model = partial(verdict_about, "C17", group[0], any_data=True)
    swept = [v for v in group if v.epsilons]
    if not swept:
        return about_model("NA", None, "No cell of the plan has a budget.")
    worst = max(swept, key=lambda v: v.epsilons[-1] / v.dataset.box_diameter(v.norm))
    share = worst.epsilons[-1] / (width := worst.dataset.box_diameter(worst.norm))
    beyond = [v for v in swept if v.epsilons[0] > v.dataset.box_diameter(v.norm)]
    tiny = [v for v in swept if is_tiny(v.norm, v.epsilons[-1], v.dataset.box_diameter("linf"))]
    verdict = "FAIL" if beyond else "WARN" if tiny else grade(share, warn=1)
    evidence = (
        f"The largest {worst.norm} eps is {format_eps(worst.epsilons[-1])} in a box of {worst.norm} diameter {width:g}; of "
        f"{len(swept)} cells {len(beyond)} have only eps beyond their box, {len(tiny)} none of a thousandth of the range."
    )
    return about_model(verdict, share, evidence)


def _stated_accuracy(cell: FinishedCell) -> float | None:
    """Return the accuracy that the model's card states on the data of a cell."""
    training, name = cell.model.card.get("training"), f"accuracy_{cell.dataset.name}"
    stated = training.get(name) if isinstance(training, Mapping) else None
    if isinstance(stated, int | float) and not isinstance(stated, bool) and 0 <= stated <= 1:
        return float(stated)
    return None


def _training_images(cell: FinishedCell) -> Grade | None:
    """Does the card name the data under ``trained_on`` (FAIL), or are they a training split of its data (WARN)?"""
    named, own = cell.model.card.get("trained_on"), cell.model.card.get("dataset")
    named = named if isinstance(named, list | tuple) else ()
    name, *data = (set(re.split("[:,]", str(n))) for n in (cell.dataset.name, *named))
    if any(name >= parts for parts in data):
        return "FAIL"
    split = own and "split=train" in name and name >= set(re.split("[:,]", str(own)))
    return "WARN" if split else None


def _card_accuracy(group: Sequence[FinishedCell]) -> Verdict:
    about_model, data = partial(verdict_about, "C40", group[0]), group[0].dataset.name
    if training := _training_images(group[0]):
        held_out = ", but for those that its recipe held out" if training == "WARN" else ""
        text = f"By its card the model was trained on images of {data}{held_out}."
        return about_model(training, None, text)
    stated = _stated_accuracy(group[0]) or 0.0
    right = {r.sample: r.clean.prediction == r.label for cell in group for r in cell.records}
    rate = Rate(sum(right.values()), len(right))
    if rate.trials < FEWEST_SAMPLES:
        few = f"{rate.trials} samples are too few to compare with the card."
        return about_model("NA", None, few)
    apart = max(rate.low - stated, stated - rate.high, 0.0)
    evidence = (
        f"{rate.successes} of {rate.trials} samples of {data} are classified correctly: {rate.value:.1%}, 95 % interval "
        f"{rate.low:.1%} to {rate.high:.1%}; the card states {stated:.1%}."
    )
    return about_model(grade(apart, warn=CARD_DIFFERENCE, fail=CARD_FAILURE), apart, evidence)


def _escalated(verdict: Verdict, cells: Sequence[FinishedCell]) -> Verdict:
    if verdict.id != "C7" or verdict.verdict not in ("NOTE", "WARN"):
        return verdict
    gradient = [v for v in cells if verdict.concerns(v) and v.uses_gradients]
    if not gradient or not all(v.uses_cross_entropy_only for v in gradient):
        return verdict
    names = ", ".join(sorted({v.attack_label for v in gradient}))
    check = CHECKS["C7"]
    figures = verdict.evidence.removeprefix(check.advice(verdict.verdict))
    evidence = f"{figures} Every gradient attack of the plan uses cross-entropy ({names})."
    return replace(
        check.make_verdict(verdict.subject, "FAIL", verdict.value, evidence), about=verdict.about
    )


def _certificates(group: Sequence[FinishedCell]) -> Verdict:
    found = [cell.certificates for cell in group if cell.certificates]
    certified = {e.sample for each in found for e in each.samples if e.radius > 0}
    wrong = {
        record.sample
        for each, cell in product(found, group)
        for record in cell.records
        if _contradicts(record, each.norm, each.by_sample.get(record.sample))
    }
    methods = ", ".join(_methods(found))
    text = f"{len(certified)} samples are certified at some distance, by {methods}."
    if wrong:
        text += f" Misclassified within that distance: samples {format_ids(wrong)}."
    verdict: Grade = "FAIL" if wrong else "PASS" if certified else "NA"
    return verdict_about("C46", group[0], verdict, float(len(wrong)), text)


def _methods(found: Sequence[Certificates]) -> list[str]:
    """Return what made certificates, each once; ``no method`` if nothing was proven."""
    return list(dict.fromkeys(name for each in found for name in each.methods)) or ["no method"]


def _contradicts(record: Record, norm: str, proven: SampleCertificate | None) -> bool:
    """Does a record hold an input within the certified distance that is misclassified?"""
    if proven is None or not proven.radius:
        return False
    if record.clean.prediction not in (record.label, NO_PREDICTION):
        return True
    near = float(getattr(record.distance, norm)) <= proven.radius * (1 + 1e-6)
    other = record.adversarial.prediction not in (record.label, NO_PREDICTION)
    return near and other and record.within_budget and record.replayed
