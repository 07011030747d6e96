"""Checks by attacks on the model: monotone in eps (C1), unbounded (C2), converged (C4), logit scale (C8), fixed noise (C13).

But for C1 and C8, a model with a reject option must accept the misclassified inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_inv.arguments import format_eps
from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import Grade, Verdict, grade
from robustbench_inv.models.protocol import Classifier, Stochastic, classify
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.summary import Rate
from robustbench_inv.tensors import Output, finite_size, margin
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import Goal, Misclassify, MisclassifyAccepted
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "EPS_FRACTIONS",
    "broken_samples",
    "check_convergence",
    "check_fixed_noise",
    "check_logit_scale",
    "check_monotone_attack",
    "check_unbounded",
    "find_inputs",
]


EPS_FRACTIONS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""The linf eps of sweeps, relative to the width of the box."""

TUNED_PGD = PGD(steps=40, restarts=1, rel_step=1.0, decay=True, loss="scaled-ce", random_start=True)
"""The attack of the preset ``pgd-tuned``, written out since the checks' limits were measured with it."""

MISCLASSIFY_ACCEPTED = MisclassifyAccepted()
"""The goal of the checks but C1 and C8; of a model without a reject option it is misclassification."""

SHORT_PGD = PGD(steps=10, rel_step=0.25, decay=False, loss="margin")
"""The attack of sweeps (C1), and of the choice of an eps."""

UNBOUNDED_PGD = PGD(steps=100, rel_step=0.02, decay=False, loss="margin", random_start=False)
"""The attack of C2."""


def check_unbounded(probe: Probe) -> Verdict:
    """C2: is the accuracy above chance under PGD whose ball contains the whole box?

    100 steps of 1/50 of eps (the width of the box) on the margin loss, from the clean image. A random start
    would add noise, which alone breaks classifiers whose gradients are useless. Samples that are misclassified
    without an attack count as broken.

    References:
        Carlini et al., On evaluating adversarial robustness, arXiv 1902.06705, section 4.2; Pintor et al.,
        Indicators of attack failure, NeurIPS 2022: unconstrained attack failure.
    """
    broken = broken_samples(UNBOUNDED_PGD, probe, probe.width, probe.rng)
    left, chance = Rate(int((~broken).sum()), len(broken)), 1 / probe.classifier.num_classes
    evidence = (
        f"PGD of 100 steps with linf eps {probe.width:g}, the width of the box, leaves {left.value:.1%} of "
        f"{left.trials} samples robust (95 % interval from {left.low:.1%}); chance is {chance:.1%}."
    )
    return CHECKS["C2"].make_verdict(
        probe.model, grade(left.low, warn=1, fail=chance), left.value, evidence
    )


def check_monotone_attack(probe: Probe) -> Verdict:
    """C1: is a sample that one eps breaks robust at a larger eps?

    The larger ball contains the smaller one, so such a sample shows that the attack missed it. The probe
    runs independent attacks (10 steps, own random starts) and doubles eps until two runs in a row break
    every sample. In a sweep of an evaluation an adversarial example counts at every larger eps, so its
    accuracies never rise.

    Rejection is not counted, unlike in the other checks: ten steps do not get past an honest detector at a large eps.
    Of ``mnist-gbz`` that rejects by likelihood they miss 5 of 80 pairs; 40 short steps miss none, in four times the time.
    """
    runs: list[Tensor] = []
    for index, fraction in enumerate(EPS_FRACTIONS):
        if len(runs) > 1 and all(run.all() for run in runs[-2:]):
            break
        runs.append(
            broken_samples(
                SHORT_PGD,
                probe,
                fraction * probe.width,
                probe.rng.named(f"probe/{index}"),
                Misclassify(),
            )
        )
    broken = torch.stack(runs, 1)
    missed = (broken.int().cummax(1).values.bool() & ~broken)[:, 1:]
    share = float(missed.double().mean())
    eps = [fraction * probe.width for fraction in EPS_FRACTIONS[: len(runs)]]
    surviving = ", ".join(f"{1 - float(run.double().mean()):.0%}" for run in runs)
    evidence = (
        f"Independent PGD at linf eps {format_eps(eps[0])} to {format_eps(eps[-1])} leaves {surviving} of {len(broken)} samples "
        f"robust; {int(missed.sum())} of {missed.numel()} (sample, eps) pairs are robust although a smaller eps "
        f"broke them ({share:.2%})."
    )
    return CHECKS["C1"].make_verdict(probe.model, grade(share, warn=0.005), share, evidence)


