"""Goals: when an allowed input is a success of the attacker."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_inv.errors import BadParameter
from robustbench_inv.tensors import (
    Output,
    acceptance_margin,
    accepted_margin,
    flatten,
    logit_change,
    margin,
    rank_rejected,
)

__all__ = [
    "Accept",
    "Goal",
    "GoalInputs",
    "KeepDecision",
    "KeepLogits",
    "Misclassify",
    "MisclassifyAccepted",
    "Target",
    "describe_goal",
]

UNKNOWN = -1
"""The oracle's label where it has none."""


@dataclass(frozen=True)
class GoalInputs:
    """The inputs of a goal's evaluation, for a batch of n samples.

    Args:
        clean: (n, …) clean inputs.
        adversarial: (n, …) candidates.
        labels: (n,) true classes of the clean inputs.
        before: the model's output for the clean inputs.
        after: the model's output for the candidates.
        oracle: (n,) true classes of the candidates, −1 where unknown; None without an oracle.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    before: Output
    after: Output
    oracle: Tensor | None = None


@runtime_checkable
class Goal(Protocol):
    """The attacker's goal.

    ``margin`` guides a search: (n,) positive only where the *output* meets the goal.
    ``reached`` decides success, and may use the oracle's labels as well.
    """

    @property
    def name(self) -> str: ...

    def margin(self, output: Output, labels: Tensor) -> Tensor: ...

    def reached(self, evidence: GoalInputs) -> Tensor: ...


@dataclass(frozen=True)
class Misclassify:
    """The prediction differs from the label; with ``same_class`` the oracle must still give the label."""

    same_class: bool = False
    name: str = "misclassify"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return margin(output.logits, labels)

    def reached(self, evidence: GoalInputs) -> Tensor:
        wrong = evidence.after.decision != evidence.labels
        if not self.same_class or evidence.oracle is None:
            return wrong
        return wrong & (evidence.oracle == evidence.labels)


@dataclass(frozen=True)
class Target:
    """The prediction is a target class, which is not the true class.

    Args:
        label: the target class of all samples; None if ``offset`` is given.
        offset: the target is the true class plus this, modulo the number C of classes, >= 1; 1 to C − 1 give all others.
        confidence: margin of the target's logit over all others, >= 0.
        accepted: whether the model must accept the input as well.
    """

    label: int | None = None
    offset: int | None = None
    confidence: float = 0.0
    accepted: bool = False
    name: str = "target"

    def __post_init__(self) -> None:
        if (self.label is None) == (self.offset is None):
            raise BadParameter(
                "a target is one class, or one for each sample",
                got=f"label {self.label}, offset {self.offset}",
                expected="label=K or offset=J",
            )
        if self.offset is not None and self.offset < 1:
            raise BadParameter("unusable offset", got=self.offset, expected=">= 1")
        if not 0 <= self.confidence < float("inf"):
            raise BadParameter("unusable confidence", got=self.confidence, expected=">= 0")

    def classes(self, labels: Tensor, count: int) -> Tensor:
        """Return the target class of each sample, (n,).

        Args:
            labels: (n,) true classes.
            count: C, the number of classes.

        Example:
            >>> Target(offset=2).classes(torch.tensor([0, 9]), 10).tolist()
            [2, 1]
        """
        if self.label is not None:
            return torch.full_like(labels, self.label)
        return (labels + (self.offset or 0)) % count

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        targets = self.classes(labels, output.logits.shape[1])
        margins = -margin(output.logits, targets) - self.confidence
        if not self.accepted or output.accepted is None:
            return margins
        if output.clearance is None:
            return rank_rejected(margins, output)
        return torch.minimum(margins, output.clearance.gather(1, targets[:, None])[:, 0])

    def reached(self, evidence: GoalInputs) -> Tensor:
        return self.output_reaches(evidence.after, evidence.labels)

    def output_reaches(self, output: Output, labels: Tensor) -> Tensor:
        """Return whether an output meets the goal, (n,)."""
        targets = self.classes(labels, output.logits.shape[1])
        margins = -margin(output.logits, targets)
        reached = (output.decision == targets) & (targets != labels) & (margins >= self.confidence)
        return (
            reached & output.accepted if self.accepted and output.accepted is not None else reached
        )


@dataclass(frozen=True)
class MisclassifyAccepted:
    """The prediction is wrong **and** the model accepts the input."""

    name: str = "misclassify-accepted"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return accepted_margin(output, labels)

    def reached(self, evidence: GoalInputs) -> Tensor:
        wrong = evidence.after.decision != evidence.labels
        return wrong if evidence.after.accepted is None else wrong & evidence.after.accepted


@dataclass(frozen=True)
class Accept:
    """The model accepts the input, whatever its prediction; noise and other data must not reach this goal."""

    name: str = "accept"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return acceptance_margin(output)

    def reached(self, evidence: GoalInputs) -> Tensor:
        accepted = evidence.after.accepted
        return torch.ones_like(evidence.labels, dtype=torch.bool) if accepted is None else accepted


@dataclass(frozen=True)
class KeepDecision:
    """The prediction stays while the oracle's class changes (Behrmann, thesis, definition 6.3).

    A model with a reject option that rejects the changed input does not keep its prediction, so it does not fail.
    """

    name: str = "keep-decision"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return -margin(output.logits, labels)

    def reached(self, evidence: GoalInputs) -> Tensor:
        return evidence.after.predicts(evidence.before.decision) & _oracle_changed(evidence)


@dataclass(frozen=True)
class KeepLogits:
    """All logits stay within ``tolerance`` while the oracle's class changes, and the model accepts the changed input."""

    tolerance: float = 1e-3
    name: str = "keep-logits"

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise BadParameter("unusable tolerance", got=self.tolerance, expected=">= 0")

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return -margin(output.logits, labels)

    def reached(self, evidence: GoalInputs) -> Tensor:
        moved = logit_change(evidence.after.logits, evidence.before.logits)
        kept = moved <= self.tolerance
        if evidence.after.accepted is not None:
            kept = kept & evidence.after.accepted
        return kept & _oracle_changed(evidence)


