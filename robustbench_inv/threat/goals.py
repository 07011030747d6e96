"""Goals: when an allowed input is a success for the attacker."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_inv.tensors import Output, acceptance, accepted_margin, margin

__all__ = [
    "Accept",
    "Evidence",
    "Goal",
    "KeepDecision",
    "KeepLogits",
    "Misclassify",
    "MisclassifyAccepted",
    "Target",
]

UNKNOWN = -1
"""The oracle's answer where it has none."""


@dataclass(frozen=True)
class Evidence:
    """All that a goal may look at, for a batch of n samples.

    Args:
        clean: (n, …) clean inputs.
        adversarial: (n, …) proposed inputs.
        labels: (n,) true classes of the clean inputs.
        before: the model's output for the clean inputs.
        after: the model's output for the proposed ones.
        oracle: (n,) true classes of the proposed inputs, −1 where unknown; None without an oracle.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    before: Output
    after: Output
    oracle: Tensor | None = None


@runtime_checkable
class Goal(Protocol):
    """What the attacker wants.

    ``margin`` steers a search: (n,) positive only where the *output* is what the goal asks for.
    ``reached`` is the verdict, which may also ask the oracle.
    """

    @property
    def name(self) -> str: ...

    def margin(self, output: Output, labels: Tensor) -> Tensor: ...

    def reached(self, evidence: Evidence) -> Tensor: ...


@dataclass(frozen=True)
class Misclassify:
    """The decision differs from the label; with ``same_class`` the oracle must still say the label."""

    same_class: bool = False
    name: str = "misclassify"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return margin(output.logits, labels)

    def reached(self, evidence: Evidence) -> Tensor:
        wrong = evidence.after.decision != evidence.labels
        if not self.same_class or evidence.oracle is None:
            return wrong
        return wrong & (evidence.oracle == evidence.labels)


@dataclass(frozen=True)
class Target:
    """The decision is class ``label``, which is not the true one."""

    label: int
    name: str = "target"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return -margin(output.logits, torch.full_like(labels, self.label))

    def reached(self, evidence: Evidence) -> Tensor:
        return (evidence.after.decision == self.label) & (evidence.labels != self.label)


@dataclass(frozen=True)
class MisclassifyAccepted:
    """The decision is wrong **and** the model does not reject the input."""

    name: str = "misclassify-accepted"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return accepted_margin(output, labels)

    def reached(self, evidence: Evidence) -> Tensor:
        wrong = evidence.after.decision != evidence.labels
        return wrong if evidence.after.accepted is None else wrong & evidence.after.accepted


@dataclass(frozen=True)
class Accept:
    """The model accepts the input, whatever it takes it for: what noise and other data must not reach."""

    name: str = "accept"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return acceptance(output)

    def reached(self, evidence: Evidence) -> Tensor:
        accepted = evidence.after.accepted
        return torch.ones_like(evidence.labels, dtype=torch.bool) if accepted is None else accepted


@dataclass(frozen=True)
class KeepDecision:
    """The decision stays while the oracle's class changes (thesis, definition 6.3)."""

    name: str = "keep-decision"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return -margin(output.logits, labels)

    def reached(self, evidence: Evidence) -> Tensor:
        return (evidence.after.decision == evidence.before.decision) & _oracle_changed(evidence)


@dataclass(frozen=True)
class KeepLogits:
    """All logits stay within ``tolerance`` while the oracle's class changes."""

    tolerance: float = 1e-3
    name: str = "keep-logits"

    def margin(self, output: Output, labels: Tensor) -> Tensor:
        return -margin(output.logits, labels)

    def reached(self, evidence: Evidence) -> Tensor:
        moved = (evidence.after.logits - evidence.before.logits).abs().amax(1)
        return (moved <= self.tolerance) & _oracle_changed(evidence)


def _oracle_changed(evidence: Evidence) -> Tensor:
    if evidence.oracle is None:
        return torch.zeros_like(evidence.labels, dtype=torch.bool)
    return (evidence.oracle != UNKNOWN) & (evidence.oracle != evidence.labels)
