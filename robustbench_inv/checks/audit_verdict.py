"""The verdict on a model's numbers: publishable, publishable with reservations, or do not publish, and the next command."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf
from typing import Literal, get_args

import numpy as np

from robustbench_inv.arguments import OBJECT, format_eps
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.comparisons import common_samples, goal_key, group_by, group_comparable
from robustbench_inv.checks.invariance_checks import invariance_number
from robustbench_inv.checks.verdict import NOT_MADE, Verdict, mark_of, restricts
from robustbench_inv.data.registry import DATASETS
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
    groups = group_by((c for c in cells if c.records), _subject)
    return [_Evidence(tuple(group), tuple(verdicts)).conclusion() for group in groups]


@dataclass(frozen=True)
class _Evidence:
    """The cells of one model on one data set, and all verdicts of the run."""

    cells: tuple[FinishedCell, ...]
    verdicts: tuple[Verdict, ...]

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
        name, data = first.model_label, first.dataset.name
        return Conclusion(
            name, data, CONCLUSIONS[grade], numbers, reasons, notes, command, *digests
        )

    @cached_property
    def _about(self) -> list[Verdict]:
        """The verdicts that concern the cells, each once, the most important first."""
        found = [v for v in self.verdicts if any(restricts(v, cell) for cell in self.cells)]
        return sorted(dict.fromkeys(found), key=lambda v: (_rank(v.id), v.scope == "cell"))

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
        found = [] if self.verdicts else ["The validity checks were not run."]
        if skipped := [v.id for v in self._about if v.evidence.startswith(NOT_MADE)]:
            listed = ", ".join(dict.fromkeys(skipped))
            advice = "Run invbench audit with more --minutes."
            found.append(f"There was no time for the checks {listed}. {advice}")
        if late := [cell for cell in self.cells if not cell.finished]:
            found.append(f"Samples are missing in {len(late)} of {len(self.cells)} cells.")
        if one_class := next(filter(None, map(_one_class, self.cells)), ""):
            found.append(one_class)
        return [Reason("", text) for text in (*found, *_weak_groups(_attacking(self.cells)))]


def _reasons(verdicts: Iterable[Verdict]) -> list[Reason]:
    """Return a reason for each check; its first verdict gives the evidence."""
    found: dict[str, Reason] = {}
    for verdict in verdicts:
        found.setdefault(verdict.id, _reason(verdict))
    return list(found.values())


def _subject(cell: FinishedCell) -> tuple[str, str]:
    return cell.model.key, cell.info.dataset_key


def _one_class(cell: FinishedCell) -> str:
    """Return a sentence about samples that all belong to one class, as the first ones of a sorted data set do."""
    labels = set(np.unique(cell.records.columns.label).tolist())
    if len(labels) > 1 or len(cell.records) < LEAST_OF_ONE_CLASS or cell.dataset.num_classes < 2:
        return ""
    count, (label,) = len(cell.records), labels
    return f"All {count} samples belong to class {label}: name a class-balanced subset, --samples {count}."


LEAST_OF_ONE_CLASS = 10
"""Fewer samples may belong to one class by chance."""

FIRST = [f"C{n}" for n in (17, 39, 42, 41, 40, 11, 24, 25, 10, 30, 7, 6, 8, 31)]
"""Checks whose failure explains those of others, the deepest cause first."""


def _rank(check: str) -> tuple[int, int]:
    position = FIRST.index(check) if check in FIRST else len(FIRST)
    return position, int(check[1:])


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
    return [c for c in cells if c.kind in ("fixed-budget", "minimum-norm") and _misclassifies(c)]


def _misclassifies(cell: FinishedCell) -> bool:
    return not cell.threat.wants_same_prediction and not cell.threat.no_class


def _weak_groups(cells: Sequence[FinishedCell]) -> list[str]:
    """Return a sentence for each norm in which no ensemble was run; without a budget another norm's is enough."""
    groups = group_by(cells, lambda cell: cell.norm)
    weak = [group for group in groups if not any(map(_is_ensemble, group))]
    some = len(weak) < len(groups)
    return [
        f"In {group[0].norm} no ensemble of attacks such as standard was run, only {_attack_names(group)}."
        for group in weak
        if not some or any(cell.epsilons for cell in group)
    ]


def _attack_names(cells: Sequence[FinishedCell]) -> str:
    return ", ".join(dict.fromkeys(cell.attack_label for cell in cells))


