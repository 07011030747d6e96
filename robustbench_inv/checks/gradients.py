"""Checks of a model's gradients: usable (C6), saturated (C7), one forward pass (C12), correct (C31)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustbench_inv.attacks.losses import LOSSES, losses_for
from robustbench_inv.checks.attack_strength import (
    MISCLASSIFY_ACCEPTED,
    UNBOUNDED_PGD,
    find_inputs,
)
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.model_outputs import squashed_scores
from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import Grade, Verdict, grade
from robustbench_inv.models.protocol import query_model
from robustbench_inv.tensors import Output, flatten, margin, per_sample_gradient, subtract
from robustbench_inv.threat.goals import Misclassify

__all__ = ["check_gradient_accuracy", "check_gradients", "check_saturation", "check_single_pass"]


SATURATION_MARGIN = 15.0
"""Median margin, in nats, above which cross-entropy is no loss to rely on in float32."""

MIN_PASSED_GRADIENT = 0.01
"""Share of a gradient that must get through a sigmoid, of 0.25 at most, at the true class and at the runner-up."""

NONE_CORRECT = "No probed sample is classified correctly."


def check_gradients(probe: Probe) -> Verdict:
    """C6: on how many samples is the input gradient zero, not finite or missing, for each loss?

    Samples that are misclassified without an attack are not counted: no attack changes them, and DLR is
    constant on some. One usable loss is enough to attack the model (WARN). If no loss is usable on a tenth of
    the samples, gradient attacks are not conclusive (FAIL).

    A search meets the reject option where the prediction is wrong already. Its gradient is that of the
    detector-aware loss at the first misclassified inputs that an unaware search finds, if they are rejected. No other
    loss can replace it, so it fails on its own.

    References:
        Croce and Hein, AutoAttack, flag for zero gradients; Pintor et al., Indicators of attack failure,
        NeurIPS 2022: unavailable gradients.
    """
    right = probe.query().decision == probe.batch.labels
    if not right.any():
        return CHECKS["C6"].make_verdict(probe.model, "NA", None, NONE_CORRECT)
    batch = probe.batch[right]
    images = batch.images.clone().requires_grad_(True)
    with torch.enable_grad():
        output = query_model(probe.classifier, images, probe.rng.rows(right))
        useless = {
            name: _unusable(loss(output, batch.labels), images) for name, loss in LOSSES.items()
        }
    shares = {name: float(rows.double().mean()) for name, rows in useless.items()}
    best = min(shares.values())
    if output.accepted is not None:
        searched = right & (right.cumsum(0) <= SEARCHED_SAMPLES)
        stuck = _stuck_at_rejection(probe.of_rows(searched))
        shares["past the rejection"] = stuck / int(searched.sum())
        best = max(best, shares["past the rejection"])
    worst = max(shares.values())
    verdict = "FAIL" if best > 0.1 else grade(worst, warn=0.01)
    listed = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    cut = "" if output.logits.requires_grad else "; the output is not connected to the input"
    evidence = f"Of {len(images)} correct samples without a usable gradient: {listed}{cut}."
    return CHECKS["C6"].make_verdict(probe.model, verdict, worst, evidence)


SEARCHED_SAMPLES = 32
"""C6: samples of which an oblivious search looks for rejected inputs, which takes up to 200 passes of each."""


def _stuck_at_rejection(probe: Probe) -> int:
    """Return the number of samples that are misclassified and rejected, without a gradient towards acceptance."""
    refused = _refused(probe)
    if refused is None:
        return 0
    images = refused.batch.images.clone().requires_grad_(True)
    (loss,) = losses_for("margin", MISCLASSIFY_ACCEPTED)
    with torch.enable_grad():
        output = query_model(probe.classifier, images, refused.rng)
        return int(_unusable(loss(output, refused.batch.labels), images).sum())


def _refused(probe: Probe) -> Probe | None:
    """Return the probe of the misclassified and rejected inputs that a search unaware of rejection ends at, if any."""
    if probe.query().accepted is None:
        return None
    images = find_inputs(UNBOUNDED_PGD, probe, probe.width, probe.rng, Misclassify())
    found = replace(probe, batch=replace(probe.batch, images=images))
    output = found.query()
    assert output.accepted is not None
    rows = (output.decision != probe.batch.labels) & ~output.accepted
    return found.of_rows(rows) if rows.any() else None


def check_saturation(probe: Probe) -> Verdict:
    """C7: how large are the margins of the correctly classified samples?

    The softmax gradient of the true logit, p_y − 1, is exactly 0 in float32 from about 17 nats on, and
    every component from about 104. Margin, DLR and scaled cross-entropy losses are unaffected, so the probe
    alone gives NOTE; ``escalate_saturation`` turns it into FAIL when no attack of a plan uses such a loss.

    Probabilities, multiples of them and other outputs in [0, 1] hide their margins: a sigmoid (or softmax) passes
    on s (1 − s) of a gradient. No loss helps there; attack the outputs before it.
    """
    logits, labels = probe.query().logits, probe.batch.labels
    margins = -margin(logits, labels)
    right = (margins > 0) & margins.isfinite()  # infinite where all other classes are ruled out
    if not right.any():
        return CHECKS["C7"].make_verdict(probe.model, "NA", None, NONE_CORRECT)
    if (scores := squashed_scores(logits)) is not None:
        return _check_squashed(probe.model, scores[right], labels[right])
    low, median, high = (float(margins[right].double().quantile(q)) for q in (0.05, 0.5, 0.95))
    true, every = _zero_gradient_shares(logits[right].float(), labels[right])
    evidence = (
        f"Margins of {int(right.sum())} correct samples: median {median:.1f} nats (5 to 95 %: {low:.1f} to "
        f"{high:.1f}); in float32 the cross-entropy gradient is exactly 0 at the true logit for {true:.1%} "
        f"of them, at every logit for {every:.1%}."
    )
    saturated: Grade = "NOTE" if median > SATURATION_MARGIN else "PASS"
    return CHECKS["C7"].make_verdict(probe.model, saturated, median, evidence)


def _check_squashed(model: str, scores: Tensor, labels: Tensor) -> Verdict:
    """C7 for scores (n, C) in [0, 1] of n correct samples."""
    true = scores.gather(1, labels[:, None])
    other = scores.scatter(1, labels[:, None], -1.0).amax(1, keepdim=True)
    pair = torch.cat([true, other], 1).double()
    passed = (pair * (1 - pair)).amin(1)  # an attack must lower the one and raise the other
    flat, median = float((passed < MIN_PASSED_GRADIENT).double().mean()), float(passed.median())
    evidence = (
        f"All outputs are those of a sigmoid or softmax, but for a factor, which passes on s(1 − s) of a gradient: at the "
        f"flatter of true class and runner-up, {median:.1g} in the median of {len(scores)} correct samples (0.25 "
        f"at most), less than {MIN_PASSED_GRADIENT:g} for {flat:.1%} of them. Attack the outputs before it."
    )
    return CHECKS["C7"].make_verdict(model, grade(flat, warn=0.1, fail=0.5), flat, evidence)


def _unusable(values: Tensor, images: Tensor) -> Tensor:
    """Return (n,): is the gradient of a sample's loss (n,) zero or not finite?"""
    size = flatten(per_sample_gradient(values, images, retain_graph=True)).abs().amax(1)
    return ~(size.isfinite() & (size > 0))


