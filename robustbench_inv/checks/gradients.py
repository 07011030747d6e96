"""Probes of a model's gradients: C6 (they exist, for each loss) and C7 (the output is not saturated)."""

import torch
from torch import Tensor

from robustbench_inv.attacks.losses import LOSSES
from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import CHECKS, Verdict, grade
from robustbench_inv.evaluation.metering import answer
from robustbench_inv.tensors import flatten, margin, slopes_of

__all__ = ["check_gradients", "check_saturation"]

SATURATED = 15.0
"""Median margin, in nats, above which cross-entropy is no loss to rely on in float32."""

FLAT = 0.01
"""Share of a gradient that must get through a sigmoid, of 0.25 at most, at the true class and at the runner-up."""

NONE_RIGHT = "No probed sample is classified right."


def check_gradients(probe: Probe) -> Verdict:
    """C6: on how many samples is the gradient of the input zero, not finite or missing, for each loss?

    Samples that are wrong to begin with are left out: no attack touches them, and DLR is constant on some.
    A loss without a gradient is of no use to an attack. One usable loss is enough to attack the model
    (WARN); if no loss is usable on a tenth of the samples, gradient attacks say nothing about it (FAIL).

    References:
        Croce and Hein, AutoAttack, flag for zero gradients; Pintor et al., Indicators of attack failure,
        NeurIPS 2022: unavailable gradients.
    """
    right = probe.ask().decision == probe.batch.labels
    if not right.any():
        return CHECKS["C6"].says(probe.model, "NA", None, NONE_RIGHT)
    batch = probe.batch[right]
    images = batch.images.clone().requires_grad_(True)
    with torch.enable_grad():
        output = answer(probe.classifier, images, probe.noise.rows(right))
        useless = {
            name: _useless(loss(output, batch.labels), images) for name, loss in LOSSES.items()
        }
    shares = {name: float(rows.double().mean()) for name, rows in useless.items()}
    worst, best = max(shares.values()), min(shares.values())
    verdict = "FAIL" if best > 0.1 else grade(worst, warn=0.01)
    listed = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    cut = "" if output.logits.requires_grad else "; the output is not connected to the input"
    evidence = f"Of {len(images)} correct samples without a usable gradient: {listed}{cut}."
    return CHECKS["C6"].says(probe.model, verdict, worst, evidence)


def check_saturation(probe: Probe) -> Verdict:
    """C7: how large are the margins of the samples that are classified right?

    The softmax gradient of the true logit, p_y − 1, is exactly 0 in float32 from about 17 nats on, and
    every component from about 104. Attacks on margin, DLR or scaled cross-entropy do not mind, so that the
    probe alone gives WARN; ``escalate_saturation`` makes it FAIL when a plan has none of them.

    Outputs in [0, 1] hide their margins: a sigmoid (or softmax) has squashed them, and passes s (1 − s) of a
    gradient on. There no loss helps, and what the attack needs is the output before it.
    """
    logits, labels = probe.ask().logits, probe.batch.labels
    margins = -margin(logits, labels)
    right = margins > 0
    if not right.any():
        return CHECKS["C7"].says(probe.model, "NA", None, NONE_RIGHT)
    if logits.min() >= 0 and logits.max() <= 1:
        return _judge_squashed(probe.model, logits[right], labels[right])
    low, median, high = (float(margins[right].double().quantile(q)) for q in (0.05, 0.5, 0.95))
    true, every = _vanished(logits[right].float(), labels[right])
    evidence = (
        f"Margins of {int(right.sum())} correct samples: median {median:.1f} nats (5 to 95 %: {low:.1f} to "
        f"{high:.1f}); in float32 the cross-entropy gradient is exactly 0 at the true logit for {true:.1%} "
        f"of them, at every logit for {every:.1%}."
    )
    return CHECKS["C7"].says(probe.model, grade(median, warn=SATURATED), median, evidence)


def _judge_squashed(model: str, scores: Tensor, labels: Tensor) -> Verdict:
    """C7 for scores (n, C) in [0, 1] of n correct samples."""
    true = scores.gather(1, labels[:, None])
    other = scores.scatter(1, labels[:, None], -1.0).amax(1, keepdim=True)
    pair = torch.cat([true, other], 1).double()
    passed = (pair * (1 - pair)).amin(1)  # an attack must lower the one and raise the other
    flat, median = float((passed < FLAT).double().mean()), float(passed.median())
    evidence = (
        f"All outputs lie in [0, 1], as a sigmoid or softmax leaves them. It passes on s(1 − s) of a gradient: at the "
        f"flatter of true class and runner-up, {median:.1g} in the median of {len(scores)} correct samples (0.25 "
        f"where it is steepest), less than {FLAT:g} for {flat:.1%} of them. Attack what is before it."
    )
    return CHECKS["C7"].says(model, grade(flat, warn=0.1, fail=0.5), flat, evidence)


def _useless(values: Tensor, images: Tensor) -> Tensor:
    """Return (n,): does the loss (n,) of a sample give it no gradient to follow?"""
    size = flatten(slopes_of(values, images, again=True)).abs().amax(1)
    return ~(size.isfinite() & (size > 0))


def _vanished(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the shares of samples whose softmax gradient is 0 at the true logit, and at every logit."""
    slope = logits.softmax(1).scatter_add(
        1, labels[:, None], torch.full_like(logits[:, :1], -1.0).expand(len(logits), 1)
    )
    true = slope.gather(1, labels[:, None])[:, 0] == 0
    return float(true.float().mean()), float((slope == 0).all(1).float().mean())
