"""Probes by attacks whose result is known beforehand: C2 (without bounds) and C1 (along a sweep)."""

import torch
from torch import Tensor

from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import CHECKS, Verdict, grade
from robustbench_inv.evaluation.metering import Meter, judge
from robustbench_inv.randomness import Noise
from robustbench_inv.results.summary import Rate
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["FRACTIONS", "broken_by", "check_monotone_attack", "check_unbounded"]

FRACTIONS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""The linf eps of sweeps, relative to the width of the box."""


def check_unbounded(probe: Probe) -> Verdict:
    """C2: does PGD whose ball holds the whole box leave more accuracy than guessing would?

    100 steps of 1/50 of eps, eps the width of the box, on the margin, from the clean image: noise alone,
    which a random start would add, breaks classifiers whose gradients are useless. Samples that are wrong
    to begin with count as broken.

    References:
        Carlini et al., On evaluating adversarial robustness, arXiv 1902.06705, section 4.2; Pintor et al.,
        Indicators of attack failure, NeurIPS 2022: unconstrained attack failure.
    """
    attack = PGD(steps=100, rel_step=0.02, decay=False, loss="margin", random_start=False)
    broken = broken_by(attack, probe, probe.width, probe.noise)
    left, chance = Rate(int((~broken).sum()), len(broken)), 1 / probe.classifier.num_classes
    evidence = (
        f"PGD of 100 steps with linf eps {probe.width:g}, the width of the box, left {left.value:.1%} of "
        f"{left.trials} samples right (95 % interval from {left.low:.1%}); chance is {chance:.1%}."
    )
    return CHECKS["C2"].says(
        probe.model, grade(left.low, warn=1, fail=chance), left.value, evidence
    )


def check_monotone_attack(probe: Probe) -> Verdict:
    """C1: does a sample that fell at one eps hold at a larger one?

    It cannot, as the larger ball holds the smaller: what independent attacks (10 steps, their own random
    starts, nothing shared) miss shows how far such attacks can be trusted. An evaluation's sweep shares its
    successes upward, so that its own accuracies never rise. The probe doubles eps until two runs in a row
    have broken everything: beyond, steps that are coarse for the model say nothing about its robustness.
    """
    attack = PGD(steps=10, rel_step=0.25, decay=False, loss="margin")
    runs: list[Tensor] = []
    for index, fraction in enumerate(FRACTIONS):
        if len(runs) > 1 and all(run.all() for run in runs[-2:]):
            break
        runs.append(
            broken_by(attack, probe, fraction * probe.width, probe.noise.named(f"probe/{index}"))
        )
    broken = torch.stack(runs, 1)
    missed = (broken.int().cummax(1).values.bool() & ~broken)[:, 1:]
    share = float(missed.double().mean())
    eps = [fraction * probe.width for fraction in FRACTIONS[: len(runs)]]
    held = ", ".join(f"{1 - float(run.double().mean()):.0%}" for run in runs)
    evidence = (
        f"Independent PGD at linf eps {eps[0]:.3g} to {eps[-1]:.3g} left {held} of {len(broken)} samples "
        f"right; {int(missed.sum())} of {missed.numel()} (sample, eps) pairs hold although a smaller eps "
        f"broke them ({share:.2%})."
    )
    return CHECKS["C1"].says(probe.model, grade(share, warn=0.005), share, evidence)


def broken_by(attack: PGD, probe: Probe, eps: float, noise: Noise) -> Tensor:
    """Return (n,): is the decision on what the attack shows wrong, under draws it has not seen?"""
    threat = ThreatModel(LpBall("linf", eps))
    meter = Meter(probe.classifier, probe.batch, threat, noise)
    shown = attack.run(meter, probe.batch, threat, noise)
    return judge(probe.classifier, shown, noise).decision != probe.batch.labels
