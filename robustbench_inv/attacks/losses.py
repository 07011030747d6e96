"""Losses that an attack climbs: one value for each sample, larger the nearer the goal."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from robustbench_inv.attacks.protocol import Loss
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.tensors import Output, margin
from robustbench_inv.threat.goals import Goal, KeepDecision, KeepLogits, Target

__all__ = [
    "LOSSES",
    "check_losses",
    "cross_entropy",
    "difference_of_logits_ratio",
    "logit_margin",
    "losses_for",
    "scaled_cross_entropy",
    "targeted_logits_ratio",
]

SHARPNESS = 4.0
"""Margin, in nats, to which ``scaled-ce`` scales logits. Robust accuracy in % after 40 PGD steps (see pgd.py) for
0.5, 1, 2, 4: std linf 0.08 41.8 40.6 39.6 39.8; adv linf 0.15 83.3 83.3 83.5 83.7; adv l2 1.8 55.0 53.7 52.4 51.8."""


def check_losses(names: str, most: int | None = None) -> None:
    """Raise unless a text names losses, before anything runs.

    Args:
        names: names from ``LOSSES``, joined by ``+``.
        most: how many there may be; None for any number.

    Raises:
        BadParameter: for an unknown name, or for too many.
    """
    known = [_known(name) for name in names.split("+")]
    if most is not None and len(known) > most:
        raise BadParameter("too many losses", got=names, expected=f"at most {most}")


def losses_for(names: str, goal: Goal) -> tuple[Loss, ...]:
    """Return the losses that lead to a goal.

    Args:
        names: names from ``LOSSES``, joined by ``+``; restarts take them in turn.
        goal: what the attacker wants: a misclassification, or a certain class.

    Raises:
        BadParameter: for an unknown name.
        CapabilityMismatch: for a goal that is not about the decision changing.

    Example:
        >>> from robustbench_inv.threat.goals import Misclassify
        >>> len(losses_for("margin+ce", Misclassify()))
        2
    """
    if isinstance(goal, KeepDecision | KeepLogits):
        raise CapabilityMismatch(
            "a loss-climbing attack seeks another decision",
            got=goal.name,
            expected="misclassify or target",
            remedy="use an invariance attack for this goal",
        )
    return tuple(_lead(_known(name), goal) for name in names.split("+"))


def cross_entropy(output: Output, labels: Tensor) -> Tensor:
    """Return −log softmax(z)_y as softplus(log Σ_{j≠y} exp(z_j − z_y)), (n,).

    This form keeps its relative precision when the model is sure: the usual one has an exactly zero
    gradient of the true logit from a margin of 18 nats on in float32, this one from 87 (check C7).
    """
    true = output.logits.gather(1, labels[:, None])
    others = output.logits.scatter(1, labels[:, None], float("-inf"))
    return softplus(torch.logsumexp(others - true, 1))


def logit_margin(output: Output, labels: Tensor) -> Tensor:
    """Return max_{j≠y} z_j − z_y, (n,).

    References:
        Carlini and Wagner, 2017, section IV.A, objective f_6 without its threshold.
    """
    return margin(output.logits, labels)


def difference_of_logits_ratio(output: Output, labels: Tensor) -> Tensor:
    """Return (max_{j≠y} z_j − z_y) / (z_(1) − z_(3)), (n,); the margin for two classes.

    References:
        Croce and Hein, 2020, equation 6.
    """
    gap = margin(output.logits, labels)
    if output.logits.shape[1] < 3:
        return gap
    top = output.logits.topk(3).values
    return gap / _positive(top[:, 0] - top[:, 2])


def scaled_cross_entropy(output: Output, labels: Tensor) -> Tensor:
    """Return the cross-entropy of 4 z / |margin|, each sample's own margin, held constant, (n,).

    Logits of any scale are compared at one temperature, at which the softmax is sure and not saturated.
    """
    scale = _positive(margin(output.logits.detach(), labels).abs()) / SHARPNESS
    return cross_entropy(Output(output.logits / scale[:, None]), labels)


def targeted_logits_ratio(output: Output, labels: Tensor, target: int) -> Tensor:
    """Return (z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2), (n,); undivided for fewer than four classes.

    References:
        Croce and Hein, 2020, equation 7.
    """
    logits = output.logits
    gap = logits[:, target] - logits.gather(1, labels[:, None])[:, 0]
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4).values
    return gap / _positive(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "dlr": difference_of_logits_ratio,
    "margin": logit_margin,
    "scaled-ce": scaled_cross_entropy,
}
"""The losses by name."""


def _known(name: str) -> Loss:
    if name not in LOSSES:
        raise BadParameter("unknown loss", got=name, expected="one of " + ", ".join(LOSSES))
    return LOSSES[name]


def _lead(loss: Loss, goal: Goal) -> Loss:
    if not isinstance(goal, Target):
        return loss
    if loss is difference_of_logits_ratio:
        return lambda output, labels: targeted_logits_ratio(output, labels, goal.label)
    return _toward(loss, goal.label)


def _toward(loss: Callable[[Output, Tensor], Tensor], target: int) -> Loss:
    return lambda output, labels: -loss(output, torch.full_like(labels, target))


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).eps)