def describe_goal(goal: Goal, content: Callable[[object], object]) -> tuple[str, dict[str, Any]]:
    """Return name and parameters of a goal as ``catalogue.threats.load_goal`` takes them.

    The parameters of a user's own goal are its identity.

    Args:
        goal: the goal.
        content: returns the identity of a user's own goal (``catalogue.fingerprint.content``).

    Example:
        >>> describe_goal(Target(label=3, accepted=True), repr)
        ('target-accepted', {'label': 3, 'confidence': 0.0})
    """
    if type(goal) is Misclassify:
        return ("misclassify-same-class" if goal.same_class else "misclassify"), {}
    if type(goal) is Target:
        known = {"label": goal.label, "offset": goal.offset, "confidence": goal.confidence}
        given = {key: value for key, value in known.items() if value is not None}
        return ("target-accepted" if goal.accepted else "target"), given
    if type(goal) is KeepLogits:
        return "keep-logits", {"tolerance": goal.tolerance}
    plain = {
        MisclassifyAccepted: "misclassify-accepted",
        Accept: "accept",
        KeepDecision: "keep-decision",
    }
    for kind, name in plain.items():
        if type(goal) is kind:
            return name, {}
    return goal.name, {"content": content(goal)}


def _oracle_changed(evidence: GoalInputs) -> Tensor:
    """Return whether an input has another class than its label, (n,); an unchanged one has not, by any oracle."""
    if evidence.oracle is None:
        return torch.zeros_like(evidence.labels, dtype=torch.bool)
    moved = flatten(evidence.adversarial != evidence.clean).any(1)
    return moved & (evidence.oracle != UNKNOWN) & (evidence.oracle != evidence.labels)
