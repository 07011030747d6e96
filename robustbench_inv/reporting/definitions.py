"""Report definitions: which records make which table and figure, read from ``reports/definitions/*.toml``."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from robustbench_inv.arguments import check_text
from robustbench_inv.catalogue.fields import Mismatch, check_fields, explain_mismatch
from robustbench_inv.catalogue.locate import entries
from robustbench_inv.errors import BadCatalogue, UnknownName, suggest
from robustbench_inv.results.cell import FinishedCell

__all__ = [
    "Definition",
    "FigureKind",
    "Section",
    "Selection",
    "TableKind",
    "load_definition",
    "read_definition",
]

DEFINITION_VERSION = 1

TableKind = Literal[
    "worst",
    "accuracy",
    "breakers",
    "distances",
    "invariance",
    "agreement",
    "metamers",
    "rejection",
    "comparison",
    "two-failures",
    "cells",
]
"""``worst``: worst case over attacks. ``accuracy``: every attack along its sweep. ``breakers``: samples that each
member of an ensemble attack broke. ``distances``: minimum-norm attacks. ``invariance``: unchanged predictions,
changed classes, and the oracle's error rate. ``agreement``: fixed inputs of a data set. ``metamers``: metamers after
clipping and rounding. ``rejection``: models with a reject option. ``comparison``: paired differences of models.
``two-failures``: distances to a changed prediction and to a missed change of the class.
``cells``: cost and status of every cell."""

FigureKind = Literal["curves", "classes", "distances", "two-failures", "risk", "images"]
"""``curves``: robust accuracy against eps. ``classes``: accuracy against distance, by class. ``distances``: share of
samples that are broken within a distance. ``two-failures``: sensitivity against invariance. ``risk``: errors among accepted inputs, by coverage. ``images``: clean and
adversarial inputs."""


@dataclass(frozen=True)
class Selection:
    """Selects cells by shell-style patterns, of which one must fit; no pattern selects all.

    Example:
        >>> Selection(models=("mnist-*",)).matches(model="mnist-cnn", norm="linf")
        True
    """

    models: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    goals: tuple[str, ...] = ()

    def matches(self, **names: str) -> bool:
        """Do names, given as ``model="mnist-cnn"`` and so on, fit the patterns?"""
        return all(_matches(name, getattr(self, key + "s")) for key, name in names.items())

    def matches_cell(self, cell: FinishedCell) -> bool:
        """Do the labels, the data set, the norm and the goal of a cell fit the patterns?"""
        return self.matches(
            model=cell.model_label,
            attack=cell.attack_label,
            dataset=cell.dataset.name,
            norm=cell.norm,
            goal=cell.goal,
        )


@dataclass(frozen=True)
class Section:
    """One part of a report: a title, a sentence, and what it shows of the selected cells."""

    title: str
    text: str = ""
    tables: tuple[TableKind, ...] = ()
    figures: tuple[FigureKind, ...] = ()
    folded: bool = False
    select: Selection = field(default_factory=Selection)


@dataclass(frozen=True)
class Definition:
    """A report: the selected cells, its sections in order, and the interval of its rates.

    Args:
        name: the file's stem.
        title: of the report.
        sections: in the order of the report.
        text: what the report is for, a sentence or two.
        interval: of every share.
        images: columns of an image grid.
        select: what every section selects from.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    text: str = ""
    interval: Literal["wilson", "clopper-pearson"] = "wilson"
    images: int = 8
    select: Selection = field(default_factory=Selection)


def load_definition(name: str | None = None) -> Definition:
    """Return a definition by the name it has in the catalogue, or by its path; ``default`` without one.

    Raises:
        UnknownName: if the catalogue has none of that name.
        BadCatalogue: if the file cannot be read or has an unknown entry.
    """
    name = "default" if name is None else check_text(name, "report definition")
    if name.endswith(".toml"):
        return read_definition(Path(name))
    known = entries("reports")
    if name not in known:
        raise UnknownName("unknown report definition", got=name, remedy=suggest(name, known))
    return read_definition(known[name])


def read_definition(path: Path) -> Definition:
    """Read and check one file.

    Raises:
        BadCatalogue: if it cannot be read or has an unknown entry.
    """
    try:
        with explain_mismatch(BadCatalogue, path.name):
            return _definition(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BadCatalogue(f"unreadable report definition {path}", remedy=str(error)) from error


def _definition(name: str, value: dict[str, Any]) -> Definition:
    version = value.pop("version", None)
    if version != DEFINITION_VERSION:
        raise Mismatch(
            "version does not fit", got=version or "none", expected=str(DEFINITION_VERSION)
        )
    sections = tuple(_section(_table(each)) for each in value.pop("sections", ()))
    checked = check_fields(Definition, {"name": name, "sections": sections, **value})
    if not sections or checked.get("images", 1) < 1:
        raise Mismatch("a report needs a section and at least 1 column of images")
    return Definition(**{**checked, "select": _selection(checked)})


def _section(value: Mapping[str, Any]) -> Section:
    checked = check_fields(Section, value)
    return Section(**{**checked, "select": _selection(checked)})


def _selection(value: Mapping[str, Any]) -> Selection:
    return Selection(**check_fields(Selection, _table(value.get("select", {}))))


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Mismatch(
            "sections and select are tables", got=value, expected="[[sections]], [select]"
        )
    return value


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
