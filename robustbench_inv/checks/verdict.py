"""Verdicts: what a validity check found, with its figures, and the list of checks there are."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Literal

__all__ = ["CHECKS", "Check", "Grade", "Scope", "Verdict", "format_ids", "grade"]

Grade = Literal["PASS", "WARN", "FAIL", "NA"]
"""``NA``: the check had nothing to look at, and its evidence says why."""

Scope = Literal["model", "cell", "run"]
"""What a verdict is about: one model, one cell (attack × model × threat × data set), or the whole run."""


@dataclass(frozen=True)
class Verdict:
    """What one check says about one subject.

    Args:
        id: stable id of the check, C1 … C38.
        title: what ought to hold.
        scope: what kind of thing ``subject`` names.
        subject: the model's name, or a cell's subject (``CellView.subject``).
        verdict: PASS, WARN, FAIL or NA.
        value: the number that was judged; None where there is none.
        rule: the limits, in words.
        evidence: one sentence with the figures.
    """

    id: str
    title: str
    scope: Scope
    subject: str
    verdict: Grade
    value: float | None
    rule: str
    evidence: str

    def to_json(self) -> dict[str, object]:
        """Return the mapping that checks.json holds; a value that is not finite becomes null."""
        value = self.value if self.value is not None and isfinite(self.value) else None
        return {**asdict(self), "value": value}


@dataclass(frozen=True)
class Check:
    """A rule that makes a robustness number trustworthy; it turns findings into verdicts.

    Example:
        >>> CHECKS["C23"].make_verdict("some cell", "FAIL", 1, "1 of 10 samples is missing.").verdict
        'FAIL'
    """

    id: str
    title: str
    scope: Scope
    rule: str

    def make_verdict(
        self, subject: str, verdict: Grade, value: float | None, evidence: str
    ) -> Verdict:
        """Return this check's verdict on a subject."""
        return Verdict(
            self.id, self.title, self.scope, subject, verdict, value, self.rule, evidence
        )


def grade(value: float, *, warn: float, fail: float = float("inf")) -> Grade:
    """Return FAIL above ``fail``, WARN above ``warn``, else PASS (a value that is not a number fails)."""
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


