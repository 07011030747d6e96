"""Probes of what should change nothing: more effort (C4), other logits of the same decisions (C8), held draws (C13)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.checks.attack_power import FRACTIONS, broken_by
from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import CHECKS, Grade, Verdict, grade
from robustbench_inv.models.protocol import Classifier, Stochastic
from robustbench_inv.results.summary import Rate
from robustbench_inv.tensors import Output, margin

__all__ = ["check_convergence", "check_held_draws", "check_logit_scale"]

RESOLUTION = 1e-3
"""C8: spacing of floating-point numbers at the largest logit, relative to the median margin."""


def check_convergence(probe: Probe) -> Verdict:
    """C4: does twice the effort break what the attack did not?

    The default PGD, and the same with twice the steps and twice the restarts, at an eps that some samples
    survive. It has converged if the accuracy differs by less than half the width of its interval.

    References:
        Carlini et al., On evaluating adversarial robustness, arXiv 1902.06705, section 5.2; Pintor et al.,
        Indicators of attack failure, NeurIPS 2022: incomplete optimisation.
    """
    eps = _even_eps(probe)
    usual = PGD()
    more = PGD(steps=2 * usual.steps, restarts=2)
    left, rest = _left(probe, usual, eps), _left(probe, more, eps)
    gap = left.value - rest.value
    evidence = (
        f"At linf eps {eps:.3g} PGD of {usual.steps} steps left {left.value:.1%} of {left.trials} samples right, of "
        f"{more.steps} steps and 2 restarts {rest.value:.1%}."
    )
    return CHECKS["C4"].says(probe.model, grade(gap, warn=_half_width(left)), gap, evidence)


def check_logit_scale(probe: Probe) -> Verdict:
    """C8: do attacks fare otherwise when a constant is taken off the logits, or when they are scaled?

    Neither changes a decision. What the default loss leaves must agree to half the width of its interval (FAIL);
    where plain cross-entropy disagrees, its numbers on this model are those of its scale (WARN). Logits that are
    large for their margins have lost digits of them, which no attack finds again.
    """
    model = probe.classifier
    if isinstance(model, Stochastic):
        reason = "A stochastic model's logits are the logarithm of a mean of probabilities already."
        return CHECKS["C8"].says(probe.model, "NA", None, reason)
    logits, eps = probe.ask().logits, _breaking_eps(probe)
    margins = margin(logits, probe.batch.labels).abs()
    size = float(margins.median().clamp_min(torch.finfo(logits.dtype).tiny))
    spacing = float(torch.finfo(logits.dtype).eps * logits.abs().max()) / size
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "as they are": lambda z: z,
        "without their maximum": lambda z: z - z.amax(1, keepdim=True).detach(),
        "over their median margin": lambda z: z / size,
    }
    left = {
        loss: [
            _left(probe.answered_by(_Mapped(model, form)), PGD(loss=loss), eps)
            for form in forms.values()
        ]
        for loss in ("scaled-ce", "ce")
    }
    gaps = {loss: _gap(rates) for loss, rates in left.items()}
    allowed = _half_width(left["scaled-ce"][0])
    wrong = gaps["scaled-ce"] > allowed or spacing > 10 * RESOLUTION
    doubtful = gaps["ce"] > allowed or spacing > RESOLUTION
    verdict: Grade = "FAIL" if wrong else "WARN" if doubtful else "PASS"
    told = "; ".join(
        f"{loss} {', '.join(f'{rate.value:.1%}' for rate in rates)}" for loss, rates in left.items()
    )
    evidence = (
        f"At linf eps {eps:.3g} PGD leaves right, on logits {', '.join(forms)}: {told}. Neighbouring numbers at the "
        f"largest logit lie {spacing:.1g} of the median margin apart."
    )
    return CHECKS["C8"].says(probe.model, verdict, gaps["scaled-ce"], evidence)


def check_held_draws(probe: Probe) -> Verdict:
    """C13: is a stochastic model, when its draws are known, at most as robust as when they are fresh?

    Who knows the draws attacks a deterministic model, and can but do better. If that attack does worse,
    its gradients are of little use, and neither are those of the attack that averages over draws.

    References:
        Carlini et al., On evaluating adversarial robustness, arXiv 1902.06705, section 5.3.
    """
    model = probe.classifier
    if not isinstance(model, Stochastic) or model.fixed_noise:
        reason = "The model's answers depend on no fresh draws."
        return CHECKS["C13"].says(probe.model, "NA", None, reason)
    eps = _breaking_eps(probe)
    fresh = _left(probe, PGD(), eps)
    held = _left(probe.answered_by(_Held(model)), PGD(), eps)
    gap = held.value - fresh.value
    evidence = (
        f"At linf eps {eps:.3g} PGD left {fresh.value:.1%} of {fresh.trials} samples right under fresh draws and "
        f"{held.value:.1%} under draws that it knows."
    )
    verdict = grade(gap, warn=_half_width(fresh), fail=_half_width(fresh))
    return CHECKS["C13"].says(probe.model, verdict, gap, evidence)


@dataclass(frozen=True)
class _Mapped:
    """A classifier whose logits are replaced by others of the same decision."""

    classifier: Classifier
    form: Callable[[Tensor], Tensor]

    @property
    def num_classes(self) -> int:
        return self.classifier.num_classes

    @property
    def bounds(self) -> tuple[float, float]:
        return self.classifier.bounds

    @property
    def dtype(self) -> torch.dtype:
        return self.classifier.dtype

    def __call__(self, images: Tensor) -> Output:
        return Output(self.form(self.classifier(images).logits))


@dataclass(frozen=True)
class _Held:
    """A stochastic classifier that gives a sample the same draws in every answer."""

    classifier: Stochastic

    fixed_noise = True

    @property
    def draws(self) -> int:
        return self.classifier.draws

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.classifier.latent_shape

    @property
    def num_classes(self) -> int:
        return self._itself.num_classes

    @property
    def bounds(self) -> tuple[float, float]:
        return self._itself.bounds

    @property
    def dtype(self) -> torch.dtype:
        return self._itself.dtype

    @property
    def _itself(self) -> Classifier:
        assert isinstance(self.classifier, Classifier)
        return self.classifier

    def __call__(self, images: Tensor) -> Output:
        return self._itself(images)

    def respond(self, images: Tensor, latent: Tensor) -> Output:
        return self.classifier.respond(images, latent)


def _sweep(probe: Probe) -> dict[float, float]:
    """Return what ten steps leave right at each linf eps, up to the first at which that is at most half."""
    brief = PGD(steps=10, rel_step=0.25, decay=False, loss="margin")
    left: dict[float, float] = {}
    for eps in (fraction * probe.width for fraction in FRACTIONS):
        left[eps] = _left(probe, brief, eps).value
        if left[eps] <= 0.5:
            break
    return left


def _breaking_eps(probe: Probe) -> float:
    """Return the least eps at which most samples fall: what a weaker attack leaves shows there."""
    return max(_sweep(probe))


def _even_eps(probe: Probe) -> float:
    """Return the eps at which nearest to half of the samples fall: more could; if in doubt, the largest some survive."""
    left = _sweep(probe)
    return min(left, key=lambda eps: (abs(left[eps] - 0.5), not left[eps], -eps))


def _left(probe: Probe, attack: PGD, eps: float) -> Rate:
    """Return how many samples are right on what the attack shows."""
    broken = broken_by(attack, probe, eps, probe.noise)
    return Rate(int((~broken).sum()), len(broken))


def _half_width(rate: Rate) -> float:
    return (rate.high - rate.low) / 2


def _gap(rates: list[Rate]) -> float:
    return max(rate.value for rate in rates) - min(rate.value for rate in rates)
