"""A threat model: budget × goal × access."""

from dataclasses import dataclass, replace
from typing import Literal

from robustbench_inv.errors import BadParameter
from robustbench_inv.threat.budgets import Budget, LpBall, Unbounded
from robustbench_inv.threat.goals import Goal, Misclassify

__all__ = ["GOAL", "GUIDE", "ORACLE", "SUBSTITUTE", "Access", "ThreatModel"]

Access = Literal["white-box", "score", "decision", "transfer"]

SUBSTITUTE, GUIDE = "substitute", "guide"
"""How a threat's text names a substitute: one that answers itself (transfer), or one whose gradients lead (score)."""

GOAL = "goal"
"""How a threat's text says what the attacker wants, where that is not what the attack wants by itself."""

ORACLE = "oracle"
"""How a threat's text names who says what class a changed input has."""

GRAMMAR = (
    f"linf=0.1:{SUBSTITUTE}=MODEL, or linf=0.1:{GUIDE}=MODEL to lead a search by its gradients"
)
"""What an error says of it."""


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker may show, wants and knows.

    Args:
        budget: the inputs that may be shown; of a sweep, the largest.
        goal: when an input is a success.
        access: what the attacker sees of the model: all of it, its scores, its decisions, or nothing.
        sweep: ascending eps of a sweep in the budget's norm; empty for a single budget.
        substitute: reference of another model that the attacker has in full. With the access ``transfer`` it
            answers everything while an attack searches, and the model itself only judges; with ``score`` the
            model answers and the substitute's gradients lead.
        oracle: who says what class a changed input has: a panel of the catalogue, or a CSV of human labels;
            None for the data set itself where it can tell.
    """

    budget: Budget
    goal: Goal = Misclassify()  # noqa: RUF009 - frozen, holds no state
    access: Access = "white-box"
    sweep: tuple[float, ...] = ()
    substitute: str | None = None
    oracle: str | None = None

    def __post_init__(self) -> None:
        if list(self.sweep) != sorted(set(self.sweep)):
            raise BadParameter("unusable sweep", got=self.sweep, expected="ascending, distinct eps")
        if self.access == "transfer" and not self.substitute:
            raise BadParameter(
                "a transfer attack needs a substitute to search on", remedy=f"write {GRAMMAR}"
            )
        if self.substitute is not None and self.access not in ("transfer", "score"):
            raise BadParameter(
                "a substitute is of no use here",
                got=f"access {self.access}",
                expected="transfer or score",
                remedy=f"write {GRAMMAR}",
            )

    @property
    def norm(self) -> str:
        """The norm that distances are measured in."""
        return self.budget.norm

    @property
    def bounded(self) -> bool:
        """False when every input is allowed."""
        return not isinstance(self.budget, Unbounded)

    @property
    def is_transfer(self) -> bool:
        """Does a search see the substitute alone?"""
        return self.access == "transfer"

    def at(self, eps: float) -> "ThreatModel":
        """Return the threat of a single eps of the sweep."""
        return replace(self, budget=LpBall(self.norm, eps), sweep=())

    def with_goal(self, goal: Goal) -> "ThreatModel":
        """Return the same threat with another goal."""
        return replace(self, goal=goal)
