"""Verdicts of validity checks with their evidence, signs beside numbers, and commands about models and data."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any, Literal

from robustbench_inv.arguments import OBJECT
from robustbench_inv.data.registry import DATASETS
from robustbench_inv.results.cell import FinishedCell

__all__ = [
    "GRADES",
    "IMPOSSIBLE",
    "NOT_MADE",
    "TOPICS",
    "Check",
    "Grade",
    "Scope",
    "Verdict",
    "calibration",
    "format_ids",
    "grade",
    "is_checked",
    "labelling_command",
    "mark_of",
    "mark_of_cells",
    "rank_of",
    "restricts",
    "samples_checked",
    "topic_of",
    "typed_data",
    "typed_model",
]

Grade = Literal["PASS", "NOTE", "WARN", "FAIL", "NA"]
"""``NOTE``: a property of the model that does not affect this number. ``NA``: the check does not apply; its evidence
gives the reason."""

GRADES: tuple[Grade, ...] = ("FAIL", "WARN", "NOTE", "NA", "PASS")
"""The grades in the order in which a reader should see them."""

Scope = Literal["model", "cell", "run"]
"""The subject of a verdict: one model, one cell (attack × model × threat × data set), or the whole run."""


@dataclass(frozen=True)
class Verdict:
    """The result of one check on one subject.

    Args:
        id: stable id of the check, C1 … C47.
        title: the property that the check tests.
        scope: whether the subject is a model, a cell or a run.
        subject: the model's name, or a cell (``FinishedCell.subject``).
        verdict: PASS, NOTE, WARN, FAIL or NA.
        value: the number that decides; None without one.
        rule: the limits, in words.
        evidence: the consequence of a FAIL or WARN for the reported number, then the figures.
        about: digests of the subject: of a cell, or of a model and perhaps a data set; empty in older files, and for
            a verdict about several models.
        samples: number of samples that the subject had, of which a check may test some; None in older files.
        records: digest of the records that were checked; empty in older files, and for a verdict about a model.
    """

    id: str
    title: str
    scope: Scope
    subject: str
    verdict: Grade
    value: float | None
    rule: str
    evidence: str
    about: tuple[str, ...] = ()
    samples: int | None = None
    records: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Verdict":
        """Read one verdict of checks.json; other keys are ignored."""
        known = {key: value[key] for key in cls.__dataclass_fields__ if key in value}
        return cls(**{**known, "about": tuple(value.get("about") or ())})

    def concerns(self, cell: FinishedCell) -> bool:
        """Return whether the verdict is about a cell, about its model, or about the run as a whole.

        What was found on other records, such as on fewer samples, still counts if it is a FAIL or a WARN.
        """
        urgent = self.verdict in ("FAIL", "WARN")
        return self.names(cell) and (urgent or self.covers(cell))

    def names(self, cell: FinishedCell) -> bool:
        """Return whether a cell, its model or the run is the subject, whatever records the cell had."""
        if self.scope == "run":
            return True
        if self.about:
            return {cell.digest, cell.model.key, cell.info.dataset_key} >= set(self.about)
        return self.subject == (cell.subject if self.scope == "cell" else cell.model.name)

    def covers(self, cell: FinishedCell) -> bool:
        """Return whether the check was made on the records that the cell has now, of a model on as many samples."""
        have, known = len(cell.all_records), self.known_samples
        if self.scope != "cell":
            return known is None or known >= have
        if known is None:
            return self.id != "C22"
        return known == have and self.records in ("", cell.records_digest)

    @property
    def known_samples(self) -> int | None:
        """The number of samples; in older files only the evidence of C22 states it."""
        if self.samples is not None or self.id != "C22":
            return self.samples
        stated = re.search(r"(\d+) samples, \d+ attacked", self.evidence)
        return int(stated[1]) if stated else None

    def to_json(self) -> dict[str, object]:
        """Return the mapping that checks.json holds; a value that is not finite becomes null."""
        value = self.value if self.value is not None and isfinite(self.value) else None
        return {**asdict(self), "value": value, "about": list(self.about)}


@dataclass(frozen=True)
class Check:
    """A rule that a trustworthy robustness number satisfies.

    Args:
        id: stable id, C1 … C47.
        title: the property that the check tests.
        scope: whether its subject is a model, a cell or a run.
        rule: when it warns and when it fails.
        consequence: what a FAIL means for the reported number, and what to do.
        caution: the same for a WARN; empty if it is that of a FAIL.
        note: why a NOTE does not affect the number; empty for checks that give none.

    Example:
        >>> check = Check("C23", "every sample has a record", "cell", "FAIL if not", "run it again")
        >>> check.make_verdict("some cell", "FAIL", 1, "1 of 10 samples is missing.").evidence
        'Do not report this number: run it again. 1 of 10 samples is missing.'
    """

    id: str
    title: str
    scope: Scope
    rule: str
    consequence: str
    caution: str = ""
    note: str = ""

    def make_verdict(
        self, subject: str, verdict: Grade, value: float | None, evidence: str
    ) -> Verdict:
        """Return this check's verdict on a subject.

        Args:
            subject: the name of the model or of the cell.
            verdict: its grade.
            value: the number that decides; None without one.
            evidence: sentences with the figures.
        """
        text = f"{self.advice(verdict)}{evidence}"
        return Verdict(self.id, self.title, self.scope, subject, verdict, value, self.rule, text)

    def advice(self, verdict: Grade) -> str:
        """Return what a FAIL, WARN or NOTE means for the reported number; empty for other grades."""
        if verdict == "FAIL":
            return f"Do not report this number: {self.consequence}. "
        if verdict == "WARN":
            return f"Report this number with care: {self.caution or self.consequence}. "
        if verdict == "NOTE" and self.note:
            return f"This number is unaffected: {self.note}. "
        return ""


NOT_MADE = "The check was not made"
"""First words of the evidence of a check that applies and was not made; its grade is NA."""

IMPOSSIBLE = "The check could not be made"
"""First words of the evidence of a check that raised an exception; its grade is NA."""


def grade(value: float, *, warn: float, fail: float = float("inf")) -> Grade:
    """Return FAIL above ``fail`` or for nan, WARN above ``warn``, else PASS."""
    if value != value or value > fail:
        return "FAIL"
    return "WARN" if value > warn else "PASS"


def format_ids(samples: Iterable[int], most: int = 8) -> str:
    """Return sample ids as text; only the first few of many.

    Example:
        >>> format_ids([5, 2, 9], most=2)
        '2, 5, … (3 in all)'
    """
    ids = sorted(samples)
    text = ", ".join(map(str, ids[:most]))
    return text if len(ids) <= most else f"{text}, … ({len(ids)} in all)"


TOPICS: Mapping[str, tuple[str, ...]] = {
    "Are model and data what they should be?": (
        "C10",
        "C11",
        "C12",
        "C17",
        "C39",
        "C40",
        "C41",
        "C42",
    ),
    "Do gradients lead the attacks?": ("C6", "C7", "C8", "C31"),
    "Are the attacks strong enough?": ("C1", "C2", "C3", "C4", "C5", "C13", "C19", "C47"),
    "Are the records complete and right?": ("C14", "C15", "C16", "C22", "C23", "C30", "C46"),
    "Is the rejection measured fairly?": ("C24", "C25", "C26", "C27", "C28", "C29"),
    "Is the invariance real?": ("C32", "C33", "C34", "C35", "C43", "C44", "C45"),
}
"""What the checks are about, in the words of a reader, with their ids."""


def topic_of(check: str) -> str:
    """Return the topic of a check, by its id.

    Example:
        >>> topic_of("C6")
        'Do gradients lead the attacks?'
    """
    return next((topic for topic, ids in TOPICS.items() if check in ids), "Other checks")


MARKS: Mapping[str, str] = {"FAIL": "✗", "WARN": "!"}
"""Signs beside numbers that a check concerns."""


def mark_of(grades: Iterable[str]) -> str:
    """Return the sign beside a number that checks of these grades concern.

    Example:
        >>> mark_of(["PASS", "WARN", "FAIL"]), mark_of(["WARN"]), mark_of(["NOTE"])
        (' ✗', ' !', '')
    """
    found = set(grades)
    return next((f" {sign}" for grade, sign in MARKS.items() if grade in found), "")


TOO_WEAK = frozenset({"C4", "C6", "C7", "C8", "C12", "C13", "C31"})
"""Checks that attacks may find too little, of no concern where every sample is broken."""

OF_CLEAN_ACCURACY = frozenset({"C11", "C17", "C22", "C23", "C30", "C39", "C40", "C41", "C42"})
"""Checks whose failure makes an accuracy without an attack wrong as well."""


def _is_open(cell: FinishedCell) -> bool:
    """Is a sample left to break, or could a distance be smaller?"""
    seeks_distance = not cell.epsilons and not cell.threat.wants_same_prediction
    left = cell.robust_mask(min(cell.epsilons, default=inf))
    return seeks_distance or not cell.finished or bool(left.any())


def restricts(verdict: Verdict, cell: FinishedCell) -> bool:
    """Return whether a verdict concerns a cell's numbers: weak attacks matter only if a sample is left to break."""
    return verdict.concerns(cell) and (verdict.id not in TOO_WEAK or _is_open(cell))


