"""Cards: the catalogue's entries for attacks, models, suites, threats, oracles and data sets, checked when read."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from robustbench_inv.catalogue.fields import check_fields, explain_mismatch
from robustbench_inv.catalogue.references import (
    LIBRARY_PREFIXES,
    check_implementation,
    locate_code,
    locate_threat,
)
from robustbench_inv.errors import BadCatalogue, suggest
from robustbench_inv.results.rate import ChangeDetection

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "GOALS",
    "AttackCard",
    "CatalogueCard",
    "DatasetCard",
    "ModelCard",
    "OracleCard",
    "SuiteCard",
    "SuiteEntry",
    "ThreatCard",
    "check_table",
    "read_attack",
    "read_entries",
    "read_model",
    "read_oracle",
    "read_suite",
    "read_threat",
    "read_toml",
    "to_json",
]

Norm = Literal["l0", "l1", "l2", "linf"]

GOALS = (
    "misclassify",
    "misclassify-same-class",
    "misclassify-accepted",
    "accept",
    "target",
    "target-accepted",
    "keep-decision",
    "keep-logits",
)
"""Values of a card's ``goal``; some take a parameter: ``target:label=3``, ``keep-logits:tolerance=0.01``."""


@dataclass(frozen=True)
class AttackCard:
    """An attack with its parameters: ``attacks/presets/NAME.toml``.

    Args:
        name: the file's stem.
        folder: folder of the file; a relative ``file.py:Class`` is relative to it.
        summary: one sentence.
        implementation: ``module:Class``, ``file.py:Class``, ``foolbox:NAME``, ``torchattacks:NAME`` or ``adv-lib:NAME``.
        kind: how the engine calls it (see ``attacks.protocol.Kind``).
        norms: the norms of its budgets.
        goal: default goal, one of GOALS; empty for ``misclassify``, or ``keep-decision`` for an invariance attack.
        cost: cost class of one sample: a few queries, gradient steps, a long search, or many queries.
        paper: where it was published; empty if nowhere.
        algorithm: the algorithm, section or equations of the paper, or what the attack does if no paper describes it.
        deviations: each difference from that algorithm, one sentence each; empty if there is none.
        parameters: fields of the implementation that differ from their defaults.
        revision: raised when the search changes under the same name and parameters (decision page 0018).
    """

    name: str
    folder: str
    summary: str
    implementation: str
    kind: Literal["fixed-budget", "minimum-norm", "invariance", "fixed-input"]
    norms: tuple[Norm, ...]
    goal: str = ""
    cost: Literal["probe", "gradient", "search", "query"] = "gradient"
    paper: str = ""
    algorithm: str = ""
    deviations: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1