def _is_ensemble(cell: FinishedCell) -> bool:
    """Is it an ensemble of strong attacks, ours or AutoAttack?"""
    return bool(cell.attack.members) or "autoattack" in cell.attack.algorithm


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
    levels = sorted({eps for cell in group for eps in cell.epsilons})
    if levels:
        rates = [f"{_worst_rate(group, e, samples)} at {norm} {format_eps(e)}" for e in levels]
        words = f"Robust accuracy {', '.join(rates)}, {by}{_attack_names(group)}."
        return words + _rejections(group)
    attacked = group[0].was_attacked[group[0].positions(samples)]
    samples = np.array(samples)[attacked].tolist()
    own = example_distances(group, norm, samples)
    others = [c for c in cells if goal_key(c) == goal_key(group[0]) and c not in group]
    closer = closer_attacks(own, others, norm, samples)
    median = median_distance(example_distances([*group, *closer], norm, samples))
    words = "unknown" if median is None else "infinite" if median == inf else f"{median:.3g}"
    return f"Median {norm} distance {words}, {by}{_attack_names([*group, *closer])}."


def _rejections(group: Sequence[FinishedCell]) -> str:
    """Return what the number is if a rejection counts as an error, for a model with a reject option."""
    rates = [cell.summary.rejection for cell in group if cell.summary.rejection]
    if not rates:
        return ""
    lowest = min(rates, key=lambda each: each.accuracy_with_rejection.value)
    error, clean = lowest.accuracy_with_rejection.percent, lowest.false_rejection.percent
    return f" A rejected input counts as robust; as an error it is {error}, and {clean} of the clean inputs are rejected."


def _is_oblivious(cell: FinishedCell) -> bool:
    return cell.can_reject and not cell.goal.endswith("accepted")


def _worst_rate(group: Sequence[FinishedCell], eps: float, samples: Sequence[int]) -> str:
    """Return the worst case over the attacks at an eps or a smaller one."""
    robust = np.ones(len(samples), bool)
    for cell in group:
        if cell.bounds_accuracy(eps):
            robust &= cell.robust_mask(eps, samples)
    return Rate(int(robust.sum()), len(samples)).percent


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
    threat = ["--threat", bounded.threat.text] if bounded and bounded.threat.text else []
    data = _data_reference(cell)
    where = ["--dataset", data, *threat]
    few = len(cell.requested) < cell.dataset.size
    samples = ["--samples", str(len(cell.requested))] if few else []
    judged = next((c for c in cells if c.threat.wants_same_prediction), None)
    alone = None if bounded or check in FAULTY_FILES else judged
    strongest = alone and _is_ensemble(alone) and alone.oracle_source != "exact"
    if judged and (check in ORACLE or strongest):
        return _labelling_command(judged, data, samples)
    if alone:
        stronger = ["--attack", "invariance-standard", "--threat", alone.threat.text or "none"]
        words = ["evaluate", "--model", _reference(cell), "--dataset", data, *stronger, *samples]
    elif check in GRADIENT_FREE:
        attack = ["--attack", "square", *where]
        if check == "C7" and not any(map(_is_ensemble, cells)):
            attack[1] = "standard"
        elif threat and any(c.gradient_free or _is_ensemble(c) for c in _attacking(cells)):
            if any(c.uses_substitute for c in cells):
                return ""
            guided = f"{threat[1]}:guide={OBJECT}"
            attack = ["--attack", "pgd-tuned", "--dataset", data, "--threat", guided]
        words = ["evaluate", "--model", _reference(cell), *attack, *samples]
    else:
        again = ["--existing", "redo"] if check in FAULTY_FILES else []
        words = ["audit", _reference(cell), *where, *again]
    return shlex.join(["invbench", *words])


def _labelling_command(cell: FinishedCell, data: str, samples: Sequence[str]) -> str:
    """Return the commands after which people can give the images of a cell their classes."""
    words = ["--model", _reference(cell), "--attack", cell.attack.name, "--dataset", data, *samples]
    kept = ["--threat", cell.threat.text or "none", "--keep-images", "--out", "runs/to-label"]
    label = ["label", "runs/to-label", "--out", "label.html"]
    return f"{shlex.join(['invbench', 'evaluate', *words, *kept])} && {shlex.join(['invbench', *label])}"


def _reference(cell: FinishedCell) -> str:
    """Return what the command line calls a model; the pattern of a reference if it was an object."""
    name = str(cell.model.card.get("name") or cell.model.name)  # the latter may be the user's label
    known = ":" in name or cell.model.card.get("summary")
    return name if known else OBJECT


def _data_reference(cell: FinishedCell) -> str:
    """Return what the command line calls a data set; the pattern of a reference if it was an object."""
    name = cell.dataset.name.partition(" #")[0]  # the rest is the digest of the user's own data
    return name if ":" in name or name in DATASETS else OBJECT
