"""Parses threats and goals: ``linf=0.1,0.2``, ``none``, or a name in the catalogue, with oracle and substitute."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from robustbench_inv.catalogue.cards import GOALS, read_threat
from robustbench_inv.catalogue.fields import check_fields, explain_mismatch
from robustbench_inv.catalogue.locate import entries, find
from robustbench_inv.catalogue.references import Reference, parse_reference
from robustbench_inv.errors import BadParameter, CapabilityMismatch, UnknownName, suggest

if TYPE_CHECKING:
    from robustbench_inv.attacks.protocol import Attack
    from robustbench_inv.threat.goals import Goal
    from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["default_threat", "load_goal", "load_threat", "threat_for_attack"]

DEFAULT_BUDGETS = {"mnist-linf": "linf=0.3"}
"""Customary budgets for which the catalogue has no threat of this name."""

PREFERRED_NORMS = ("linf", "l2", "l1", "l0")
"""Norms in the order in which an attack's default budget is chosen."""


def load_threat(
    text: "str | ThreatModel", goal: "Goal | None" = None, norm: str = "l2"
) -> "ThreatModel":
    """Return the threat of a text.

    Args:
        text: ``NORM=EPS[,EPS…]`` with NORM one of l0, l1, l2, linf and EPS ascending, in input units (``8/255`` is
            allowed); ``none``, or ``none:norm=linf`` for distances in another norm than l2; or a name in the
            catalogue. Optional suffixes, in this order: ``:goal=GOAL`` (see ``load_goal``), ``:oracle=NAME`` (a panel,
            or a CSV of human labels), and ``:substitute=MODEL`` (transfer attack) or ``:guide=MODEL`` (gradients of
            that model); everything after the last one is the model's name. A threat is returned unchanged.
        goal: default goal; None for misclassification.
        norm: default norm of distances under ``none``.

    Raises:
        BadParameter: for an unknown norm, eps that are not ascending numbers >= 0, or a missing name of a model or
            oracle.
        UnknownName: for a name that is not in the catalogue.

    Example:
        >>> load_threat("linf=0.1:substitute=mine.py:build:width=3").substitute
        'mine.py:build:width=3'
        >>> load_threat("none:oracle=mnist-panel:rule=unanimous").oracle
        'mnist-panel:rule=unanimous'
    """
    from robustbench_inv.threat.goals import Misclassify
    from robustbench_inv.threat.threat_model import ThreatModel

    if isinstance(text, ThreatModel):
        return text
    budget, known = _split(text)
    goal = goal or Misclassify()
    if budget.partition(":")[0] == "none":
        return replace(_unbounded(parse_reference(budget), goal, norm), **known)
    named, equals, epsilons = budget.partition("=")
    if equals:
        numbers = [_number(eps, text) for eps in epsilons.split(",")]
        return replace(_ball(named.strip(), numbers, goal), **known)
    return _from_card(budget, goal, known)


def default_threat(name: str, attack: "Attack", dataset: str) -> str:
    """Return the data set's customary budget for a fixed-budget attack, ``none`` for any other attack.

    Args:
        name: of the attack, for the message.
        attack: the attack, whose norms count.
        dataset: name of the data set, with or without parameters.

    Raises:
        CapabilityMismatch: if there is no customary budget.
    """
    if attack.kind != "fixed-budget":
        return "none"
    data = dataset.partition(":")[0]
    families = (data, data.removesuffix("5k"), data.partition("-")[0])
    for norm in _preferred_norms(attack):
        for usual in (f"{family}-{norm}" for family in families):
            if usual in entries("threats"):
                return usual
            if usual in DEFAULT_BUDGETS:
                return DEFAULT_BUDGETS[usual]
    raise CapabilityMismatch(
        f"there is no customary budget for {name} on {dataset}",
        remedy="name a threat, such as linf=0.1",
    )


def threat_for_attack(text: "str | ThreatModel", attack: "Attack", goal: "Goal") -> "ThreatModel":
    """Return a threat as ``load_threat`` does; distances of ``none`` are measured in a norm of the attack."""
    norms = _preferred_norms(attack)
    return load_threat(text, goal, norms[0] if norms and "l2" not in norms else "l2")


def _preferred_norms(attack: "Attack") -> list[str]:
    return [norm for norm in PREFERRED_NORMS if norm in attack.norms]