CHECKS: Mapping[str, Check] = {
    check.id: check
    for check in (
        Check(
            "C1",
            "accuracy does not rise with eps",
            "model",
            "WARN above 0.5 % of (sample, eps) pairs that hold although a smaller eps broke them",
        ),
        Check(
            "C2",
            "an unbounded attack reaches chance",
            "model",
            "FAIL if the 95 % interval of the accuracy left lies above 1 / classes",
        ),
        Check(
            "C3",
            "iterative attacks break what one step breaks",
            "model",
            "WARN if one step breaks any sample that iterations do not; FAIL above 1 % of samples",
        ),
        Check(
            "C4",
            "more steps and restarts break nothing more",
            "model",
            "WARN if twice the steps and restarts lower the accuracy by more than half the width of its 95 % interval",
        ),
        Check(
            "C5",
            "gradient attacks break what noise, queries and transfer break",
            "model",
            "WARN if attacks without the model's gradients lower the worst-case accuracy by more than 0.2 points; "
            "FAIL if the 95 % interval of that lies above",
        ),
        Check(
            "C6",
            "gradients exist, for each loss",
            "model",
            "WARN above 1 % of samples without a usable gradient for some loss; FAIL above 10 % for "
            "every loss",
        ),
        Check(
            "C7",
            "margins do not saturate cross-entropy",
            "model",
            "WARN above a median margin of 15 nats; FAIL if besides all gradient attacks use "
            "cross-entropy only. Outputs in [0, 1]: less than 1 % of a gradient gets through for 10 % "
            "(WARN) or half (FAIL) of the samples",
        ),
        Check(
            "C8",
            "neither a constant nor a factor in the logits changes the result",
            "model",
            "FAIL if PGD leaves another accuracy, by more than half the width of its 95 % interval, or if logits round "
            "away more than 1 % of the median margin; WARN if cross-entropy does, or above 0.1 %",
        ),
        Check(
            "C10",
            "the model returns logits, not probabilities",
            "model",
            "WARN if outputs are >= 0 and have the same sum for every input",
        ),
        Check(
            "C11",
            "an answer depends on its input alone",
            "model",
            "FAIL above 1e-4 of the largest logit between repeats, batch sizes or orders; "
            "WARN if stochastic by declaration",
        ),
        Check(
            "C12",
            "an answer is one pass through the network",
            "model",
            "WARN if the model takes gradients while it answers",
        ),
        Check(
            "C13",
            "known draws make a stochastic model no more robust",
            "model",
            "FAIL if PGD that knows the draws leaves more accuracy than PGD over fresh ones, by more than half the width "
            "of the 95 % interval",
        ),
        Check(
            "C14",
            "every shown input is checked again",
            "cell",
            "FAIL above 0.1 % of samples that do not replay, leave budget or bounds, or differ from "
            "their record",
        ),
        Check(
            "C15",
            "no success is lost on the way",
            "cell",
            "WARN if the attack returned a failure after it had met a success",
        ),
        Check(
            "C16",
            "what is shown differs from the clean input",
            "cell",
            "FAIL if an unchanged input counts as broken, or more than half of what holds inside a budget is shown "
            "unchanged; WARN above 10 %",
        ),
        Check(
            "C17",
            "bounds, data and eps share one scale",
            "model",
            "FAIL if data leave the model's bounds, the boxes differ, or every eps exceeds the box; "
            "WARN if some eps does",
        ),
        Check(
            "C19",
            "the steps can cross the ball",
            "cell",
            "WARN if all steps together go less than 2 eps",
        ),
        Check(
            "C22",
            "denominators are explicit and add up",
            "cell",
            "FAIL if any record contradicts itself or a rate cannot be recomputed",
        ),
        Check(
            "C23",
            "every requested sample has one record",
            "cell",
            "FAIL if a sample is missing, doubled or was not asked for",
        ),
        Check(
            "C24",
            "thresholds were frozen before the attacks, and fitted on other inputs",
            "model",
            "FAIL if cells of one model have different thresholds, or an attacked sample took part in fitting them",
        ),
        Check(
            "C25",
            "false rejection of clean inputs is small, and known at 1, 2 and 5 %",
            "model",
            "WARN above 10 % of clean inputs, FAIL above 50 % (lower end of the 95 % interval), or without scores",
        ),
        Check(
            "C26",
            "who attacks the rejection as well is not detected more often",
            "model",
            "FAIL if the adaptive attack fools less than the same attack without knowledge of the rejection; WARN "
            "if there is none",
        ),
        Check(
            "C27",
            "detection is told of all attacked inputs and of the wrong ones",
            "cell",
            "WARN if fewer than 10 % of attacked inputs are wrong: the share of these that is rejected says little",
        ),
        Check(
            "C28",
            "rejection of small perturbations is known",
            "cell",
            "information: inputs that were right and are rejected within half of the largest eps",
        ),
        Check(
            "C29",
            "noise and inputs of other data are rejected",
            "model",
            "WARN above 5 % of noise, distal inputs or inputs of another data set accepted",
        ),
        Check(
            "C30",
            "crashes stay visible",
            "cell",
            "WARN if the attack crashed on any sample; FAIL above 1 % of samples",
        ),
        Check(
            "C31",
            "gradients are those of the function that the model computes",
            "model",
            "WARN below a median cosine of 0.9 between the gradient and finite differences",
        ),
        Check(
            "C34",
            "whoever says that a class has changed is named, is not the model, and errs seldom",
            "cell",
            "FAIL if a success names no oracle or the model judges itself; WARN if the oracle's own error is "
            "unknown or above 10 %",
        ),
        Check(
            "C35",
            "agreement with the oracle stands beside agreement with the old label",
            "cell",
            "WARN if the oracle names no class for more than half of the attacked samples; FAIL if for none",
        ),
        Check(
            "C32",
            "metamers re-encode to the logits they were given",
            "cell",
            "WARN if for any sample the inverse, or a re-encoded metamer's logits, are off by more than 1e-3; "
            "FAIL above 0.1 % of samples",
        ),
        Check(
            "C33",
            "ReLU preimages have the activations of their inputs",
            "cell",
            "WARN if for any sample an activation is off by more than 1e-3, a unit changed sides or the solver ended early; "
            "FAIL if activations or sides are wrong for more than 0.1 % of samples",
        ),
    )
}
"""Every check by id."""
