"""The probes of a model, in the order of their ids, each with the number of samples it looks at."""

from collections.abc import Callable
from typing import Protocol

from robustbench_inv.checks.attack_power import check_monotone_attack, check_unbounded
from robustbench_inv.checks.convergence import (
    check_convergence,
    check_held_draws,
    check_logit_scale,
)
from robustbench_inv.checks.data import check_bounds
from robustbench_inv.checks.gradients import check_gradients, check_saturation
from robustbench_inv.checks.outputs import check_determinism, check_logits
from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.slopes import check_dynamic, check_slopes
from robustbench_inv.checks.verdict import Verdict
from robustbench_inv.models.protocol import Classifier

__all__ = ["ATTACKED", "DEEP_PROBES", "PROBED", "PROBES", "ProbedModel"]

PROBED = 100
"""Samples that a probe looks at, at most."""

ATTACKED = 64
"""Samples that a probe attacks, at most: they cost hundreds of passes each."""

DIFFERENTIATED = 20
"""Samples whose gradient is compared with finite differences."""

PROBES: tuple[tuple[str, int, Callable[[Probe], Verdict]], ...] = (
    ("C1", ATTACKED, check_monotone_attack),
    ("C2", ATTACKED, check_unbounded),
    ("C6", PROBED, check_gradients),
    ("C7", PROBED, check_saturation),
    ("C10", PROBED, check_logits),
    ("C11", PROBED, check_determinism),
    ("C12", PROBED, check_dynamic),
    ("C17", PROBED, check_bounds),
)
"""Of every evaluation: id of the check, number of samples, probe."""

DEEP_PROBES: tuple[tuple[str, int, Callable[[Probe], Verdict]], ...] = (
    ("C4", ATTACKED, check_convergence),
    ("C8", ATTACKED, check_logit_scale),
    ("C13", ATTACKED, check_held_draws),
    ("C31", DIFFERENTIATED, check_slopes),
)
"""Besides, of an evaluation that asks for them (suite ``diagnostics``): hundreds of passes for each sample."""


class ProbedModel(Protocol):
    """A loaded model: its name and what answers."""

    @property
    def name(self) -> str: ...

    @property
    def classifier(self) -> Classifier: ...
