"""Parses threats and goals: ``linf=0.1,0.2``, ``none``, or a name in the catalogue, with oracle and substitute."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from robustbench_inv.arguments import check_text
from robustbench_inv.catalogue.cards import GOALS, read_threat
from robustbench_inv.catalogue.fields import check_fields, explain_mismatch
from robustbench_inv.catalogue.locate import find
from robustbench_inv.catalogue.references import Reference, parse_reference
from robustbench_inv.errors import BadData, BadParameter, CapabilityMismatch, UnknownName, suggest

if TYPE_CHECKING:
    from robustbench_inv.attacks.protocol import Attack
    from robustbench_inv.data.protocol import Dataset
    from robustbench_inv.threat.goals import Goal
    from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "CUSTOMARY",
    "is_customary",
    "load_goal",
    "load_threat",
    "replace_budget",
    "resolve_customary",
    "threat_for_attack",
]

CUSTOMARY = "customary"
"""In a threat's text: the budget that is customary for the data set that is evaluated."""

SUFFIXES = ("goal", "oracle", "substitute", "guide")
"""What may follow a threat's budget, in this order; the last two exclude each other."""

PREFERRED_NORMS = ("linf", "l2", "l1", "l0")
"""Norms in the order in which an attack's customary budget is chosen."""


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
    check_text(text, "threat")
    budget, known = _split(text)
    goal = goal or Misclassify()
    if is_customary(budget):
        raise BadParameter(
            "customary is the budget of the evaluated data set", got=text, remedy="name linf=EPS"
        )
    if budget.partition(":")[0] == "none":
        return replace(_unbounded(parse_reference(budget), goal, norm), **known)
    named, equals, epsilons = budget.partition("=")
    if equals:
        numbers = [_number(eps, text) for eps in epsilons.split(",")]
        return replace(_ball(named.strip(), numbers, goal), **known)
    word, _, given = budget.partition(":")
    if word in PREFERRED_NORMS:
        raise BadParameter(
            f"{word} is a norm without a budget",
            got=text,
            expected=f"{word}={given or 'EPS'}",
            remedy=f"type none:norm={word} for distances without a budget",
        )
    return _from_card(budget, goal, known)


def is_customary(text: "str | ThreatModel") -> bool:
    """Return whether a threat's budget is that of the data set.

    Example:
        >>> is_customary("customary:norm=l2:goal=misclassify"), is_customary("l2=1")
        (True, False)
    """
    return isinstance(text, str) and _split_at(text, *SUFFIXES)[0].partition(":")[0] == CUSTOMARY


def resolve_customary(
    text: "str | ThreatModel", name: str, attack: "Attack", data: "Dataset"
) -> "str | ThreatModel":
    """Return a threat with the customary budget of a data set in place of the word ``customary``.

    Args:
        text: ``customary`` is the data set's first budget in a norm of the attack, ``customary:norm=l2`` the one in
            this norm; with ``sweep=false`` its largest eps alone. Suffixes are kept, and any other threat is returned
            unchanged.
        name: of the attack, for the message.
        attack: the attack, whose norms count.
        data: the data set.

    Raises:
        BadParameter: for another parameter than norm and sweep.
        CapabilityMismatch: if the data set has no such budget.
    """
    if not isinstance(text, str) or not is_customary(text):
        return text
    budget, word, rest = _split_at(text, *SUFFIXES)
    parameters = parse_reference(budget).parameters
    norm, sweep = parameters.get("norm"), parameters.get("sweep", True)
    if parameters.keys() - {"norm", "sweep"} or not isinstance(sweep, bool):
        raise BadParameter("unusable threat", got=text, expected="customary:norm=NORM,sweep=false")
    norms = _preferred_norms(attack) if norm is None else [_norm(norm)]
    found = _customary_budget(norms, name, data)
    chosen = found if sweep else f"{load_threat(found).norm}={load_threat(found).epsilons[-1]!r}"
    return f"{chosen}:{word}={rest}" if word else chosen


def _customary_budget(norms: list[str], name: str, data: "Dataset") -> str:
    """Return the first of a data set's budgets in one of the norms, in the order of the norms."""
    from robustbench_inv.data.protocol import HasBudgets

    own: Sequence[str] = data.budgets if isinstance(data, HasBudgets) else ()
    if not isinstance(own, list | tuple) or not all(isinstance(text, str) for text in own):
        expected = "texts such as linf=0.1"
        raise BadData(f"{data.name} has invalid budgets", got=own, expected=expected)
    known: dict[str, str] = {
        load_threat(text).norm: text for text in reversed(own) if load_threat(text).bounded
    }
    for norm in norms:
        if norm in known:
            return known[norm]
    low, high = data.bounds
    raise CapabilityMismatch(
        f"{data.name} has no customary {' or '.join(norms)} budget for {name}",
        got=f"budgets {', '.join(own)}" if own else "no budget",
        remedy=f"name one in input units of [{low:g}, {high:g}]: --threat {(norms or ['linf'])[0]}=EPS",
    )


def replace_budget(text: str, requested: "str | ThreatModel") -> "str | ThreatModel":
    """Return the requested threat with the goal, oracle and substitute of another one that it does not name itself.

    Args:
        text: the other threat.
        requested: the requested threat; an object is complete, and returned unchanged.

    Example:
        >>> replace_budget("customary:goal=misclassify", "linf=0.1:guide=b")
        'linf=0.1:goal=misclassify:guide=b'
    """
    if not isinstance(requested, str):
        return requested
    budget, own = _suffixes(requested)
    kept = {**_suffixes(text)[1], **own}
    if own.keys() & {"substitute", "guide"}:
        kept = {word: value for word, value in kept.items() if word in own or word in SUFFIXES[:2]}
    return ":".join([budget, *(f"{word}={kept[word]}" for word in SUFFIXES if word in kept)])


def _suffixes(text: str) -> tuple[str, dict[str, str]]:
    """Return the budget of a threat, and the value of each suffix."""
    budget, word, rest = _split_at(text, *SUFFIXES)
    found = {}
    while word:
        later = SUFFIXES[SUFFIXES.index(word) + 1 :] if word in SUFFIXES[:2] else ()
        found[word], word, rest = _split_at(rest, *later) if later else (rest, "", "")
    return budget, found


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
    budget, given = _suffixes(text)
    named = {word: _named(value, word, text) for word, value in given.items()}
    known: dict[str, Any] = {}
    for word, value in named.items():
        if word in ("substitute", "guide"):
            access = "transfer" if word == "substitute" else "score"
            known |= {"access": access, "substitute": value}
        else:
            known[word] = load_goal(value) if word == "goal" else value
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


_NUMBER = re.compile(r"[-+.0-9eE]+(\s*/\s*[-+.0-9eE]+)?")
"""A number, or a ratio of two; Python's ``float`` also reads ``1_0`` and digits of other scripts."""


def _number(text: str, whole: str) -> float:
    _, colon, rest = text.partition(":")
    if colon:
        word = rest.partition("=")[0]
        remedy = suggest(word, SUFFIXES)
        raise BadParameter(f"unknown parameter {word} of a threat", got=whole, remedy=remedy)
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if not 0 <= value < float("inf") or not _NUMBER.fullmatch(text.strip()):
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
