"""Probes of what a model's gradient is: of the function that it computes (C31), and computed in one pass (C12)."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import CHECKS, Verdict
from robustbench_inv.evaluation.metering import answer
from robustbench_inv.tensors import flatten, margin, slopes_of

__all__ = ["check_dynamic", "check_slopes"]

DIRECTIONS = 64
"""C31: random directions along which a slope is measured."""

LEAST_COSINE = 0.9

STEP = {torch.float64: 1e-6}
"""C31: length of a step, in widths of the box, by dtype; 1e-3 in others."""


def check_slopes(probe: Probe) -> Verdict:
    """C31: do gradients agree with finite differences?

    The margin's slope along 64 random sign vectors, by central differences, against what the gradient says of
    them: the cosine of these two vectors, for each sample. A gradient that a model replaces by another (a
    straight-through estimate, a custom backward pass) or hides shows here; steps over a rounded input do as well.

    References:
        Carlini et al., On evaluating adversarial robustness, arXiv 1902.06705, section 4.4.
    """
    measured, said = _slopes(probe)
    known = (measured != 0).any(1) | (said != 0).any(1)
    if not known.any():
        reason = "The output does not change, and no gradient says that it does."
        return CHECKS["C31"].says(probe.model, "NA", None, reason)
    cosine = torch.cosine_similarity(measured[known], said[known], dim=1)
    median = float(cosine.median())
    evidence = (
        f"On {len(cosine)} samples the gradient and central differences along {DIRECTIONS} random directions have a "
        f"cosine of {median:.3f} in the median, {float(cosine.min()):.3f} at least."
    )
    return CHECKS["C31"].says(
        probe.model, "PASS" if median >= LEAST_COSINE else "WARN", median, evidence
    )


def check_dynamic(probe: Probe) -> Verdict:
    """C12: does the model take gradients while it answers?

    A defence that optimises at inference time is another function of its input than what one backward pass
    goes through; its loops cost more, and attacks through it need to be written for it.

    References:
        Croce and Hein, AutoAttack, flag for dynamic defenses.
    """
    with _CountGradients() as counter, torch.enable_grad():
        answer(probe.classifier, probe.batch.images, probe.noise)
    evidence = (
        f"One answer to {len(probe.batch)} samples took {counter.count} gradients inside the model."
    )
    return CHECKS["C12"].says(
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


def _slopes(probe: Probe) -> tuple[Tensor, Tensor]:
    """Return the margin's slopes along random directions, measured and by the gradient, (n, DIRECTIONS) each."""
    images, dtype = probe.batch.images, probe.classifier.dtype
    shape, step = tuple(images.shape[1:]), STEP.get(dtype, 1e-3) * probe.width
    gradient = flatten(_gradient(probe)).double()
    measured, said = [], []
    for number in range(DIRECTIONS):
        sign = 2.0 * probe.noise.named("probe/sign").integers(2, shape, step=number) - 1
        direction = sign.to(images)
        ahead, behind = (_margin(probe, images + s * step * direction) for s in (1, -1))
        measured.append((ahead - behind).double() / (2 * step))
        said.append((gradient * flatten(direction).double()).sum(1))
    return torch.stack(measured, 1), torch.stack(said, 1)


def _gradient(probe: Probe) -> Tensor:
    images = probe.batch.images.clone().requires_grad_(True)
    with torch.enable_grad():
        output = answer(probe.classifier, images, probe.noise)
        return torch.nan_to_num(slopes_of(margin(output.logits, probe.batch.labels), images))


@torch.no_grad()
def _margin(probe: Probe, images: Tensor) -> Tensor:
    return margin(answer(probe.classifier, images, probe.noise).logits, probe.batch.labels)