def mark_of_cells(
    cells: Iterable[FinishedCell], verdicts: Iterable[Verdict], *, clean: bool = False
) -> str:
    """Return the sign beside a number that some cells give, or with ``clean`` beside their accuracy without attack."""
    about = [v for v in verdicts if not clean or v.id in OF_CLEAN_ACCURACY]
    return mark_of(v.verdict for v in about for cell in cells if restricts(v, cell))


def is_checked(cell: FinishedCell, verdicts: Sequence[Verdict]) -> bool:
    """Were the checks of a cell and of its model made on the records that the cell has now?

    Without a verdict on any cell, one on the model is enough.
    """
    if not any(v.id in ("C22", "C23") for v in verdicts):
        return any(v.scope != "run" and v.concerns(cell) for v in verdicts)
    return all(
        any(v.id == check and v.names(cell) and v.covers(cell) for v in verdicts)
        for check in OF_EVERY_CELL
    )


def samples_checked(cell: FinishedCell, verdicts: Sequence[Verdict]) -> int:
    """Return on how many samples a cell and its model were checked; 0 if one of them was not."""
    own = [v for v in verdicts if v.names(cell)]
    known = {v.id: len(cell.all_records) for v in own if v.covers(cell)}
    for verdict in own:
        known[verdict.id] = max(known.get(verdict.id, 0), verdict.known_samples or 0)
    return min(known.get(check, 0) for check in OF_EVERY_CELL)


