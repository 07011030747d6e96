"""Loads attacks by name: a preset, a class of the user, or any attack of Foolbox, torchattacks and adversarial-library."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from robustbench_inv.arguments import check_text
from robustbench_inv.catalogue.cards import AttackCard, read_attack, to_json
from robustbench_inv.catalogue.code_identity import origin_of
from robustbench_inv.catalogue.datasets import default_ood_dataset, refuse_code
from robustbench_inv.catalogue.fields import call_factory
from robustbench_inv.catalogue.fingerprint import content, describe
from robustbench_inv.catalogue.locate import entries, find, shipped_root
from robustbench_inv.catalogue.references import (
    Reference,
    Scalar,
    import_object,
    parse_reference,
    source_file,
)
from robustbench_inv.catalogue.threats import load_goal
from robustbench_inv.errors import BadCatalogue, BadData, BadParameter, InvbenchError, did_you_mean
from robustbench_inv.foreign import foreign_call
from robustbench_inv.identity import digest_value

if TYPE_CHECKING:
    from robustbench_inv.attacks.protocol import Attack
    from robustbench_inv.data.protocol import Dataset
    from robustbench_inv.threat.goals import Goal

__all__ = ["LIBRARIES", "LoadedAttack", "load_attack", "with_ood_data"]


LIBRARIES = {
    "adv-lib": "robustbench_inv.attacks.adapters.adv_lib:AdvLibAttack",
    "foolbox": "robustbench_inv.attacks.adapters.foolbox:FoolboxAttack",
    "torchattacks": "robustbench_inv.attacks.adapters.torchattacks:TorchattacksAttack",
}
"""Prefixes under which every attack of a library can be named, and the adapter that runs it."""

ADAPTERS_REVISION = 1
"""Raised when an adapter searches differently with the same attack and parameters."""


@dataclass(frozen=True)
class LoadedAttack:
    """An attack that is ready to run.

    Args:
        name: as the user wrote it, parameters included.
        digest: SHA-256 of preset, revision, parameters and goal, of a user's attack that of its code.
        card: its entry in the catalogue, with all parameters; plain values.
        attack: the attack.
        goal: its default goal.
    """

    name: str
    digest: str
    card: dict[str, Any]
    attack: "Attack"
    goal: "Goal"


def load_attack(source: "str | Attack", **parameters: Scalar) -> LoadedAttack:
    """Return an attack that is ready to run.

    Args:
        source: a preset's name, ``foolbox:NAME``, ``torchattacks:NAME``, ``adv-lib:NAME``, ``module:Class`` or
            ``file.py:Class``, each with optional ``:key=value,…``; or an attack.
        parameters: override those of the preset or of the reference.

    Raises:
        UnknownName: for an unknown name.
        BadParameter: for a parameter that the attack does not have or cannot use.
        BadCatalogue: if the implementation cannot be imported or is not an attack.
        ForeignCodeError: if its code tries to end the program, or exceeds the time limit.
    """
    with foreign_call(source if isinstance(source, str) else type(source).__name__):
        return _load(source, parameters)


def _load(source: "str | Attack", parameters: Mapping[str, Scalar]) -> LoadedAttack:
    if not isinstance(source, str):
        return _from_object(source, parameters)
    reference = parse_reference(check_text(source, "attack"))
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


def with_ood_data(
    loaded: LoadedAttack,
    source: "str | Attack | LoadedAttack",
    dataset: "Dataset",
    open_dataset: "Callable[[str], Dataset]",
    *,
    optional: bool = False,
) -> LoadedAttack:
    """Return an attack with its out-of-distribution data set; any attack that needs none is returned unchanged.

    Args:
        loaded: the attack.
        source: name or object that the attack was loaded from; the default data set is added to it.
        dataset: the data that is evaluated.
        open_dataset: opens a data set by name.
        optional: return the attack without its data set if that is missing; it then refuses to run.

    Raises:
        BadData: if the data set is damaged, or is missing and cannot be fetched.
    """
    from robustbench_inv.attacks.protocol import NeedsOODData

    if not isinstance(loaded.attack, NeedsOODData):
        return loaded
    name = loaded.attack.dataset or default_ood_dataset(dataset)
    if not name:
        return loaded
    refuse_code(name)
    plain: Any = source.attack if isinstance(source, LoadedAttack) else source
    named = loaded if loaded.attack.dataset else load_attack(plain, dataset=name)
    try:
        return _joined(named, open_dataset(name))
    except BadData:
        if optional:
            return named
        raise


def _joined(named: LoadedAttack, ood: "Dataset") -> LoadedAttack:
    """Return an attack that holds its out-of-distribution data, whose bytes are part of its digest."""
    attack: Any = named.attack
    about = {"name": ood.name, "digest": ood.digest}
    return dataclasses.replace(
        named,
        digest=digest_value({"attack": named.digest, "others": ood.digest}),
        card={**named.card, "ood_dataset": about},
        attack=attack.with_ood_data(ood),
    )


def _preset(name: str) -> AttackCard | None:
    if ":" in name and name not in entries("attacks"):
        return None
    return read_attack(find("attacks", name))


def _from_code(reference: Reference) -> LoadedAttack:
    attack = _construct(reference.name, reference.parameters, str(reference))
    return _loaded(str(reference), attack, _goal("", attack), source_file(reference.name))


def _from_object(attack: "Attack", parameters: Mapping[str, Any]) -> LoadedAttack:
    _check_attack(attack, repr(attack))
    if parameters:
        attack = _with_parameters(attack, parameters)
    return _loaded(type(attack).__name__.lower(), attack, _goal("", attack))


def _with_parameters(attack: "Attack", parameters: Mapping[str, Any]) -> "Attack":
    known = [field.name for field in dataclasses.fields(attack) if field.init]  # type: ignore[arg-type]
    for key in parameters:
        if key not in known:
            expected = "one of " + ", ".join(known) if known else "none at all"
            problem = f"{type(attack).__name__}: unknown parameter {key}"
            raise BadParameter(problem, expected=expected, remedy=did_you_mean(key, known))
    try:
        changed: Attack = dataclasses.replace(attack, **parameters)  # type: ignore[type-var]
    except InvbenchError:
        raise
    except Exception as error:
        problem = f"{type(attack).__name__} cannot take these parameters"
        raise BadParameter(problem, got=dict(parameters), remedy=str(error)) from error
    return changed


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
        raise BadParameter(f"{name} is not a class", got=dict(parameters), expected="no parameters")
    return _check_attack(found, name)


def _check_attack(found: object, name: str) -> "Attack":
    from robustbench_inv.attacks.protocol import Attack, Kind

    frozen = getattr(found, "__dataclass_params__", None)
    if not isinstance(found, Attack) or frozen is None or not frozen.frozen:
        raise BadCatalogue(
            f"{name} is not an attack",
            got=type(found).__name__,
            expected="a frozen dataclass with kind, norms and run(model, batch, threat, rng)",
        )
    if found.kind not in get_args(Kind):
        known = "one of " + ", ".join(get_args(Kind))
        raise BadCatalogue(f"{name} has no known kind", got=found.kind, expected=known)
    return found


@dataclass(frozen=True)
class _Preset:
    """A shipped preset and its attack."""

    card: AttackCard
    attack: "Attack"

    def distance(self, attack: "Attack", goal: "Goal | None") -> tuple[int, bool, str]:
        """Return a sort key: how much an attack of the same class differs from the preset."""
        aim = goal is not None and _described(goal) != _described(self.goal)
        return len(self.differing(attack)), aim, self.card.name

    @property
    def goal(self) -> "Goal":
        return _goal(self.card.goal, self.attack)

    @property
    def is_class(self) -> bool:
        """Does its card name a class, rather than a factory of one attack?"""
        return isinstance(import_object(self.card.implementation, Path(self.card.folder)), type)

    def differing(self, attack: "Attack") -> dict[str, Any]:
        own, other = _values(self.attack), _values(attack)
        return {name: value for name, value in other.items() if value != own[name]}

    def parameters(self, attack: "Attack") -> dict[str, Any]:
        """Return the parameters on its card, and those in which an attack differs from the preset."""
        named = {k: v for k, v in _values(attack).items() if k in self.card.parameters}
        return {**named, **self.differing(attack)}


@cache
def _shipped() -> tuple[_Preset, ...]:
    cards = map(read_attack, sorted((shipped_root() / "attacks" / "presets").glob("*.toml")))
    return tuple(
        _Preset(card, _construct(card.implementation, card.parameters, card.name, card.folder))
        for card in cards
    )


def _identity(attack: "Attack", goal: "Goal | None" = None) -> dict[str, Any]:
    """Return an attack's identity; class names, and fields that no preset sets, do not count for shipped attacks.

    The identity of a shipped class is its closest preset and the parameters in which it differs.
    """
    kind = type(attack)
    if origin_of(kind.__module__) != "package":
        return {"content": content(attack)}
    if library := next((n for n, each in LIBRARIES.items() if import_object(each) is kind), None):
        known = _values(attack)
        name = f"{library}:{known.pop('attack')}"
        return {"attack": name, "revision": ADAPTERS_REVISION, **known}
    near = [preset for preset in _shipped() if type(preset.attack) is kind]
    fitting = [preset for preset in near if preset.is_class or not preset.differing(attack)]
    if not fitting:
        return {"attack": _kebab(kind.__name__), "parameters": _values(attack)}
    preset = min(fitting, key=lambda each: each.distance(attack, goal))
    card = preset.card
    about = {"attack": card.name, "revision": card.revision}
    return {**about, "parameters": preset.parameters(attack)}


def _values(attack: "Attack") -> dict[str, Any]:
    """Return the values of an attack's fields; other attacks as their identity, data sets as their digest."""
    fields = dataclasses.fields(attack)  # type: ignore[arg-type]
    return {field.name: _value(getattr(attack, field.name)) for field in fields}


def _value(value: object) -> object:
    from robustbench_inv.attacks.protocol import Attack
    from robustbench_inv.data.protocol import Dataset

    if isinstance(value, tuple | list):
        return [_value(each) for each in value]
    if isinstance(value, Attack) and dataclasses.is_dataclass(value):
        return _identity(value)
    return value.digest if isinstance(value, Dataset) else content(value)


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def _described(goal: "Goal") -> tuple[str, dict[str, Any]]:
    from robustbench_inv.threat.goals import describe_goal

    return describe_goal(goal, content)


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
    identity = {"attack": _identity(attack, goal), "goal": _described(goal)}
    about = {"name": name, "summary": "", "cost": "", "paper": "", **(card or {})} | {"name": name}
    about |= {"implementation": implementation, "kind": attack.kind, "norms": sorted(attack.norms)}
    about |= {"parameters": parameters, "goal": goal.name}
    return LoadedAttack(name, digest_value(identity), about, attack, goal)
