"""Losses that gradient attacks maximize: one value per sample."""

from collections.abc import Callable
from dataclasses import replace
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
    rejected_rank,
    subtract,
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
    "probability_margin",
    "scaled_cross_entropy",
    "targeted_logits_ratio",
    "targeted_loss",
]

SCALED_MARGIN = 4.0
"""Margin, in nats, to which ``scaled-ce`` scales logits. Robust accuracy in % after 40 PGD steps (see pgd.py) for
0.5, 1, 2, 4: std linf 0.08 41.8 40.6 39.6 39.8; adv linf 0.15 83.3 83.3 83.5 83.7; adv l2 1.8 55.0 53.7 52.4 51.8."""


def check_losses(names: str, most: int | None = None) -> None:
    """Raise unless a text names losses.

    Args:
        names: names from ``LOSSES``, joined by ``+``.
        most: maximal number of losses; None for any number.

    Raises:
        BadParameter: for an unknown name, or for too many names.
    """
    known = [_loss_named(name) for name in names.split("+")]
    if most is not None and len(known) > most:
        raise BadParameter("too many losses", got=names, expected=f"at most {most}")


def losses_for(names: str, goal: Goal) -> tuple[Loss, ...]:
    """Return the losses for a goal.

    Args:
        names: names from ``LOSSES``, joined by ``+``; restarts use them in turn.
        goal: a misclassification, an accepted misclassification, a target class, or acceptance.

    Raises:
        BadParameter: for an unknown name.
        CapabilityMismatch: for an invariance goal.

    Example:
        >>> from robustbench_inv.threat.goals import Misclassify
        >>> len(losses_for("margin+ce", Misclassify()))
        2
    """
    if isinstance(goal, KeepDecision | KeepLogits):
        raise CapabilityMismatch(
            "a gradient attack changes the prediction",
            got=goal.name,
            expected="misclassify or target",
            remedy="use an invariance attack for this goal",
        )
    return tuple(_goal_loss(_loss_named(name), goal) for name in names.split("+"))


def targeted_loss(name: str, targets: Tensor, goal: Goal) -> Loss:
    """Return the loss for a misclassification as a given class of each sample.

    Args:
        name: one of ``LOSSES``.
        targets: (n,) target classes of the n samples that the loss is evaluated on.
        goal: decides whether the model must accept the input as well.
    """
    return partial(_targeted_at, _loss_named(name), targets, isinstance(goal, MisclassifyAccepted))


def cross_entropy(output: Output, labels: Tensor) -> Tensor:
    """Return −log softmax(z)_y as softplus(log Σ_{j≠y} exp(z_j − z_y)), (n,).

    This form keeps its relative precision for confident models. In float32 the gradient of the usual form with respect
    to the true logit is exactly zero from a margin of 18 nats on, that of this form from 87 nats (check C7).
    """
    return softplus(log_odds_against(output, labels))


def log_odds_against(output: Output, labels: Tensor) -> Tensor:
    """Return log Σ_{j≠y} exp(z_j − z_y), the log-odds against the true class, (n,).

    It ranks inputs as cross-entropy does, has the same direction of steepest ascent, and never saturates. Softmax
    outputs are exactly 0 and 1 in float32 from a margin of 104 nats on.
    """
    return _if_finite(
        lambda finite: torch.logsumexp(_logit_gaps(finite, labels), 1),
        output,
        lambda logits: margin(logits, labels),
    )


def logit_margin(output: Output, labels: Tensor) -> Tensor:
    """Return max_{j≠y} z_j − z_y, (n,).

    References:
        Carlini and Wagner, 2017, section IV.A, objective f_6 without its threshold.
    """
    return margin(output.logits, labels)


def probability_margin(output: Output, labels: Tensor) -> Tensor:
    """Return max_{j≠y} p_j − p_y of the softmax outputs p, (n,), from −1 to 1.

    Its gradient is that of the logit margin, weighted by how undecided the model is: it vanishes where a softmax output is
    1 in float32.

    References:
        Xie, Zheng, Wei, Wang and Ma, Towards million-scale adversarial robustness evaluation with stronger individual
        attacks, arXiv 2411.15210: the probability margin loss of PMA.
    """
    return _if_finite(
        lambda finite: margin(finite.logits.softmax(1), labels),
        output,
        lambda logits: margin(logits, labels),
    )


def difference_of_logits_ratio(output: Output, labels: Tensor) -> Tensor:
    """Return (max_{j≠y} z_j − z_y) / (z_(1) − z_(3)), (n,); the margin for two classes that are not ruled out.

    References:
        Croce and Hein, 2020, equation 6.
    """
    if output.logits.shape[1] < 3:
        return margin(output.logits, labels)

    def ratio(finite: Output) -> Tensor:
        first, _, third = finite.logits.topk(3).values.unbind(1)
        return margin(finite.logits, labels) / _spread(first, third, third)

    return _if_finite(ratio, output, lambda logits: margin(logits, labels))


