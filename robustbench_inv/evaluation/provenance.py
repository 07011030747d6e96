"""Describes a cell before it runs: everything its records depend on, and the software that made them."""

import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_inv.catalogue.fingerprint import content
from robustbench_inv.catalogue.threats import describe_goal
from robustbench_inv.identity import IDENTITY_VERSION, digest_value
from robustbench_inv.threat.budgets import Budget, LpBall, OnSphere, Unbounded
from robustbench_inv.threat.goals import MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import GOAL, GUIDE, ORACLE, SUBSTITUTE, ThreatModel

if TYPE_CHECKING:
    from robustbench_inv.catalogue.models import LoadedModel
    from robustbench_inv.evaluation.oracles import Oracle
    from robustbench_inv.evaluation.plan import Job

__all__ = [
    "describe_cell",
    "describe_oracle",
    "describe_threat",
    "digest_threat",
    "digest_threat_description",
    "epsilons",
    "git_state",
    "threat_text",
    "versions",
]


PACKAGES = ("robustbench-inv", "torch", "numpy", "foolbox", "torchattacks", "safetensors")


def epsilons(threat: ThreatModel) -> tuple[float, ...]:
    """Return the ascending eps of a threat; none without a ball."""
    if threat.sweep:
        return threat.sweep
    return (threat.budget.eps,) if isinstance(threat.budget, LpBall) else ()


def threat_text(threat: ThreatModel) -> str:
    """Return a threat's budget, goal, oracle and substitute as ``--threat`` takes them.

    The goals that attacks have by themselves, to misclassify or to keep the decision, go without saying.

    Example:
        >>> threat_text(ThreatModel(LpBall("linf", 0.2), sweep=(0.1, 0.2)))
        'linf=0.1,0.2'
        >>> threat_text(ThreatModel(LpBall("linf", 0.2), MisclassifyAccepted()))
        'linf=0.2:goal=misclassify-accepted'
        >>> threat_text(ThreatModel(LpBall("l2", 1.0), Target(offset=3, confidence=500)))
        'l2=1:goal=target:offset=3,confidence=500'
    """
    helper = SUBSTITUTE if threat.is_transfer else GUIDE
    goal = threat.goal.name if isinstance(threat.goal, MisclassifyAccepted) else None
    if isinstance(threat.goal, Target):
        goal = f"{threat.goal.name}:{_target_text(threat.goal)}"
    named = {GOAL: goal, ORACLE: threat.oracle, helper: threat.substitute}
    more = (f":{word}={name}" for word, name in named.items() if name is not None)
    return "".join([_budget_text(threat), *more])


def _target_text(goal: Target) -> str:
    named = {"label": goal.label, "offset": goal.offset, "confidence": goal.confidence or None}
    known = ((key, value) for key, value in named.items() if value is not None)
    return ",".join(f"{key}={value:g}" for key, value in known)


def _budget_text(threat: ThreatModel) -> str:
    if isinstance(threat.budget, OnSphere):
        return f"sphere={threat.budget.radius:g}"
    if eps := epsilons(threat):
        return f"{threat.norm}={','.join(f'{e:.10g}' for e in eps)}"
    return "none" if threat.norm == "l2" else f"none:norm={threat.norm}"


def describe_threat(
    threat: ThreatModel,
    substitute: "LoadedModel | None" = None,
    oracle: "Oracle | None" = None,
) -> dict[str, Any]:
    """Return a threat, and what its substitute and its oracle name, as plain values."""
    goal, parameters = describe_goal(threat.goal)
    return {
        "text": threat_text(threat),
        "norm": threat.norm,
        "epsilons": list(epsilons(threat)),
        "goal": goal,
        "access": threat.access,
        "substitute": substitute and {"name": substitute.name, "digest": substitute.digest},
        "oracle": oracle and describe_oracle(str(threat.oracle), oracle),
        "budget": _describe_budget(threat.budget),
        "goal_parameters": parameters,
    }


def _describe_budget(budget: Budget) -> dict[str, Any]:
    if type(budget) is LpBall:
        return {"type": "ball", "norm": budget.norm, "eps": budget.eps}
    if type(budget) is Unbounded:
        return {"type": "unbounded", "norm": budget.norm}
    if type(budget) is OnSphere:
        return {"type": "sphere", "norm": budget.norm, "radius": budget.radius}
    return {"type": "other", "content": content(budget)}


def describe_oracle(name: str, oracle: "Oracle") -> dict[str, Any]:
    """Return an oracle that a threat names as plain values."""
    return {"name": name, "digest": oracle.digest, **oracle.describe()}


def digest_threat(
    threat: ThreatModel,
    substitute: "LoadedModel | None" = None,
    oracle: "Oracle | None" = None,
) -> str:
    """Return the SHA-256 of a threat: budget, sweep, goal, access, and what substitute and oracle are, if any."""
    return digest_threat_description(describe_threat(threat, substitute, oracle))


def digest_threat_description(about: Mapping[str, Any]) -> str:
    """Return the digest of a threat that has been described, as in cell.json."""
    parts = ("norm", "epsilons", "goal", "goal_parameters", "access", "budget")
    named = (key for key in ("substitute", "oracle") if about.get(key))
    return digest_value({k: about[k] for k in parts} | {k: about[k]["digest"] for k in named})


def describe_cell(job: "Job", device: str) -> dict[str, Any]:
    """Return the content of cell.json but for version, batch size and segments."""
    model, attack, data = job.model, job.attack, job.dataset
    return {
        "spec": {"identity_version": IDENTITY_VERSION, **vars(job.spec)},
        "model": {"name": model.name, "digest": model.digest, "card": model.card},
        "attack": {
            "name": attack.name,
            "digest": attack.digest,
            "kind": attack.attack.kind,
            "implementation": attack.card.get("implementation", ""),
            "parameters": attack.card.get("parameters", {}),
            "goal": attack.goal.name,
            "card": attack.card,
        },
        "threat": describe_threat(job.threat, job.substitute, job.oracle),
        "dataset": {
            "name": data.name,
            "digest": data.digest,
            "size": len(data),
            "num_classes": data.num_classes,
            "bounds": list(data.bounds),
            "shape": list(data.shape),
        },
        "seed": job.seed,
        "device": device,
        "dtype": str(model.classifier.dtype).removeprefix("torch."),
        "versions": versions(),
        "git": git_state(),
        "weights_digest": model.weights_digest,
    }


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_state() -> dict[str, Any] | None:
    """Return commit and cleanliness of the checkout that this code runs from, None outside of one."""
    here = Path(__file__)
    if not _git("ls-files", here.name, folder=here.parent):
        return None
    commit = _git("rev-parse", "HEAD", folder=here.parent)
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", folder=here.parent))}


def _git(*arguments: str, folder: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
