"""Attacks by name: a preset, a class of the user, or any attack of Foolbox and torchattacks."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_inv.catalogue.cards import AttackCard, read_attack, to_json
from robustbench_inv.catalogue.factories import call_factory
from robustbench_inv.catalogue.fingerprint import describe, plain
from robustbench_inv.catalogue.locate import entries, find
from robustbench_inv.catalogue.references import (
    Reference,
    Scalar,
    import_object,
    parse_reference,
    source_file,
)
from robustbench_inv.catalogue.threats import load_goal
from robustbench_inv.errors import BadCatalogue, BadParameter
from robustbench_inv.identity import digest_file, digest_value

if TYPE_CHECKING:
    from robustbench_inv.attacks.protocol import Attack, ShowsOthers
    from robustbench_inv.data.protocol import Dataset
    from robustbench_inv.threat.goals import Goal

__all__ = ["LIBRARIES", "LoadedAttack", "load_attack", "showing"]

LIBRARIES = {
    "foolbox": "robustbench_inv.attacks.foolbox_adapter:FoolboxAttack",
    "torchattacks": "robustbench_inv.attacks.torchattacks_adapter:TorchattacksAttack",
}
"""Prefixes under which every attack of a library can be named, and the adapter that runs it."""


@dataclass(frozen=True)
class LoadedAttack:
    """An attack that is ready to run.

    Args:
        name: as the user wrote it, parameters included.
        digest: SHA-256 of implementation, all parameters and goal.
        card: what the catalogue says of it, with all parameters; plain values.
        attack: the attack.
        goal: what it wants.
    """

    name: str
    digest: str
    card: dict[str, Any]
    attack: "Attack"
    goal: "Goal"


def load_attack(source: "str | Attack", **parameters: Scalar) -> LoadedAttack:
    """Return an attack that is ready to run.

    Args:
        source: a preset's name, ``foolbox:NAME``, ``torchattacks:NAME``, ``module:Class`` or
            ``file.py:Class``, each with ``:key=value,…`` if need be; or an attack.
        parameters: override those of the preset or of the reference.

    Raises:
        UnknownName: if nothing is called so.
        BadParameter: for a parameter that the attack does not have or cannot use.
        BadCatalogue: if the implementation cannot be imported or is no attack.
    """
    if not isinstance(source, str):
        return _from_object(source, parameters)
    reference = parse_reference(source)
    reference = Reference(reference.name, {**reference.parameters, **parameters})
    card = _preset(reference.name)
    if card is None:
        return _from_code(reference)
    attack = _construct(
        card.implementation,
        {**card.parameters, **reference.parameters},
        str(reference),
        card.folder,
    )
    source_path = source_file(card.implementation, Path(card.folder))
    return _loaded(str(reference), attack, _goal(card.goal, attack), source_path, to_json(card))


def showing(loaded: LoadedAttack, attack: "ShowsOthers", others: "Dataset") -> LoadedAttack:
    """Return a loaded attack with the other data set at hand, whose bytes are part of what it is."""
    about = {"name": others.name, "digest": others.digest}
    return dataclasses.replace(
        loaded,
        digest=digest_value({"attack": loaded.digest, "others": others.digest}),
        card={**loaded.card, "others": about},
        attack=attack.showing(others),
    )


def _preset(name: str) -> AttackCard | None:
    if ":" in name and name not in entries("attacks"):
        return None
    return read_attack(find("attacks", name))


def _from_code(reference: Reference) -> LoadedAttack:
    attack = _construct(reference.name, reference.parameters, str(reference))
    return _loaded(str(reference), attack, _goal("", attack), source_file(reference.name))


def _from_object(attack: "Attack", parameters: Mapping[str, Any]) -> LoadedAttack:
    _demand_attack(attack, repr(attack))
    if parameters:
        attack = dataclasses.replace(attack, **parameters)  # type: ignore[type-var]
    return _loaded(type(attack).__name__.lower(), attack, _goal("", attack))


def _construct(
    implementation: str, parameters: Mapping[str, Any], name: str, folder: str | None = None
) -> "Attack":
    library, _, inner = implementation.partition(":")
    if library in LIBRARIES:
        adapter: Any = import_object(LIBRARIES[library])
        built: Attack = adapter(attack=inner, parameters=tuple(sorted(parameters.items())))
        return built
    found = import_object(implementation, Path(folder) if folder else None)
    if callable(found):
        found = call_factory(found, parameters, name)
    elif parameters:
        raise BadParameter(f"{name} is no class", got=dict(parameters), expected="no parameters")
    return _demand_attack(found, name)


def _demand_attack(found: object, name: str) -> "Attack":
    from robustbench_inv.attacks.protocol import Attack

    frozen = getattr(found, "__dataclass_params__", None)
    if not isinstance(found, Attack) or frozen is None or not frozen.frozen:
        raise BadCatalogue(
            f"{name} is no attack",
            got=type(found).__name__,
            expected="a frozen dataclass with kind, norms and run(model, batch, threat, noise)",
        )
    return found


def _goal(text: str, attack: "Attack") -> "Goal":
    default = "keep-decision" if attack.kind == "invariance" else "misclassify"
    return load_goal(text or default)


def _loaded(
    name: str,
    attack: "Attack",
    goal: "Goal",
    source: Path | None = None,
    card: Mapping[str, Any] | None = None,
) -> LoadedAttack:
    parameters = describe(attack)
    kind = parameters.pop("type")
    implementation = f"{source.name}:{type(attack).__qualname__}" if source else kind
    identity = {
        "implementation": implementation,
        "source": digest_file(source) if source else None,
        "parameters": parameters,
        "goal": plain(goal),
    }
    about = {"name": name, "summary": "", "cost": "", "paper": "", **(card or {})} | {"name": name}
    about |= {"implementation": implementation, "kind": attack.kind, "norms": sorted(attack.norms)}
    about |= {"parameters": parameters, "goal": goal.name}
    return LoadedAttack(name, digest_value(identity), about, attack, goal)
