"""Losses that an attack climbs: one value for each sample, larger the nearer the goal."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from robustbench_inv.attacks.protocol import Loss
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.tensors import (
    Output,
    acceptance_margin,
    accepted_margin,
    class_margins,
    margin,
    mask_true_class,
)
from robustbench_inv.threat.goals import (
    Accept,
    Goal,
    KeepDecision,
    KeepLogits,
    MisclassifyAccepted,
    Target,
)

__all__ = [
    "LOSSES",
    "check_losses",
    "cross_entropy",
    "difference_of_logits_ratio",
    "log_odds_against",
    "logit_margin",
    "losses_for",
    "scaled_cross_entropy",
    "targeted_logits_ratio",
    "targeted_loss",
]

SCALED_MARGIN = 4.0
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
    known = [_loss_named(name) for name in names.split("+")]
    if most is not None and len(known) > most:
        raise BadParameter("too many losses", got=names, expected=f"at most {most}")


def losses_for(names: str, goal: Goal) -> tuple[Loss, ...]:
    """Return the losses that lead to a goal.

    Args:
        names: names from ``LOSSES``, joined by ``+``; restarts take them in turn.
        goal: what the attacker wants: a misclassification, one that is accepted, or a certain class.

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
    return tuple(_goal_loss(_loss_named(name), goal) for name in names.split("+"))


def targeted_loss(name: str, targets: Tensor, goal: Goal) -> Loss:
    """Return the loss that leads to a misclassification as a certain class of each sample.

    Args:
        name: one of ``LOSSES``.
        targets: (n,) classes, of the n samples that the loss will be asked about.
        goal: must the class be accepted besides?
    """
    return partial(_targeted_at, _loss_named(name), targets, isinstance(goal, MisclassifyAccepted))


def cross_entropy(output: Output, labels: Tensor) -> Tensor:
    """Return −log softmax(z)_y as softplus(log Σ_{j≠y} exp(z_j − z_y)), (n,).

    This form keeps its relative precision when the model is sure: the usual one has an exactly zero
    gradient of the true logit from a margin of 18 nats on in float32, this one from 87 (check C7).
    """
    return softplus(log_odds_against(output, labels))


def log_odds_against(output: Output, labels: Tensor) -> Tensor:
    """Return log Σ_{j≠y} exp(z_j − z_y), the log-odds against the true class, (n,).

    It ranks inputs as cross-entropy does and has the same direction of steepest ascent, and saturates nowhere:
    softmax outputs of a margin of 104 nats are 0 and 1 in float32, and all alike.
    """
    return torch.logsumexp(_logit_gaps(output, labels), 1)


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
    return gap / _at_least_eps(top[:, 0] - top[:, 2])


def scaled_cross_entropy(output: Output, labels: Tensor) -> Tensor:
    """Return the cross-entropy of 4 z / |margin|, each sample's own margin, held constant, (n,).

    Logits of any scale are compared at one temperature, at which the softmax is sure and not saturated.
    """
    ahead = _logit_gaps(output, labels)
    scale = _at_least_eps(ahead.detach().amax(1).abs()) / SCALED_MARGIN
    return softplus(torch.logsumexp(ahead / scale[:, None], 1))


def targeted_logits_ratio(output: Output, labels: Tensor, targets: Tensor) -> Tensor:
    """Return (z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2), (n,); undivided for fewer than four classes.

    Args:
        output: of the model.
        labels: (n,) true classes y.
        targets: (n,) classes t to be reached.

    References:
        Croce and Hein, 2020, equation 7.
    """
    logits = output.logits
    gap = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
    if logits.shape[1] < 4:
        return gap
    top = logits.topk(4).values
    return gap / _at_least_eps(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "dlr": difference_of_logits_ratio,
    "log-odds": log_odds_against,
    "margin": logit_margin,
    "scaled-ce": scaled_cross_entropy,
}
"""The losses by name."""


def _loss_named(name: str) -> Loss:
    if name not in LOSSES:
        raise BadParameter("unknown loss", got=name, expected="one of " + ", ".join(LOSSES))
    return LOSSES[name]


def _goal_loss(loss: Loss, goal: Goal) -> Loss:
    if isinstance(goal, Accept):
        return _acceptance_loss
    if isinstance(goal, MisclassifyAccepted):
        return partial(_loss_or_clearance, loss)
    if not isinstance(goal, Target):
        return loss
    return goal.margin if loss is logit_margin else partial(_targeted, loss, goal)


def _loss_or_clearance(loss: Loss, output: Output, labels: Tensor) -> Tensor:
    """Return the loss, or the clearance of the class that is nearest to a success where rejection is all that is left.

    Which of the two keeps min(lead, clearance) down is the one to climb. They are of different scales, which is
    without effect on attacks that follow the direction of each sample's gradient.
    """
    if output.clearance is None:
        return _loss_or_score(loss(output, labels), output, output.decision != labels)
    if loss is logit_margin:
        return accepted_margin(output, labels)
    lead = class_margins(output.logits)
    worth = torch.minimum(lead, output.clearance).scatter(1, labels[:, None], float("-inf"))
    best = worth.argmax(1, keepdim=True)
    clearance, lead = output.clearance.gather(1, best)[:, 0], lead.gather(1, best)[:, 0]
    return torch.where(clearance < lead, clearance, loss(output, labels))


def _acceptance_loss(output: Output, _labels: Tensor) -> Tensor:
    """Return what leads to acceptance, whatever the class; the score where the threshold is unknown."""
    climbable = output.clearance is None and output.accepted is not None
    return output.score if climbable and output.score is not None else acceptance_margin(output)


def _loss_or_score(values: Tensor, output: Output, wanted: Tensor) -> Tensor:
    """Return the loss, or where the wanted decision is rejected at an unknown threshold, 0 with the score's gradient."""
    if output.accepted is None or output.score is None:
        return values
    refused = wanted & ~output.accepted
    return torch.where(refused, output.score - output.score.detach(), values)


def _targeted(loss: Loss, goal: Target, output: Output, labels: Tensor) -> Tensor:
    """Return minus the loss of each sample's target, or what is known of its acceptance where that is all that is left."""
    targets = goal.classes(labels, output.logits.shape[1])
    return _targeted_at(loss, targets, goal.accepted, output, labels)


def _targeted_at(
    loss: Loss, targets: Tensor, accepted: bool, output: Output, labels: Tensor
) -> Tensor:
    if loss is difference_of_logits_ratio:
        value = targeted_logits_ratio(output, labels, targets)
    else:
        value = -loss(output, targets)
    return _targeted_loss_or_clearance(value, output, targets) if accepted else value


def _targeted_loss_or_clearance(value: Tensor, output: Output, targets: Tensor) -> Tensor:
    if output.clearance is None:
        return _loss_or_score(value, output, output.decision == targets)
    columns = targets[:, None]
    clearance = output.clearance.gather(1, columns)[:, 0]
    return torch.where(
        clearance < class_margins(output.logits).gather(1, columns)[:, 0], clearance, value
    )


def _logit_gaps(output: Output, labels: Tensor) -> Tensor:
    """Return by how much each class is ahead of the true one, (n, classes), −inf for that itself."""
    true = output.logits.gather(1, labels[:, None])
    return mask_true_class(output.logits, labels) - true


def _at_least_eps(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).eps)
