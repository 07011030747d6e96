"""Lists the catalogue: every entry of a kind, and one line for each that cannot be read."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from robustbench_inv.catalogue.cards import (
    CatalogueCard,
    DatasetCard,
    ModelCard,
    read_attack,
    read_model,
    read_oracle,
    read_suite,
    read_threat,
    to_json,
)
from robustbench_inv.catalogue.locate import entries, find_plugins, shadowed, unread
from robustbench_inv.catalogue.references import import_object, parse_reference
from robustbench_inv.errors import BadCatalogue, MissingExtra, UnknownName, suggest

if TYPE_CHECKING:
    from robustbench_inv.catalogue.reproduction import Reproduction

__all__ = [
    "CATALOGUE_KINDS",
    "CatalogueKind",
    "Listing",
    "library_attacks",
    "list_entries",
    "models_like",
    "show_entry",
]

CatalogueKind = Literal[
    "models", "attacks", "datasets", "suites", "threats", "oracles", "reproductions"
]
CATALOGUE_KINDS: tuple[CatalogueKind, ...] = get_args(CatalogueKind)


@dataclass(frozen=True)
class Listing:
    """The entries of one kind as plain values, and the errors of unreadable ones, one line each."""

    entries: tuple[dict[str, Any], ...]
    problems: tuple[str, ...]


def models_like(text: str, dataset: str | None = None) -> list[str]:
    """Return the models of the catalogue whose names fit a pattern such as ``mnist-*``; other texts as they are.

    Args:
        text: a model as the user gives it, or a pattern with * or ?, without parameters.
        dataset: data set of the evaluation; only models of its data fit. None for all.

    Raises:
        UnknownName: if no model fits.

    Example:
        >>> models_like("mnist-cnn"), models_like("mnist-cnn?at", "mnist5k")
        (['mnist-cnn'], ['mnist-cnn-at'])
    """
    if not ({"*", "?"} & set(text)) or {":", "/", "="} & set(text) or Path(text).exists():
        return [text]
    named = {name: path for name, path in entries("models").items() if fnmatchcase(name, text)}
    found = [name for name, path in named.items() if _has_data(read_model(path), dataset)]
    if not found:
        where = f" of {dataset}" if dataset else ""
        raise UnknownName(
            f"no model{where} fits the pattern", got=text, remedy="invbench list models"
        )
    return sorted(found)


def _has_data(card: ModelCard, dataset: str | None) -> bool:
    from robustbench_inv.catalogue.datasets import evaluation_dataset  # listings stay fast

    return dataset in (None, card.dataset, evaluation_dataset(vars(card)))


def list_entries(kind: CatalogueKind) -> Listing:
    """Return every entry of a kind; a broken one is reported and does not hide the others."""
    if kind == "datasets":
        return Listing(tuple(map(to_json, _datasets())), ())
    found, problems = [], [*find_plugins().problems, *shadowed([kind]), *unread()]
    for path in entries(kind).values():
        try:
            found.append(to_json(_READERS[kind](path)))
        except BadCatalogue as error:
            problems.append(str(error))
    return Listing(tuple(found), tuple(problems))


def library_attacks() -> Listing:
    """Return every attack of Foolbox, torchattacks and adversarial-library with its ``--attack`` name; imports them."""
    from robustbench_inv.catalogue.attacks import LIBRARIES

    found, problems = [], []
    for library, implementation in LIBRARIES.items():
        try:
            adapter: Any = import_object(implementation)
            names = [f"{library}:{name}" for name in adapter.names()]
        except MissingExtra as error:
            names = []
            problems.append(str(error))
        found += [{"name": name, "summary": f"as {library} implements it"} for name in names]
    return Listing(tuple(found), tuple(problems))


def show_entry(
    name: str, kind: CatalogueKind | None = None
) -> tuple[CatalogueKind, dict[str, Any]]:
    """Return the kind and the card of an entry; an attack's card has all its parameters.

    Args:
        name: name of an entry; an attack may have parameters, or be code (``file.py:Class``).
        kind: kind of the entry; None for all kinds, in the order of CATALOGUE_KINDS.

    Raises:
        UnknownName: for an unknown name, with the closest names.
    """
    from robustbench_inv.catalogue.attacks import load_attack

    plain = parse_reference(name).name
    for each in (kind,) if kind else CATALOGUE_KINDS:
        if each == "attacks" and (":" in plain or plain in entries(each)):
            return each, load_attack(name).card
        for card in list_entries(each).entries:
            if card["name"] == plain:
                return each, card
    known = {card["name"] for each in CATALOGUE_KINDS for card in list_entries(each).entries}
    raise UnknownName(f"nothing is called {name}", remedy=suggest(plain, known))


def _read_reproduction(path: Path) -> "Reproduction":
    from robustbench_inv.catalogue.reproduction_file import read_reproduction

    return read_reproduction(path)


_READERS: dict[CatalogueKind, Callable[[Path], "CatalogueCard | Reproduction"]] = {
    "models": read_model,
    "attacks": read_attack,
    "suites": read_suite,
    "threats": read_threat,
    "oracles": read_oracle,
    "reproductions": _read_reproduction,
}


def _datasets() -> list[DatasetCard]:
    from robustbench_inv.data.registry import DATASETS

    return [
        DatasetCard(
            known.name, known.summary, known.num_classes, known.shape, dict(known.parameters)
        )
        for known in DATASETS.values()
    ]