@dataclass(frozen=True)
class ModelCard:
    """A published model: ``models/NAME/card.toml``.

    Args:
        name: the folder's name.
        folder: folder of weights and golden logits.
        summary: one sentence.
        dataset: name of its data set, with parameters if necessary.
        implementation: ``module:factory``.
        num_classes: number of logits.
        bounds: smallest and largest value of an input element.
        shape: shape of an input; empty if it follows from the data set.
        parameters: arguments of the factory.
        paper: the publication.
        weights_sha256: SHA-256 of weights.safetensors; None for a model without training.
        training: recipe, seed, epochs, clean accuracies; for the reader.
        stochastic: does its output depend on random draws?
        capabilities: protocols that it implements in addition to Classifier, for the reader.
        fits_dataset: is it built for the evaluated data set (spheres)?
        trained_on: data sets whose images it was trained on; its clean accuracy there means nothing (C40).
        revision: raised when outputs change under the same card and weights (decision page 0018).
    """

    name: str
    folder: str
    summary: str
    dataset: str
    implementation: str
    num_classes: int
    bounds: tuple[float, float]
    shape: tuple[int, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    weights_sha256: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    stochastic: bool = False
    capabilities: tuple[str, ...] = ()
    fits_dataset: bool = False
    trained_on: tuple[str, ...] = ()
    revision: int = 1


@dataclass(frozen=True)
class SuiteEntry:
    """One attack of a suite and its threat.

    Args:
        attack: its name.
        threat: name or text of the threat.
        samples: largest number of samples; None for no limit.
        optional: skip it with a warning if it is incompatible with model or data.
    """

    attack: str
    threat: str
    samples: int | str | None = None
    optional: bool = False


@dataclass(frozen=True)
class SuiteCard:
    """A named list of attacks and threats: ``attacks/suites/NAME.toml``.

    Args:
        name: the file's stem.
        folder: folder of the file.
        summary: one sentence.
        runs: the attacks and their threats.
        probes: checks of the models: ``usual``, or ``deep``, which adds hundreds of passes.
        paper: source of the list.
    """

    name: str
    folder: str
    summary: str
    runs: tuple[SuiteEntry, ...]
    probes: Literal["usual", "deep"] = "usual"
    paper: str = ""


@dataclass(frozen=True)
class ThreatCard:
    """A named budget: ``attacks/threats/NAME.toml``.

    Args:
        name: the file's stem.
        folder: folder of the file.
        summary: one sentence.
        norm: norm of the distances.
        epsilons: an ascending sweep; empty for no budget.
        goal: the attacker's goal; empty for the attack's default.
        access: the attacker's access to the model.
        substitute: queried model (access transfer) or source of gradients (access score); empty for none, or for the
            one in the threat's text (``NAME:substitute=MODEL``).
        oracle: gives the true class of a changed input; empty for the data set's default.
        paper: source of the budget.
    """

    name: str
    folder: str
    summary: str
    norm: Norm
    epsilons: tuple[float, ...] = ()
    goal: str = ""
    access: Literal["white-box", "score", "decision", "transfer"] = "white-box"
    substitute: str = ""
    oracle: str = ""
    paper: str = ""


@dataclass(frozen=True)
class OracleCard:
    """A panel of models that votes on the class of an input: ``attacks/oracles/NAME.toml``.

    Args:
        name: the file's stem.
        folder: folder of the file.
        summary: one sentence.
        members: independently trained models of different architectures.
        rule: ``majority``: the class of more than half of the members; ``unanimous``: the class of all members.
            Without such a class the result is unknown. ``pool``: the class of the largest weighted mean of the
            members' probabilities, unknown below ``threshold``.
        paper: source of the panel.
        weights, temperatures, threshold: of a ``pool``, as in ``evaluation.panel.Pooling``.
        detection: changes that it reports, by the member that is left out, "" for none; empty for changed parameters.
    """

    name: str
    folder: str
    summary: str
    members: tuple[str, ...]
    rule: Literal["majority", "unanimous", "pool"] = "majority"
    paper: str = ""
    weights: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()
    threshold: float = 0.5
    detection: Mapping[str, ChangeDetection] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetCard:
    """A data set of the catalogue; ``parameters`` are its defaults."""

    name: str
    summary: str
    num_classes: int
    shape: tuple[int, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)


CatalogueCard = AttackCard | ModelCard | SuiteCard | ThreatCard | OracleCard | DatasetCard
FileCard = TypeVar("FileCard", AttackCard, ModelCard, SuiteCard, ThreatCard, OracleCard)


def read_attack(path: Path) -> AttackCard:
    """Read a preset.

    Raises:
        BadCatalogue: for a file that is not TOML, or an invalid key or value.
    """
    card = _read(AttackCard, path, path.stem)
    if card.goal:
        _check_goal(card.goal, path)
    if ":" not in card.implementation:
        raise BadCatalogue(
            f"{path}: implementation does not fit",
            got=card.implementation,
            expected="module:Class, file.py:Class, foolbox:NAME, torchattacks:NAME or adv-lib:NAME",
        )
    if card.implementation.partition(":")[0] not in LIBRARY_PREFIXES:
        check_implementation(card.implementation, path)
    return card


def read_model(path: Path) -> ModelCard:
    """Read the card of a model, named after its folder; raises as read_attack does."""
    card = _read(ModelCard, path, path.parent.name)
    low, high = card.bounds
    if not low < high:
        raise BadCatalogue(f"{path}: bounds do not fit", got=card.bounds, expected="low < high")
    check_implementation(card.implementation, path)
    return card


def read_suite(path: Path) -> SuiteCard:
    """Read a suite; raises as read_attack does."""
    values = read_toml(path)
    values["runs"] = read_entries(values.get("runs"), path)
    return SuiteCard(**check_table(SuiteCard, {**values, **_place(path, path.stem)}, path))


def read_entries(runs: object, path: Path) -> list[SuiteEntry]:
    """Return the ``[[runs]]`` of a suite, with the absolute paths of their code; raises as read_attack does."""
    if not isinstance(runs, list) or not runs:
        raise BadCatalogue(
            f"{path}: a suite needs runs", expected="[[runs]] with attack and threat"
        )
    entries = [SuiteEntry(**check_table(SuiteEntry, run, path)) for run in runs]
    return [_located(entry, path) for entry in entries]


def read_threat(path: Path) -> ThreatCard:
    """Read a threat; raises as read_attack does."""
    card = _read(ThreatCard, path, path.stem)
    if card.goal:
        _check_goal(card.goal, path)
    return replace(
        card, substitute=locate_code(card.substitute, path.parent) if card.substitute else ""
    )


def read_oracle(path: Path, parameters: Mapping[str, object] | None = None) -> OracleCard:
    """Read a panel; raises as read_attack does.

    Args:
        path: of the file.
        parameters: values that replace its own, as in ``mnist-panel:rule=unanimous``.
    """
    values = {**read_toml(path), **(parameters or {})}
    every = dict(values.pop("detection", {}))
    reduced = every.pop("without", {})
    card = OracleCard(**check_table(OracleCard, {**values, **_place(path, path.stem)}, path))
    _check_pool(card, path)
    for left_out, counts in {"": every, **reduced}.items() if every and not parameters else ():
        found = check_table(ChangeDetection, {**every, **counts}, f"{path}: detection")
        member = left_out and locate_code(left_out, path.parent)
        card = replace(card, detection={**card.detection, member: ChangeDetection(**found)})
    return replace(card, members=tuple(locate_code(each, path.parent) for each in card.members))


def _check_pool(card: OracleCard, path: Path) -> None:
    """Raise BadCatalogue if the numbers of a pool do not fit."""
    if card.rule != "pool":
        if card.weights or card.temperatures:
            raise BadCatalogue(f"{path}: weights without a pool", got=card.rule, expected="pool")
        return
    for name in ("weights", "temperatures"):
        numbers = getattr(card, name)
        if len(numbers) != len(card.members) or min(numbers, default=0) <= 0:
            expected = f"{len(card.members)} numbers above 0, one for each member"
            raise BadCatalogue(f"{path}: unusable {name}", got=numbers, expected=expected)
    if not 0 <= card.threshold <= 1:
        raise BadCatalogue(f"{path}: unusable threshold", got=card.threshold, expected="0 to 1")


def read_toml(path: Path) -> dict[str, Any]:
    """Read any file of the catalogue.

    Raises:
        BadCatalogue: if it is not TOML, or repeats ``name`` or ``folder``.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else error
        raise BadCatalogue(f"{path}: cannot be read: {reason}") from error
    for key in ("name", "folder"):
        if key in values:
            raise BadCatalogue(
                f"{path}: unknown key {key}", remedy="remove it: the path of the file defines it"
            )
    return values


def check_table(kind: type[Any], values: object, place: Path | str) -> dict[str, Any]:
    """Return the values of a TOML table, converted to the types of a dataclass.

    Args:
        kind: the dataclass.
        values: the table.
        place: file or part of a file, for the error message.

    Raises:
        BadCatalogue: if ``values`` is no table, or a key is missing, unknown or of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise BadCatalogue(f"{place}: not a table", got=values)
    with explain_mismatch(BadCatalogue, str(place)):
        return check_fields(kind, values)


def to_json(card: "DataclassInstance") -> dict[str, Any]:
    """Return a card as plain values, without its folder."""
    return {key: value for key, value in asdict(card).items() if key != "folder"}


def _read(kind: type[FileCard], path: Path, name: str) -> FileCard:
    return kind(**check_table(kind, {**read_toml(path), **_place(path, name)}, path))


def _located(entry: SuiteEntry, path: Path) -> SuiteEntry:
    attack, threat = (
        locate_code(entry.attack, path.parent),
        locate_threat(entry.threat, path.parent),
    )
    return replace(entry, attack=attack, threat=threat)


def _place(path: Path, name: str) -> dict[str, str]:
    return {"name": name, "folder": str(path.parent)}


def _check_goal(goal: str, path: Path) -> None:
    name = goal.partition(":")[0]
    if name not in GOALS:
        raise BadCatalogue(f"{path}: unknown goal", got=goal, remedy=suggest(name, GOALS))
