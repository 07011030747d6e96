"""A threat model: budget × goal × access."""

from dataclasses import dataclass, replace
from typing import Literal

from robustbench_inv.errors import BadParameter
from robustbench_inv.threat.budgets import Budget, LpBall, Unbounded
from robustbench_inv.threat.goals import Goal, Misclassify

__all__ = ["Access", "ThreatModel"]

Access = Literal["white-box", "score", "decision", "transfer"]


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker may show, wants and knows.

    Args:
        budget: the inputs that may be shown; of a sweep, the largest.
        goal: when an input is a success.
        access: what the attacker sees of the model.
        sweep: ascending eps of a sweep in the budget's norm; empty for a single budget.
    """

    budget: Budget
    goal: Goal = Misclassify()  # noqa: RUF009 - frozen, holds no state
    access: Access = "white-box"
    sweep: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if list(self.sweep) != sorted(set(self.sweep)):
            raise BadParameter("unusable sweep", got=self.sweep, expected="ascending, distinct eps")

    @property
    def norm(self) -> str:
        """The norm that distances are measured in."""
        return self.budget.norm

    @property
    def bounded(self) -> bool:
        """False when every input is allowed."""
        return not isinstance(self.budget, Unbounded)

    def at(self, eps: float) -> "ThreatModel":
        """Return the threat of a single eps of the sweep."""
        return replace(self, budget=LpBall(self.norm, eps), sweep=())

    def wanting(self, goal: Goal) -> "ThreatModel":
        """Return the same threat with another goal."""
        return replace(self, goal=goal)