def load_goal(text: str) -> "Goal":
    """Return the goal of a text: one of GOALS, with optional parameters.

    ``target:label=3`` is one class for all samples, ``target:offset=1`` the class after each true class, and
    ``target-accepted`` also requires acceptance. ``keep-logits:tolerance=0.01`` limits the change of the logits.

    Raises:
        UnknownName: for an unknown goal.
        BadParameter: for an unknown parameter of the goal.
    """
    from robustbench_inv.threat import goals

    reference = parse_reference(text)
    kinds: dict[str, type[Any]] = {
        "misclassify": goals.Misclassify,
        "misclassify-same-class": goals.Misclassify,
        "misclassify-accepted": goals.MisclassifyAccepted,
        "accept": goals.Accept,
        "target": goals.Target,
        "target-accepted": goals.Target,
        "keep-decision": goals.KeepDecision,
        "keep-logits": goals.KeepLogits,
    }
    if reference.name not in kinds:
        raise UnknownName("unknown goal", got=text, remedy=suggest(reference.name, GOALS))
    fixed = {
        "misclassify-same-class": {"same_class": True},
        "target-accepted": {"accepted": True},
    }.get(reference.name, {})
    with explain_mismatch(BadParameter, f"goal {text}"):
        values = check_fields(kinds[reference.name], reference.parameters)
    goal: Goal = kinds[reference.name](**{**values, **fixed, "name": reference.name})
    return goal


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """Return a threat's text without its suffixes, and the fields that the suffixes define."""
    from robustbench_inv.threat.threat_model import GOAL, GUIDE, ORACLE, SUBSTITUTE

    budget, word, rest = _split_at(text, GOAL, ORACLE, SUBSTITUTE, GUIDE)
    known: dict[str, Any] = {}
    if word == GOAL:
        goal, word, rest = _split_at(rest, ORACLE, SUBSTITUTE, GUIDE)
        known["goal"] = load_goal(_named(goal, GOAL, text))
    if word == ORACLE:
        oracle, word, rest = _split_at(rest, SUBSTITUTE, GUIDE)
        known["oracle"] = _named(oracle, ORACLE, text)
    if word:
        access = "transfer" if word == SUBSTITUTE else "score"
        known |= {"access": access, "substitute": _named(rest, word, text)}
    return budget, known


def _split_at(text: str, *words: str) -> tuple[str, str, str]:
    """Return the text before the first ``:word=``, the word, and the text after it."""
    found = re.search(rf":\s*({'|'.join(words)})\s*=", text)
    if found is None:
        return text.strip(), "", ""
    return text[: found.start()].strip(), found[1], text[found.end() :].strip()


def _named(name: str, word: str, text: str) -> str:
    if not name:
        kinds = {"oracle": ("oracle", "NAME"), "goal": ("goal", "GOAL")}
        kind, expected = kinds.get(word, ("model", "MODEL"))
        raise BadParameter(f"{text} names no {kind}", expected=f"{word}={expected}")
    return name


def _unbounded(reference: Reference, goal: "Goal", usual: str) -> "ThreatModel":
    from robustbench_inv.threat.budgets import Unbounded
    from robustbench_inv.threat.threat_model import ThreatModel

    norm = reference.parameters.get("norm", usual)
    if reference.parameters.keys() - {"norm"}:
        raise BadParameter("unknown parameter of a threat", got=str(reference), expected="norm")
    return ThreatModel(Unbounded(_norm(norm)), goal)


def _ball(norm: str, epsilons: list[float], goal: "Goal") -> "ThreatModel":
    from robustbench_inv.threat.budgets import LpBall
    from robustbench_inv.threat.threat_model import ThreatModel

    sweep = tuple(epsilons) if len(epsilons) > 1 else ()
    if sorted(set(epsilons)) != epsilons:
        raise BadParameter("unusable sweep", got=epsilons, expected="ascending, distinct eps")
    return ThreatModel(LpBall(_norm(norm), epsilons[-1]), goal, sweep=sweep)


def _norm(norm: object) -> str:
    from robustbench_inv.tensors import NORMS

    if norm not in NORMS:
        raise BadParameter("unknown norm", got=norm, expected="one of " + ", ".join(NORMS))
    return str(norm)


def _number(text: str, whole: str) -> float:
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise BadParameter(f"unusable eps in {whole}", got=text, expected="a finite number >= 0")
    return value


def _from_card(name: str, goal: "Goal", known: Mapping[str, Any]) -> "ThreatModel":
    card = read_threat(find("threats", name))
    goal = load_goal(card.goal) if card.goal else goal
    if card.epsilons:
        threat = _ball(card.norm, list(card.epsilons), goal)
    else:
        threat = _unbounded(Reference("none", {"norm": card.norm}), goal, card.norm)
    said = {
        "access": card.access,
        "substitute": card.substitute or None,
        "oracle": card.oracle or None,
    }
    return replace(threat, **{**said, **known})
