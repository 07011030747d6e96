"""A threat model: budget × goal × access, with its text and its digest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from robustbench_inv.arguments import format_eps
from robustbench_inv.errors import BadParameter
from robustbench_inv.identity import digest_value
from robustbench_inv.threat.budgets import Budget, LpBall, OnSphere, Unbounded, describe_budget
from robustbench_inv.threat.goals import (
    Goal,
    Misclassify,
    MisclassifyAccepted,
    Target,
    describe_goal,
)

__all__ = [
    "GOAL",
    "GUIDE",
    "ORACLE",
    "SUBSTITUTE",
    "Access",
    "ThreatModel",
    "describe_threat",
    "digest_threat",
]

Access = Literal["white-box", "score", "decision", "transfer"]

SUBSTITUTE, GUIDE = "substitute", "guide"
"""Keys of a substitute in a threat's text: for a transfer attack, or for gradients of another model (access score)."""

GOAL = "goal"
"""Key of the goal in a threat's text, if it is not the attack's own."""

ORACLE = "oracle"
"""Key of the oracle in a threat's text."""

GRAMMAR = f"linf=0.1:{SUBSTITUTE}=MODEL, or linf=0.1:{GUIDE}=MODEL to use its gradients"
"""Examples for error messages."""


@dataclass(frozen=True)
class ThreatModel:
    """The attacker's budget, goal and access to the model.

    Args:
        budget: the allowed inputs; the largest budget of a sweep.
        goal: defines success.
        access: to the whole model (white-box), its scores, its decisions, or none during the search (transfer).
        sweep: ascending eps of a sweep in the budget's norm; empty for a single budget.
        substitute: reference of another model that the attacker has in full. With access ``transfer`` the attack
            queries only the substitute, and its results are tested on the model; with ``score`` the model's scores are
            combined with the substitute's gradients.
        oracle: source of the class of a changed input: a panel of the catalogue, or a CSV of human labels; None for the
            data set itself, where it has labels for changed inputs.
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
            raise BadParameter("a transfer attack needs a substitute", remedy=f"write {GRAMMAR}")
        if self.substitute is not None and self.access not in ("transfer", "score"):
            raise BadParameter(
                "a substitute cannot be used with this access",
                got=f"access {self.access}",
                expected="transfer or score",
                remedy=f"write {GRAMMAR}",
            )

    @property
    def norm(self) -> str:
        """The norm of distances."""
        return self.budget.norm

    @property
    def bounded(self) -> bool:
        """Whether there is a budget: False if every input is allowed."""
        return not isinstance(self.budget, Unbounded)

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The ascending eps of the sweep, or the eps of the ball; empty without a ball."""
        if self.sweep:
            return self.sweep
        return (self.budget.eps,) if isinstance(self.budget, LpBall) else ()

    @property
    def text(self) -> str:
        """Budget, goal, oracle and substitute in the syntax of ``--threat``.

        The goals that attacks have by default, misclassification and an unchanged prediction, are left out.

        Example:
            >>> ThreatModel(LpBall("linf", 0.2), sweep=(0.1, 0.2)).text
            'linf=0.1,0.2'
            >>> ThreatModel(LpBall("linf", 0.2), MisclassifyAccepted()).text
            'linf=0.2:goal=misclassify-accepted'
            >>> ThreatModel(LpBall("l2", 1.0), Target(offset=3, confidence=500)).text
            'l2=1:goal=target:offset=3,confidence=500'
        """
        helper = SUBSTITUTE if self.is_transfer else GUIDE
        goal = self.goal.name if isinstance(self.goal, MisclassifyAccepted) else None
        if isinstance(self.goal, Target):
            goal = f"{self.goal.name}:{_target_text(self.goal)}"
        named = {GOAL: goal, ORACLE: self.oracle, helper: self.substitute}
        more = (f":{word}={name}" for word, name in named.items() if name is not None)
        return "".join([_budget_text(self), *more])

    @property
    def is_transfer(self) -> bool:
        """Whether the attack queries the substitute alone."""
        return self.access == "transfer"

    def at(self, eps: float) -> "ThreatModel":
        """Return the threat of a single eps of the sweep."""
        return replace(self, budget=LpBall(self.norm, eps), sweep=())

    def with_goal(self, goal: Goal) -> "ThreatModel":
        """Return the same threat with another goal."""
        return replace(self, goal=goal)


def describe_threat(
    threat: ThreatModel,
    content: Callable[[object], object],
    substitute: Mapping[str, str] | None = None,
    oracle: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a threat as plain values, as cell.json holds it.

    Args:
        threat: the threat.
        content: returns the identity of a user's own goal or budget (``catalogue.fingerprint.content``).
        substitute: name and digest of the substitute, None without one.
        oracle: description of the named oracle with its digest, None without one.
    """
    goal, parameters = describe_goal(threat.goal, content)
    return {
        "text": threat.text,
        "norm": threat.norm,
        "epsilons": list(threat.epsilons),
        "goal": goal,
        "access": threat.access,
        "substitute": substitute,
        "oracle": oracle,
        "budget": describe_budget(threat.budget, content),
        "goal_parameters": parameters,
    }


def digest_threat(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a described threat, without its text and names."""
    parts = ("norm", "epsilons", "goal", "goal_parameters", "access", "budget")
    named = (key for key in ("substitute", "oracle") if description.get(key))
    return digest_value(
        {k: description[k] for k in parts} | {k: description[k]["digest"] for k in named}
    )


def _target_text(goal: Target) -> str:
    named = {"label": goal.label, "offset": goal.offset, "confidence": goal.confidence or None}
    known = ((key, value) for key, value in named.items() if value is not None)
    return ",".join(f"{key}={value:g}" for key, value in known)


def _budget_text(threat: ThreatModel) -> str:
    if isinstance(threat.budget, OnSphere):
        return f"sphere={threat.budget.radius:g}"
    if eps := threat.epsilons:
        return f"{threat.norm}={','.join(format_eps(each, 10) for each in eps)}"
    return "none" if threat.norm == "l2" else f"none:norm={threat.norm}"