OF_EVERY_CELL = ("C22", "C11")
"""A check that every cell with records gets, and one that every model gets."""

FIRST = [f"C{n}" for n in (17, 39, 42, 41, 40, 11, 24, 25, 10, 30, 7, 6, 8, 31)]
"""Checks whose failure explains those of others, the deepest cause first."""


def rank_of(check: str) -> tuple[int, int]:
    """Return a key that sorts checks, the deepest cause first, then by number."""
    return [*FIRST, check].index(check), int(check[1:])


def labelling_command(cell: FinishedCell, data: str, samples: Sequence[str]) -> str:
    """Return the commands after which people can give the images of a cell their classes."""
    words = [
        "--model",
        typed_model(cell),
        "--attack",
        cell.attack.name,
        "--dataset",
        data,
        *samples,
    ]
    kept = ["--threat", cell.threat.text or "none", "--keep-images", "--out", "runs/to-label"]
    label = ["label", "runs/to-label", "--out", "label.html"]
    return f"{shlex.join(['invbench', 'evaluate', *words, *kept])} && {shlex.join(['invbench', *label])}"


def typed_model(cell: FinishedCell) -> str:
    """Return what the command line calls a model; the pattern of a reference if it was an object."""
    name = str(cell.model.card.get("name") or cell.model.name)  # the latter may be the user's label
    known = ":" in name or cell.model.card.get("summary")
    return name if known else OBJECT


def typed_data(cell: FinishedCell) -> str:
    """Return what the command line calls a data set; the pattern of a reference if it was an object."""
    name = cell.dataset.name.partition(" #")[0]  # the rest is the digest of the user's own data
    return name if ":" in name or name in DATASETS else OBJECT


def calibration(cell: FinishedCell) -> list[str]:
    """Return the words of the command that fits the thresholds of a model, without options of its reject option."""
    name, *rest = typed_model(cell).split(":")
    if "." not in name:
        return ["calibrate", name]  # on the images of its recipe
    return ["calibrate", ":".join([name, *rest[:1]]), "--dataset", OBJECT]
