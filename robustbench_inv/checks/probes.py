"""The probes of a model, in the order of their ids, each with the number of samples it looks at."""

from collections.abc import Callable
from typing import Protocol

from robustbench_inv.checks.attack_power import check_monotone_attack, check_unbounded
from robustbench_inv.checks.data import check_bounds
from robustbench_inv.checks.gradients import check_gradients, check_saturation
from robustbench_inv.checks.outputs import check_determinism, check_logits
from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import Verdict
from robustbench_inv.models.protocol import Classifier

__all__ = ["ATTACKED", "PROBED", "PROBES", "ProbedModel"]

PROBED = 100
"""Samples that a probe looks at, at most."""

ATTACKED = 64
"""Samples that a probe attacks, at most: they cost hundreds of passes each."""

PROBES: tuple[tuple[str, int, Callable[[Probe], Verdict]], ...] = (
    ("C1", ATTACKED, check_monotone_attack),
    ("C2", ATTACKED, check_unbounded),
    ("C6", PROBED, check_gradients),
    ("C7", PROBED, check_saturation),
    ("C10", PROBED, check_logits),
    ("C11", PROBED, check_determinism),
    ("C17", PROBED, check_bounds),
)
"""Id of the check, number of samples, probe."""


class ProbedModel(Protocol):
    """A loaded model: its name and what answers."""

    @property
    def name(self) -> str: ...

    @property
    def classifier(self) -> Classifier: ...