def _zero_gradient_shares(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the shares of samples whose softmax gradient is 0 at the true logit, and at every logit."""
    gradient = logits.softmax(1).scatter_add(
        1, labels[:, None], torch.full_like(logits[:, :1], -1.0).expand(len(logits), 1)
    )
    true = gradient.gather(1, labels[:, None])[:, 0] == 0
    return float(true.float().mean()), float((gradient == 0).all(1).float().mean())


DIRECTIONS = 64
"""C31: number of random directions of the finite differences."""

MIN_COSINE = 0.9

DIFFERENCE_STEP = {torch.float64: 1e-6}
"""C31: length of a step, in widths of the box, by dtype; 1e-3 in others."""

HALF_STEP = 0.02
"""C31: length of a step if the model computes in 16 bits. With 1e-3 the median cosine of mnist-cnn in bfloat16 is 0.42, with
0.01 and 0.03 it is 0.97, and that of float32 with 0.03 as well."""


def check_gradient_accuracy(probe: Probe) -> Verdict:
    """C31: do gradients agree with finite differences?

    For each sample, the cosine between the margin's directional derivatives along 64 random sign vectors by
    central differences and by the gradient. It is low if a model replaces its gradient (a straight-through
    estimate, a custom backward pass), hides it, or rounds its input. Of a model with a reject option the same for the
    score, where an input is misclassified and rejected (C6).

    References:
        Carlini et al., On evaluating adversarial robustness, arXiv 1902.06705, section 4.4.
    """
    labels = probe.batch.labels
    found = {"": _cosines(probe, lambda output: margin(output.logits, labels))}
    refused = _refused(probe)
    if refused is not None:
        decision = refused.query().decision
        found[" of the score of rejected inputs"] = _cosines(
            refused, partial(_acceptance, decision=decision)
        )
    medians = {what: float(each.median()) for what, each in found.items() if len(each)}
    if not medians:
        reason = "The output does not change, and its gradient is zero."
        return CHECKS["C31"].make_verdict(probe.model, "NA", None, reason)
    evidence = " ".join(
        f"On {len(found[what])} samples the gradient{what} and central differences along {DIRECTIONS} random directions "
        f"have a cosine of {median:.3f} in the median, {float(found[what].min()):.3f} at least."
        for what, median in medians.items()
    )
    worst = min(medians.values())
    return CHECKS["C31"].make_verdict(
        probe.model, "PASS" if worst >= MIN_COSINE else "WARN", worst, evidence
    )


def _acceptance(output: Output, decision: Tensor) -> Tensor:
    """Return what a search raises to be accepted as some classes, (n,): clearance, score, or 0 without either."""
    if output.clearance is not None:
        return output.clearance.gather(1, decision[:, None])[:, 0]
    return torch.zeros_like(output.logits[:, 0]) if output.score is None else output.score


def check_single_pass(probe: Probe) -> Verdict:
    """C12: does the model take gradients in its forward pass?

    One backward pass does not differentiate through a defence that optimises at inference time. It needs an
    attack of its own, and its loops cost more.

    References:
        Croce and Hein, AutoAttack, flag for dynamic defenses.
    """
    with _CountGradients() as counter, torch.enable_grad():
        query_model(probe.classifier, probe.batch.images, probe.rng)
    evidence = f"One forward pass of {len(probe.batch)} samples took {counter.count} gradients inside the model."
    return CHECKS["C12"].make_verdict(
        probe.model, "WARN" if counter.count else "PASS", counter.count, evidence
    )


class _CountGradients(TorchFunctionMode):
    """Counts calls of autograd."""

    count = 0

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - any function of torch
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        self.count += func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        return func(*args, **(kwargs or {}))


def _cosines(probe: Probe, value: Callable[[Output], Tensor]) -> Tensor:
    """Return the cosines between the directional derivatives of a value by differences and by the gradient.

    Args:
        probe: n samples.
        value: returns (n,) from the model's output.

    Returns:
        (m,) of the m samples on which one of both is not zero, and the differences are finite.
    """
    measured, computed = _directional_derivatives(probe, value)
    known = ((measured != 0) | (computed != 0)).any(1) & measured.isfinite().all(1)
    return torch.cosine_similarity(measured[known], computed[known], dim=1)


def _directional_derivatives(
    probe: Probe, value: Callable[[Output], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return a value's directional derivatives by differences and by the gradient, (n, DIRECTIONS) each."""
    images, dtype = probe.batch.images, probe.classifier.dtype
    relative = HALF_STEP if probe.half_precision else DIFFERENCE_STEP.get(dtype, 1e-3)
    shape, step = tuple(images.shape[1:]), relative * probe.width
    gradient = flatten(_gradient(probe, value)).double()
    measured, computed = [], []
    for number in range(DIRECTIONS):
        sign = 2.0 * probe.rng.named("probe/sign").integers(2, shape, step=number) - 1
        direction = sign.to(images)
        ahead, behind = (_value(probe, value, images + s * step * direction) for s in (1, -1))
        measured.append(subtract(ahead, behind).double() / (2 * step))
        computed.append((gradient * flatten(direction).double()).sum(1))
    return torch.stack(measured, 1), torch.stack(computed, 1)


def _gradient(probe: Probe, value: Callable[[Output], Tensor]) -> Tensor:
    images = probe.batch.images.clone().requires_grad_(True)
    with torch.enable_grad():
        output = query_model(probe.classifier, images, probe.rng)
        return torch.nan_to_num(per_sample_gradient(value(output), images))


@torch.no_grad()
def _value(probe: Probe, value: Callable[[Output], Tensor], images: Tensor) -> Tensor:
    return value(query_model(probe.classifier, images, probe.rng))
