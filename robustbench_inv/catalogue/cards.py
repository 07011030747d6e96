"""Cards: what the catalogue says of an attack, model, suite, threat, oracle or data set, checked as it is read."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from robustbench_inv.catalogue.fields import check_fields, explain_mismatch
from robustbench_inv.errors import BadCatalogue, suggest

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
"""What a card's ``goal`` can be; ``target:label=3`` and ``keep-logits:tolerance=0.01`` take a parameter."""


@dataclass(frozen=True)
class AttackCard:
    """An attack with its parameters: ``attacks/presets/NAME.toml``.

    Args:
        name: the file's stem.
        folder: where the file lies; a relative ``file.py:Class`` is looked for there.
        summary: one sentence.
        implementation: ``module:Class``, ``file.py:Class``, ``foolbox:NAME`` or ``torchattacks:NAME``.
        kind: how the engine calls it (see ``attacks.protocol.Kind``).
        norms: the budgets it can be asked for.
        goal: what it wants, one of GOALS; by default to misclassify, or to keep the decision if it is an
            invariance attack.
        cost: of one sample: a few queries, gradient steps, a long search, or many queries.
        paper: where it was published; empty if nowhere.
        algorithm: the algorithm, section or equations of the paper, or what the attack does if no paper describes it.
        deviations: each difference from that algorithm, one sentence each; empty if there is none.
        parameters: fields of the implementation that differ from their defaults.
        revision: raised when the same name and parameters come to mean another search (decision page 0018).
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
        folder: where weights and golden logits lie.
        summary: one sentence.
        dataset: what it classifies; a data set name, with parameters if it needs them.
        implementation: ``module:factory``.
        num_classes: number of logits.
        bounds: least and largest value of an input element.
        shape: of one input; empty if it follows from the data set.
        parameters: arguments of the factory.
        paper: where it was published.
        weights_sha256: of weights.safetensors; None for a model that needs no training.
        training: recipe, seed, epochs, clean accuracies; for the reader.
        stochastic: does its answer depend on a latent draw?
        capabilities: protocols it fills besides Classifier, for the reader.
        fits_dataset: is it built for the data set it is given (spheres)?
        revision: raised when the same card and weights come to give other answers (decision page 0018).
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
    revision: int = 1


@dataclass(frozen=True)
class SuiteEntry:
    """One attack of a suite and its threat.

    Args:
        attack: its name.
        threat: its name, or the threat itself.
        samples: how many it gets; None for as many as asked for.
        optional: leave it out, and say so, where it does not fit model or data.
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
        folder: where the file lies.
        summary: one sentence.
        runs: the attacks and their threats.
        probes: how the models are probed besides: as ``usual``, or ``deep``, which costs hundreds of passes more.
        paper: where these attacks are customary.
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
        folder: where the file lies.
        summary: one sentence.
        norm: what distances are measured in.
        epsilons: an ascending sweep; empty for no budget.
        goal: what the attacker wants; empty leaves it to the attack.
        access: what the attacker sees of the model.
        substitute: a model to search on (access transfer) or to take gradients of (access score); empty for
            none, or for one that is named with the threat (``NAME:substitute=MODEL``).
        oracle: who says what class a changed input has; empty leaves it to the data set.
        paper: where this budget is customary.
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
    """A panel of models that says what class an input has: ``attacks/oracles/NAME.toml``.

    Args:
        name: the file's stem.
        folder: where the file lies.
        summary: one sentence.
        members: models, trained apart from one another and of different architectures.
        rule: ``majority``: the class that more than half of the members give; ``unanimous``: the one that all
            give. Where there is none, the panel does not know.
        paper: where such a panel was used.
    """

    name: str
    folder: str
    summary: str
    members: tuple[str, ...]
    rule: Literal["majority", "unanimous"] = "majority"
    paper: str = ""


@dataclass(frozen=True)
class DatasetCard:
    """A data set that can be opened by name; ``parameters`` are its defaults."""

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
        BadCatalogue: for a file that is no TOML, or a key or value that does not fit.
    """
    card = _read(AttackCard, path, path.stem)
    if card.goal:
        _check_goal(card.goal, path)
    if ":" not in card.implementation:
        raise BadCatalogue(
            f"{path}: implementation does not fit",
            got=card.implementation,
            expected="module:Class, file.py:Class, foolbox:NAME or torchattacks:NAME",
        )
    return card


def read_model(path: Path) -> ModelCard:
    """Read the card of a model, named after its folder; raises as read_attack does."""
    card = _read(ModelCard, path, path.parent.name)
    low, high = card.bounds
    if not low < high:
        raise BadCatalogue(f"{path}: bounds do not fit", got=card.bounds, expected="low < high")
    return card


def read_suite(path: Path) -> SuiteCard:
    """Read a suite; raises as read_attack does."""
    values = read_toml(path)
    runs = values.get("runs")
    if not isinstance(runs, list) or not runs:
        raise BadCatalogue(
            f"{path}: a suite needs runs", expected="[[runs]] with attack and threat"
        )
    values["runs"] = [SuiteEntry(**check_table(SuiteEntry, run, path)) for run in runs]
    return SuiteCard(**check_table(SuiteCard, {**values, **_place(path, path.stem)}, path))


def read_threat(path: Path) -> ThreatCard:
    """Read a threat; raises as read_attack does."""
    card = _read(ThreatCard, path, path.stem)
    if card.goal:
        _check_goal(card.goal, path)
    return card


def read_oracle(path: Path, parameters: Mapping[str, object] | None = None) -> OracleCard:
    """Read a panel; raises as read_attack does.

    Args:
        path: of the file.
        parameters: what replaces its own values, as in ``mnist-panel:rule=unanimous``.
    """
    values = {**read_toml(path), **(parameters or {})}
    return OracleCard(**check_table(OracleCard, {**values, **_place(path, path.stem)}, path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read any file of the catalogue.

    Raises:
        BadCatalogue: if it is no TOML, or says what its place says already.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise BadCatalogue(f"{path}: cannot be read: {error}") from error
    for key in ("name", "folder"):
        if key in values:
            raise BadCatalogue(f"{path}: unknown key {key}", remedy="the file's place says it")
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
    """Return a card as plain values, without the place of its file."""
    return {key: value for key, value in asdict(card).items() if key != "folder"}


def _read(kind: type[FileCard], path: Path, name: str) -> FileCard:
    return kind(**check_table(kind, {**read_toml(path), **_place(path, name)}, path))


def _place(path: Path, name: str) -> dict[str, str]:
    return {"name": name, "folder": str(path.parent)}


def _check_goal(goal: str, path: Path) -> None:
    name = goal.partition(":")[0]
    if name not in GOALS:
        raise BadCatalogue(f"{path}: unknown goal", got=goal, remedy=suggest(name, GOALS))