def scaled_cross_entropy(output: Output, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the logits 4 z / |margin|, (n,), without gradient through the margin.

    The scaling makes the loss independent of the scale of the logits, and keeps the softmax from saturating.
    """

    def scaled(finite: Output) -> Tensor:
        ahead = _logit_gaps(finite, labels)
        scale = _at_least_eps(ahead.detach().amax(1).abs()) / SCALED_MARGIN
        return torch.logsumexp(ahead / scale[:, None], 1)

    return softplus(_if_finite(scaled, output, lambda logits: margin(logits, labels)))


def targeted_logits_ratio(output: Output, labels: Tensor, targets: Tensor) -> Tensor:
    """Return (z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2), (n,); undivided for fewer than four classes that are not ruled out.

    Args:
        output: of the model.
        labels: (n,) true classes y.
        targets: (n,) target classes t.

    References:
        Croce and Hein, 2020, equation 7.
    """

    def gap(logits: Tensor) -> Tensor:
        pair = logits.gather(1, torch.stack([targets, labels], 1))
        return subtract(pair[:, 0], pair[:, 1])

    if output.logits.shape[1] < 4:
        return gap(output.logits)

    def ratio(finite: Output) -> Tensor:
        first, _, third, fourth = finite.logits.topk(4).values.unbind(1)
        return gap(finite.logits) / _spread(first, (third + fourth) / 2, fourth)

    return _if_finite(ratio, output, gap)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "dlr": difference_of_logits_ratio,
    "log-odds": log_odds_against,
    "margin": logit_margin,
    "probability-margin": probability_margin,
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
    return partial(_target_margin, goal) if loss is logit_margin else partial(_targeted, loss, goal)


def _loss_or_clearance(loss: Loss, output: Output, labels: Tensor) -> Tensor:
    """Return the loss, or the clearance of the best other class where only its rejection remains to be overcome.

    The goal needs min(margin, clearance) > 0, so the smaller of the two is maximized. Their scales differ, which does not
    affect attacks that use the direction of each sample's gradient.
    """
    if output.clearance is None:
        return _loss_or_score(loss(output, labels), output, output.decision != labels)
    if loss is logit_margin:
        return accepted_margin(output, labels)
    margins = class_margins(output.logits)
    limits = torch.minimum(margins, output.clearance).scatter(1, labels[:, None], float("-inf"))
    best = limits.argmax(1, keepdim=True)
    clearance, margins = output.clearance.gather(1, best)[:, 0], margins.gather(1, best)[:, 0]
    return torch.where(clearance < margins, clearance, loss(output, labels))


def _acceptance_loss(output: Output, _labels: Tensor) -> Tensor:
    """Return the margin of acceptance as any class, or the score if the model does not reveal its threshold."""
    has_score = output.clearance is None and output.accepted is not None
    return output.score if has_score and output.score is not None else acceptance_margin(output)


def _loss_or_score(values: Tensor, output: Output, wanted: Tensor) -> Tensor:
    """Return the loss, but the rank of the score, with the score's gradient, where the wanted prediction is rejected."""
    if output.accepted is None or output.score is None:
        return values
    ranks = rejected_rank(output) + (output.score - output.score.detach()).nan_to_num()
    return torch.where(wanted & ~output.accepted, ranks, values)


def _target_margin(goal: Target, output: Output, labels: Tensor) -> Tensor:
    """Return the goal's margin, with the score's gradient where the target class is rejected without a known clearance."""
    values = goal.margin(output, labels)
    if not goal.accepted or output.clearance is not None:
        return values
    wanted = output.decision == goal.classes(labels, output.logits.shape[1])
    return _loss_or_score(values, output, wanted)


def _targeted(loss: Loss, goal: Target, output: Output, labels: Tensor) -> Tensor:
    """Return minus the loss of each sample's target class, or its clearance where only rejection remains."""
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
    """Return the logit of each class minus that of the true class, (n, classes), −inf for the true class."""
    true = output.logits.gather(1, labels[:, None])
    return mask_true_class(output.logits, labels) - true


def _if_finite(
    loss: Callable[[Output], Tensor], output: Output, lead: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return a loss (n,), but its lead, without a gradient, where that is infinite: one side of a difference is ruled out.

    Args:
        loss: of an output in which no sample's lead is infinite; single logits may be −inf.
        output: of the model.
        lead: returns the difference (n,) of the loss from logits (n, classes).
    """
    if output.logits.isfinite().all():
        return loss(output)
    certain = lead(output.logits.detach())
    rows = certain.isinf()
    logits = output.logits.masked_fill(rows[:, None], 0)
    return torch.where(rows, certain, loss(replace(output, logits=logits)))


def _spread(first: Tensor, other: Tensor, last: Tensor) -> Tensor:
    """Return first − other, (n,), at least eps; 1 where the last class that it takes is ruled out."""
    return _at_least_eps((first - other).where(last > -torch.inf, 1))


def _at_least_eps(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).eps)