def broken_samples(
    attack: PGD, probe: Probe, eps: float, rng: SampleRNG, goal: Goal = MISCLASSIFY_ACCEPTED
) -> Tensor:
    """Return (n,): does the adversarial input reach the goal, under noise that the search did not use?"""
    output = classify(probe.classifier, find_inputs(attack, probe, eps, rng, goal), rng)
    wrong = output.decision != probe.batch.labels
    if output.accepted is None or goal != MISCLASSIFY_ACCEPTED:
        return wrong
    return wrong & output.accepted


def find_inputs(
    attack: PGD, probe: Probe, eps: float, rng: SampleRNG, goal: Goal = MISCLASSIFY_ACCEPTED
) -> Tensor:
    """Return an attack's inputs (n, …) in a linf ball."""
    threat = ThreatModel(LpBall("linf", eps), goal)
    meter = CountingModel(probe.classifier, probe.batch, threat, rng)
    return attack.run(meter, probe.batch, threat, rng)


RESOLUTION = 1e-3
"""C8: spacing of floating-point numbers at the largest logit, relative to the median margin."""

HIDDEN = 0.5
"""C8: share of the broken samples that cross-entropy must miss until the scale of the logits hides the gradients."""


def check_convergence(probe: Probe) -> Verdict:
    """C4: do twice the steps and restarts break further samples?

    The attack of ``pgd-tuned``, and the same with twice the steps and twice the restarts, at an eps that some samples
    survive. It has converged if the accuracy differs by less than half the width of its interval.

    References:
        Carlini et al., On evaluating adversarial robustness, arXiv 1902.06705, section 5.2; Pintor et al.,
        Indicators of attack failure, NeurIPS 2022: incomplete optimisation.
    """
    eps = _half_broken_eps(probe)
    usual, more = TUNED_PGD, replace(TUNED_PGD, steps=2 * TUNED_PGD.steps, restarts=2)
    left, rest = _robust_rate(probe, usual, eps), _robust_rate(probe, more, eps)
    gap = left.value - rest.value
    evidence = (
        f"At linf eps {format_eps(eps)} PGD of {usual.steps} steps leaves {left.value:.1%} of {left.trials} samples "
        f"robust, PGD of {more.steps} steps and 2 restarts {rest.value:.1%}."
    )
    return CHECKS["C4"].make_verdict(probe.model, grade(gap, warn=_half_width(left)), gap, evidence)


def check_logit_scale(probe: Probe) -> Verdict:
    """C8: does the result of an attack change when a constant is subtracted from the logits, or when they are scaled?

    Neither changes a prediction. FAIL: the accuracy under the default loss changes by more than half the width of
    its interval, or plain cross-entropy misses more than half of the samples that the default loss breaks: the model
    seems robust to a usual attack since its gradients are hidden, as by defensive distillation. NOTE: the accuracy
    under cross-entropy changes otherwise.
    Logits that are large compared with their margins have lost digits of the margins by rounding.

    Rejection is left out: where a detector-aware search raises a score, it does not see the scale of the logits.
    """
    model = probe.classifier
    if isinstance(model, Stochastic):
        reason = "A stochastic model's logits are the logarithm of a mean of probabilities already."
        return CHECKS["C8"].make_verdict(probe.model, "NA", None, reason)
    logits = probe.query().logits
    eps = _breaking_eps(probe.with_classifier(_TransformedLogits.of(model, lambda z: z)))
    margins = margin(logits, probe.batch.labels).abs()
    known = margins[margins.isfinite()]  # infinite where all other classes are ruled out
    size = float(known.median().clamp_min(torch.finfo(logits.dtype).tiny)) if len(known) else 1.0
    spacing = torch.finfo(logits.dtype).eps * finite_size(logits) / size
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "as they are": lambda z: z,
        "without their maximum": lambda z: z - z.amax(1, keepdim=True).detach(),
        "over their median margin": lambda z: z / size,
    }
    left = {
        loss: [
            _robust_rate(
                probe.with_classifier(_TransformedLogits.of(model, form)),
                replace(TUNED_PGD, loss=loss),
                eps,
            )
            for form in forms.values()
        ]
        for loss in ("scaled-ce", "ce")
    }
    gaps = {loss: _range_of_rates(rates) for loss, rates in left.items()}
    allowed = _half_width(left["scaled-ce"][0])
    surviving = {loss: rates[0].value for loss, rates in left.items()}
    missed = (surviving["ce"] - surviving["scaled-ce"]) / max(1 - surviving["scaled-ce"], 1e-9)
    wrong = gaps["scaled-ce"] > allowed or missed > HIDDEN or spacing > 10 * RESOLUTION
    verdict: Grade = "NOTE" if gaps["ce"] > allowed else "PASS"
    verdict = "FAIL" if wrong else "WARN" if spacing > RESOLUTION else verdict
    listed = "; ".join(
        f"{loss} {', '.join(f'{rate.value:.1%}' for rate in rates)}" for loss, rates in left.items()
    )
    evidence = (
        f"At linf eps {format_eps(eps)} PGD leaves robust, on logits {', '.join(forms)}: {listed}. Neighbouring numbers at the "
        f"largest logit lie {spacing:.1g} of the median margin apart."
    )
    return CHECKS["C8"].make_verdict(probe.model, verdict, max(*gaps.values(), missed), evidence)


