"""The verdict on a model's numbers: publishable, publishable with reservations, or do not publish, and the next command."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf
from typing import Literal, get_args

import numpy as np

from robustbench_inv.arguments import OBJECT, format_eps
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.comparisons import common_samples, goal_key, group_by, group_comparable
from robustbench_inv.checks.invariance_checks import invariance_number
from robustbench_inv.checks.records import one_class
from robustbench_inv.checks.verdict import (
    IMPOSSIBLE,
    NOT_MADE,
    Verdict,
    calibration,
    is_checked,
    labelling_command,
    mark_of,
    rank_of,
    restricts,
    samples_checked,
    typed_data,
    typed_model,
)
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.rates import closer_attacks, example_distances
from robustbench_inv.results.summary import Rate, median_distance

__all__ = ["CONCLUSIONS", "Conclusion", "ConclusionName", "Reason", "conclude"]

ConclusionName = Literal["publishable", "publishable with reservations", "do not publish"]

CONCLUSIONS: tuple[ConclusionName, ...] = get_args(ConclusionName)
"""The three verdicts, the best first."""


@dataclass(frozen=True)
class Reason:
    """Why a number needs a reservation or must not be published.

    Args:
        check: id of the check, C1 … C47; empty for what no check tests.
        text: one sentence for a person.
        evidence: the figures of the check.
    """

    check: str
    text: str
    evidence: str = ""


@dataclass(frozen=True)
class Conclusion:
    """Whether the numbers of one model on one data set can be published.

    Args:
        model: its label.
        dataset: name of the data set.
        verdict: one of ``CONCLUSIONS``.
        numbers: the worst-case results with their 95 % intervals, and the attacks, one sentence for each budget.
        reasons: why not, or why with reservations; the most important one first.
        notes: evidence of checks that found a property which does not affect the numbers.
        command: the next command to type.
        model_digest: of the model.
        dataset_digest: identity of the data set.
    """

    model: str
    dataset: str
    verdict: ConclusionName
    numbers: tuple[str, ...]
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]
    command: str
    model_digest: str
    dataset_digest: str

    @property
    def text(self) -> str:
        """The verdict, then the first reason if there is one, else the numbers."""
        said = self.reasons[0].text if self.reasons else " ".join(self.numbers)
        return f"{self.verdict}. {said}"

    @property
    def grade(self) -> str:
        """The verdict as that of a check: PASS, WARN or FAIL."""
        return dict(zip(CONCLUSIONS, ("PASS", "WARN", "FAIL"), strict=True))[self.verdict]

    @property
    def mark(self) -> str:
        """The sign beside the numbers of the model, as ``mark_of`` gives it."""
        return mark_of([self.grade])

    def concerns(self, cell: FinishedCell) -> bool:
        """Return whether the conclusion is about the model and data set of a cell."""
        return (self.model_digest, self.dataset_digest) == _subject(cell)

    def to_json(self) -> dict[str, object]:
        """Return the mapping that ``--json`` prints."""
        return asdict(self)


def conclude(cells: Sequence[FinishedCell], verdicts: Sequence[Verdict]) -> list[Conclusion]:
    """Return a conclusion for each model and data set: the checks' verdicts and the attacks that were run.

    A FAIL means *do not publish*. A WARN is a reservation, and so are checks that were not run, samples that are
    missing, and a number that no ensemble of strong attacks supports.

    Args:
        cells: the finished cells.
        verdicts: of the checks; empty if they were not run.
    """
    groups = group_by(cells, _subject)
    found = (_Evidence(tuple(group), tuple(verdicts)) for group in groups)
    return [each.conclusion() for each in found if each.cells]


@dataclass(frozen=True)
class _Evidence:
    """The cells of one model on one data set, with and without records, and all verdicts of the run."""

    planned: tuple[FinishedCell, ...]
    verdicts: tuple[Verdict, ...]

    @cached_property
    def cells(self) -> tuple[FinishedCell, ...]:
        """The cells that have records."""
        return tuple(cell for cell in self.planned if cell.records)

    def conclusion(self) -> Conclusion:
        idle = [v for v in self._about if v.verdict == "FAIL" and self._is_superseded(v)]
        failed = _reasons(v for v in self._about if v.verdict == "FAIL" and v not in idle)
        warned = _reasons([*(v for v in self._about if v.verdict == "WARN"), *idle])
        doubtful = [*warned, *self._missing]
        grade = 2 if failed else 1 if doubtful else 0
        reasons = (*failed, *doubtful)
        first, digests = self.cells[0], _subject(self.cells[0])
        numbers = tuple(_numbers(self.cells))
        notes = tuple(f"{v.evidence} ({v.id})" for v in self._about if v.verdict == "NOTE")
        command = _next_command(first, reasons[0].check if reasons else None, self.cells)
        names = first.model_label, first.dataset.name
        return Conclusion(*names, CONCLUSIONS[grade], numbers, reasons, notes, command, *digests)

    @cached_property
    def _about(self) -> list[Verdict]:
        """The verdicts that concern the cells, each once, the most important first."""
        found = [v for v in self.verdicts if any(restricts(v, cell) for cell in self.cells)]
        return sorted(dict.fromkeys(found), key=lambda v: (rank_of(v.id), v.scope == "cell"))

    def _is_superseded(self, verdict: Verdict) -> bool:
        """Did an attack change nothing (C16), beside one of several gradient steps that did all that it should?

        The number is the worst case over all attacks, which an attack without effect neither raises nor lowers.
        """
        if verdict.id != "C16":
            return False
        cell = next(cell for cell in self.cells if verdict.concerns(cell))
        found = cell.records.columns
        if bool((found.is_broken & (found.broken_at > 0) & (found.distance["l0"] == 0)).any()):
            return False
        failed = [v for v in self._about if (v.id, v.verdict) == ("C16", "FAIL")]
        group = next((group for group in group_comparable(self.cells) if cell in group), [])
        others = (c for c in group if c.finished and not any(v.concerns(c) for v in failed))
        return any(other.iterative or _is_ensemble(other) for other in others)

    @property
    def _missing(self) -> list[Reason]:
        """What no check tests: were the checks run, are all samples there, and is there a strong attack?"""
        found = list(self._unchecked)
        if failed := [v for v in self._about if v.evidence.startswith(IMPOSSIBLE)]:
            listed = ", ".join(dict.fromkeys(v.id for v in failed))
            found.append(
                f"Checks could not be made ({listed}){failed[0].evidence.removeprefix(IMPOSSIBLE)}"
            )
        if skipped := [v.id for v in self._about if v.evidence.startswith(NOT_MADE)]:
            listed = ", ".join(dict.fromkeys(skipped))
            text = f"There was no time for the checks {listed}."
            found.append(f"{text} Run invbench audit with more --minutes.")
        if late := [cell for cell in self.planned if not cell.finished]:
            found.append(f"Samples are missing in {len(late)} of {len(self.planned)} cells.")
        found += list(filter(None, map(one_class, self.cells)))[:1]
        return [Reason("", text) for text in (*found, *_weak_groups(_attacking(self.cells)))]

    @property
    def _unchecked(self) -> Iterator[str]:
        """Yield which cells were not checked, or on other records than they have now."""
        groups: dict[tuple[int, int], list[FinishedCell]] = {}
        for cell in self.cells:
            if not is_checked(cell, self.verdicts):
                checked, samples = samples_checked(cell, self.verdicts), len(cell.all_records)
                groups.setdefault((checked, samples if checked else 0), []).append(cell)
        for (checked, samples), cells in sorted(groups.items()):
            names, apart = _attack_names(cells), len(cells) < len(self.cells)
            if not checked:
                yield f"The validity checks were not run{f' on {names}' if apart else ''}."
            elif checked < samples:
                made = f"The validity checks of {names} were made on {checked} of {samples} samples"
                yield f"{made}: evaluate again with checks, all samples in one folder."
            else:
                changed = f"The records of {names} changed after the validity checks"
                yield f"{changed}: evaluate again with checks."


def _reasons(verdicts: Iterable[Verdict]) -> list[Reason]:
    """Return a reason for each check; its first verdict gives the evidence."""
    found: dict[str, Reason] = {}
    for verdict in verdicts:
        found.setdefault(verdict.id, _reason(verdict))
    return list(found.values())


def _subject(cell: FinishedCell) -> tuple[str, str]:
    return cell.model.key, cell.info.dataset_key


SENTENCES: Mapping[str, str] = {
    "C2": "Attacks without a budget leave {value:.0%} of the samples robust",
    "C6": "Gradients are zero or missing on {value:.0%} of the samples",
    "C11": "The output is not a function of the input alone: repeats, batch or order change it",
    "C25": "The model rejects {value:.0%} of the clean inputs",
    "C39": "The model classifies {value:.0%} of the clean samples correctly, which is close to chance",
}
"""Reasons in words, with the number that decides; those of other checks are the consequences in the list of checks."""


def _reason(verdict: Verdict) -> Reason:
    check = CHECKS.get(verdict.id)
    if check is None:  # of another version
        said = f"{verdict.title}: {verdict.verdict} ({verdict.id})."
        return Reason(verdict.id, said, verdict.evidence)
    consequence = check.consequence
    if verdict.verdict == "WARN" and check.caution:
        consequence = check.caution
    text = f"{consequence[:1].upper()}{consequence[1:]} ({verdict.id})."
    if verdict.id in SENTENCES and verdict.value is not None and verdict.verdict == "FAIL":
        problem = SENTENCES[verdict.id].format(value=verdict.value)
        remedy = check.consequence.partition("; ")[2]
        text = f"{problem} ({verdict.id}). {remedy[:1].upper()}{remedy[1:]}."
    return Reason(verdict.id, text, verdict.evidence.removeprefix(check.advice(verdict.verdict)))


def _attacking(cells: Sequence[FinishedCell]) -> list[FinishedCell]:
    """Return the cells that search for misclassified inputs: not those of fixed inputs, noise or invariance."""
    found = (c for c in cells if c.kind in ("fixed-budget", "minimum-norm"))
    return [c for c in found if not (c.threat.wants_same_prediction or c.threat.no_class)]


def _weak_groups(cells: Sequence[FinishedCell]) -> list[str]:
    """Return a sentence for each norm and goal in which no ensemble was run at an eps that leaves samples to break.

    Without a budget an ensemble in another norm is enough, and one that is aware of a detector for attacks that are not.
    """
    found = []
    for group in group_comparable(cells):
        strong = [c for c in cells if _is_ensemble(c) and _supports(c, group[0])]
        levels, here = _levels(group), [c for c in strong if c.norm == group[0].norm]
        weak = [e for e in levels if _survivors(group, e) and not any(c.covers(e) for c in here)]
        if weak or not (levels or strong):
            at = f" at eps {', '.join(map(format_eps, weak))}" if len(weak) < len(levels) else ""
            goal = group[0].goal if group[0].goal != "misclassify" or group[0].can_reject else ""
            names = _attack_names([c for c in group if not at or any(map(c.covers, weak))])
            where = f"In {group[0].norm}{goal and f', goal {goal},'}{at}"
            found.append(f"{where} no ensemble of attacks such as standard was run, only {names}.")
    return found


def _supports(ensemble: FinishedCell, cell: FinishedCell) -> bool:
    """Has an ensemble the goal of a cell, or that of attacks that are aware of the detector?"""
    aware = _is_oblivious(cell) and ensemble.goal == "misclassify-accepted"
    return aware or goal_key(ensemble) == goal_key(cell)


def _survivors(group: Sequence[FinishedCell], eps: float) -> set[int]:
    """Return the samples that were attacked at an eps, and that no attack at it or a smaller one broke."""
    robust = set().union(*(c.robust_samples(eps) for c in group if c.covers(eps)))
    return robust.difference(*(c.broken_samples(eps) for c in group if c.bounds_accuracy(eps)))


def _levels(group: Iterable[FinishedCell]) -> list[float]:
    return sorted({eps for cell in group for eps in cell.epsilons})


def _attack_names(cells: Sequence[FinishedCell]) -> str:
    return ", ".join(dict.fromkeys(cell.attack_label for cell in cells))


def _is_ensemble(cell: FinishedCell) -> bool:
    """Is it an ensemble of strong attacks on the model itself, ours or AutoAttack?"""
    several = bool(cell.attack.members) or "autoattack" in cell.attack.algorithm
    return several and not cell.uses_substitute


def _numbers(cells: Sequence[FinishedCell]) -> list[str]:
    """Return a sentence for each group of comparable cells: the worst case over its attacks."""
    attacking = _attacking(cells)
    return [_number(group, attacking) for group in group_comparable(attacking)] + [
        invariance_number(cell) for cell in cells if cell.threat.wants_same_prediction
    ]


def _number(group: Sequence[FinishedCell], cells: Sequence[FinishedCell]) -> str:
    samples, norm = sorted(common_samples(group)), group[0].norm
    unaware = " (not aware of the detector)" if _is_oblivious(group[0]) else ""
    by = f"on {len(samples)} samples, attacks{unaware}: "
    if levels := _levels(group):
        by_level = [_attack_names([c for c in group if c.covers(eps)]) for eps in levels]
        names = [f" ({each})" if len(set(by_level)) > 1 else "" for each in by_level]
        rates = [
            f"{_worst_rate(group, eps, samples).percent} at {norm} {format_eps(eps)}{name}"
            for eps, name in zip(levels, names, strict=True)
        ]
        words = f"Robust accuracy {', '.join(rates)}, {by}{_attack_names(group)}."
        return words + _rejections(group, samples)
    attacked = group[0].was_attacked[group[0].positions(samples)]
    samples = np.array(samples)[attacked].tolist()
    own = example_distances(group, norm, samples)
    others = [c for c in cells if goal_key(c) == goal_key(group[0]) and c not in group]
    closer = closer_attacks(own, others, norm, samples)
    median = median_distance(example_distances([*group, *closer], norm, samples))
    words = "unknown" if median is None else "infinite" if median == inf else f"{median:.3g}"
    return f"Median {norm} distance {words}, {by}{_attack_names([*group, *closer])}."


def _rejections(group: Sequence[FinishedCell], samples: Sequence[int]) -> str:
    """Return the worst case if a rejection counts as an error, for a model with a reject option."""
    if not (rejecting := [cell for cell in group if cell.summary.rejection]):
        return ""
    held, clean = np.ones(len(samples), bool), np.zeros(len(samples), bool)
    for cell in rejecting:
        found, places = cell.records.columns, cell.positions(samples)
        held &= (found.is_correct & ~found.adversarial.rejected)[places]
        clean |= found.clean.rejected[places]
    error, refused = Rate(int(held.sum()), len(held)), Rate(int(clean.sum()), len(clean))
    return f" A rejected input counts as robust; as an error it is {error.percent}, and {refused.percent} of the clean inputs are rejected."


def _is_oblivious(cell: FinishedCell) -> bool:
    return cell.can_reject and not cell.goal.endswith("accepted")


def _worst_rate(group: Sequence[FinishedCell], eps: float, samples: Sequence[int]) -> Rate:
    """Return the worst case over the attacks at an eps or a smaller one."""
    robust = np.ones(len(samples), bool)
    for cell in group:
        if cell.bounds_accuracy(eps):
            robust &= cell.robust_mask(eps, samples)
    return Rate(int(robust.sum()), len(samples))


GRADIENT_FREE = ("C2", "C4", "C5", "C6", "C7", "C8", "C10", "C12", "C13", "C31")
"""Checks after which gradients prove too little: the next command attacks without them, then with those of another network."""

ORACLE = ("C34", "C35")
"""Checks after which people label the images."""

FAULTY_FILES = ("C14", "C22", "C23", "C30")
"""Checks after which the records are made again."""


def _next_command(cell: FinishedCell, check: str | None, cells: Sequence[FinishedCell]) -> str:
    """Return what to type next: an attack that the fault does not mislead, else the audit; nothing if all is well."""
    if check in (None, "C17"):  # after C17 the user changes the model, the data or eps
        return ""
    bounded = next((c for c in _attacking(cells) if c.epsilons), None)
    text = bounded.threat.text.replace(":goal=misclassify-accepted", "") if bounded else ""
    threat = ["--threat", text] if text else []  # the goal that is left out is the usual one
    where = ["--dataset", data := typed_data(cell), *threat]
    few = len(cell.requested) < cell.dataset.size
    samples = ["--samples", str(len(cell.requested))] if few else []
    judged = next((c for c in cells if c.threat.wants_same_prediction), None)
    alone = None if bounded or check in FAULTY_FILES else judged
    strongest = alone and _is_ensemble(alone) and alone.oracle_source != "exact"
    if judged and (check in ORACLE or strongest):
        return labelling_command(judged, data, samples)
    if alone:
        stronger = ["--attack", "invariance-standard", "--threat", alone.threat.text or "none"]
        words = ["evaluate", "--model", typed_model(cell), "--dataset", data, *stronger, *samples]
    elif check in GRADIENT_FREE:
        attack = ["--attack", "square", *where]
        if check == "C7" and not any(map(_is_ensemble, cells)):
            attack[1] = "standard"
        elif threat and any(c.gradient_free or _is_ensemble(c) for c in _attacking(cells)):
            if any(c.uses_substitute for c in cells):
                return ""
            guided = f"{threat[1]}:guide={OBJECT}"
            attack = ["--attack", "pgd-tuned", "--dataset", data, "--threat", guided]
        words = ["evaluate", "--model", typed_model(cell), *attack, *samples]
    elif check == "C24":
        words = calibration(cell)
    else:
        again = ["--existing", "redo"] * (check in FAULTY_FILES)
        words = ["audit", typed_model(cell), *where, *again]
    return shlex.join(["invbench", *words])