def check_fixed_noise(probe: Probe) -> Verdict:
    """C13: is a stochastic model at most as robust against an attacker that has its noise?

    With the noise fixed, the attacked model is deterministic, and the attack can only become stronger. If it
    becomes weaker, its gradients are of little use, and so are those of an attack that averages over noise.

    References:
        Carlini et al., On evaluating adversarial robustness, arXiv 1902.06705, section 5.3.
    """
    model = probe.classifier
    if not isinstance(model, Stochastic) or model.fixed_noise:
        reason = "The output depends on no fresh noise."
        return CHECKS["C13"].make_verdict(probe.model, "NA", None, reason)
    eps = _breaking_eps(probe)
    fresh = _robust_rate(probe, TUNED_PGD, eps)
    surviving = _robust_rate(probe.with_classifier(_FixedNoise(model)), TUNED_PGD, eps)
    gap = surviving.value - fresh.value
    evidence = (
        f"At linf eps {format_eps(eps)} PGD leaves {fresh.value:.1%} of {fresh.trials} samples robust under fresh noise and "
        f"{surviving.value:.1%} under noise that is given to the attack."
    )
    verdict = grade(gap, warn=_half_width(fresh), fail=_half_width(fresh))
    return CHECKS["C13"].make_verdict(probe.model, verdict, gap, evidence)


@dataclass(frozen=True)
class _TransformedLogits:
    """A classifier whose logits are transformed without a change of the prediction; it accepts every input."""

    classifier: Classifier
    form: Callable[[Tensor], Tensor]
    num_classes: int
    bounds: tuple[float, float]
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Classifier, form: Callable[[Tensor], Tensor]) -> "_TransformedLogits":
        return cls(model, form, model.num_classes, model.bounds, model.dtype)

    def __call__(self, images: Tensor) -> Output:
        return Output(self.form(self.classifier(images).logits))


@dataclass(frozen=True)
class _FixedNoise:
    """A stochastic classifier that uses the same noise for a sample in every forward pass."""

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


def _short_sweep(probe: Probe) -> dict[float, float]:
    """Return the robust accuracy under ten steps at each linf eps, up to the first where it is at most half."""
    left: dict[float, float] = {}
    for eps in (fraction * probe.width for fraction in EPS_FRACTIONS):
        left[eps] = _robust_rate(probe, SHORT_PGD, eps).value
        if left[eps] <= 0.5:
            break
    return left


def _breaking_eps(probe: Probe) -> float:
    """Return the smallest eps that breaks most samples; a weaker attack differs there."""
    return max(_short_sweep(probe))


def _half_broken_eps(probe: Probe) -> float:
    """Return the eps that breaks a share of samples closest to one half; of equal ones the largest that some survive."""
    left = _short_sweep(probe)
    return min(left, key=lambda eps: (abs(left[eps] - 0.5), not left[eps], -eps))


def _robust_rate(probe: Probe, attack: PGD, eps: float) -> Rate:
    """Return the robust accuracy under an attack."""
    broken = broken_samples(attack, probe, eps, probe.rng)
    return Rate(int((~broken).sum()), len(broken))


def _half_width(rate: Rate) -> float:
    return (rate.high - rate.low) / 2


def _range_of_rates(rates: list[Rate]) -> float:
    return max(rate.value for rate in rates) - min(rate.value for rate in rates)
