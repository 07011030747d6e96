"""Finds the catalogue: shipped in the wheel or in a checkout, from plugins, and from ``--catalogue``."""

import importlib.util
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal

from robustbench_inv.errors import (
    BadCatalogue,
    UnknownName,
    describe_error,
    did_you_mean,
    suggest,
)
from robustbench_inv.foreign import foreign_call

__all__ = [
    "CATALOGUE_FOLDERS",
    "CATALOGUE_VARIABLE",
    "ENTRY_POINT_GROUP",
    "FileKind",
    "Plugins",
    "catalogue_roots",
    "entries",
    "find",
    "find_plugins",
    "plugin_packages",
    "shadowed",
    "shipped_root",
    "unread",
]


ENTRY_POINT_GROUP = "robustbench_inv.catalogues"
"""Entry points of this group name a package whose folder is a catalogue, or ``module:name`` of a catalogue's path
or of a function that returns the path."""


CATALOGUE_FOLDERS = ("attacks", "models", "reports")
"""The folders of a catalogue; a plugin has at least one of them."""


@dataclass(frozen=True)
class Plugins:
    """The catalogues of plugins, and one line for each plugin that cannot be read."""

    roots: tuple[Path, ...]
    problems: tuple[str, ...]


PLUGIN_SECONDS = 20.0
"""Time limit in which a plugin must name its catalogue, if the user sets none; it may have to import torch."""


@cache
def find_plugins() -> Plugins:
    """Find the plugins of this Python environment, once in a process."""
    roots, problems = [], []
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        try:
            with foreign_call(f"plugin {point.name}", PLUGIN_SECONDS):
                roots.append(_folder(point))
        except Exception as error:  # an error of one plugin must not hide the others
            problems.append(f"plugin {point.name} is broken: {describe_error(error)}")
    return Plugins(tuple(roots), tuple(problems))


@cache
def plugin_packages() -> frozenset[str]:
    """Return the top-level packages of the plugins of this Python environment, without importing them."""
    points = entry_points(group=ENTRY_POINT_GROUP)
    return frozenset(point.module.partition(".")[0] for point in points)


def _folder(point: EntryPoint) -> Path:
    folder = _returned(point) if point.attr else _package_folder(point.module)
    if not folder.is_dir():
        raise NotADirectoryError(f"its catalogue {folder} is not a folder")
    if not any((folder / part).is_dir() for part in CATALOGUE_FOLDERS):
        raise FileNotFoundError(
            f"{folder} has none of {', '.join(CATALOGUE_FOLDERS)}; are they in the wheel?"
        )
    return folder


def _returned(point: EntryPoint) -> Path:
    found = point.load()
    return Path(found() if callable(found) else found)


def _package_folder(package: str) -> Path:
    # found without importing it: a listing must not wait for the plugin's imports
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise ModuleNotFoundError(f"no package {package}")
    return Path(places[0])


CATALOGUE_VARIABLE = "INVBENCH_CATALOGUE"
"""Environment variable with further catalogue folders, separated as in PATH."""

FileKind = Literal["models", "attacks", "suites", "threats", "oracles", "reports", "reproductions"]

_PLACES: dict[FileKind, str] = {
    "models": "models/*/card.toml",
    "attacks": "attacks/presets/*.toml",
    "suites": "attacks/suites/*.toml",
    "threats": "attacks/threats/*.toml",
    "oracles": "attacks/oracles/*.toml",
    "reports": "reports/definitions/*.toml",
    "reproductions": "reports/definitions/*/*-*.toml",
}
"""Files of the entries. A reproduction's name is PAPER/ITEM, and every ITEM has a hyphen, as in table-1; the file
protocol.toml, which a paper's items share, has none."""


def catalogue_roots() -> tuple[Path, ...]:
    """Return the folders with ``attacks/presets``, ``models`` and so on, the shipped one first.

    Raises:
        BadCatalogue: if a folder of INVBENCH_CATALOGUE (``--catalogue``) does not exist.
    """
    roots = (shipped_root(), *_named_roots(), *find_plugins().roots)
    return tuple(dict.fromkeys(root.resolve() for root in roots))


def entries(kind: FileKind) -> dict[str, Path]:
    """Return the file of each entry by name; an earlier root wins, so that names are stable."""
    return {name: paths[0] for name, paths in _files(kind).items()}


def shadowed(kinds: Iterable[FileKind] | None = None) -> tuple[str, ...]:
    """Return one line for each file whose name an earlier root, such as the shipped catalogue, has already.

    Args:
        kinds: kinds of entries; None for all.
    """
    found = []
    shipped = shipped_root().resolve()
    for kind in _PLACES if kinds is None else kinds:
        for name, (first, *others) in _files(kind).items():
            owner = (
                f"the shipped {_singular(kind)}" if first.is_relative_to(shipped) else str(first)
            )
            found += [
                f"{path} is not used: {owner} {name} has its name; rename it" for path in others
            ]
    return tuple(found)


COMPANIONS = ("recipe.toml", "queue.toml", "protocol.toml")
"""Files beside those of the entries that other commands read."""


def unread() -> tuple[str, ...]:
    """Return one line for each TOML file in the folders of added catalogues and plugins that no entry is read from."""
    shipped, *others = catalogue_roots()
    read = {path for kind in _PLACES for paths in _files(kind).values() for path in paths}
    return tuple(line for root in others if root != shipped for line in _unread(root, read))


def _unread(root: Path, read: set[Path]) -> Iterator[str]:
    if not any((root / part).is_dir() for part in CATALOGUE_FOLDERS):
        yield f"{root} adds nothing: a catalogue has a folder {' or '.join(CATALOGUE_FOLDERS)}"
    for part in CATALOGUE_FOLDERS:
        for depth in ("*", "*/*", "*/*/*"):
            for path in sorted((root / part).glob(f"{depth}.toml")):
                if path not in read and path.name not in COMPANIONS:
                    yield f"{path} is not read: entries are {_places(part)}"


def _places(part: str) -> str:
    return ", ".join(place for place in _PLACES.values() if place.startswith(f"{part}/"))


def _files(kind: FileKind) -> dict[str, list[Path]]:
    """Return the files of each name, that of the earliest root first."""
    found: dict[str, list[Path]] = {}
    for root in catalogue_roots():
        for path in sorted(root.glob(_PLACES[kind])):
            found.setdefault(_name(kind, path), []).append(path)
    return found


def find(kind: FileKind, name: str) -> Path:
    """Return the file of one entry.

    Raises:
        UnknownName: for an unknown name, with the closest names, also of other kinds.
    """
    known = entries(kind)
    if name not in known:
        remedy = _remedy(kind, name, known)
        raise UnknownName(f"no {_singular(kind)} is called {name}", remedy=remedy)
    return known[name]


@cache
def shipped_root() -> Path:
    """Return the shipped catalogue: in the wheel beside the code, else that of the checkout.

    Raises:
        BadCatalogue: if neither exists.
    """
    package = Path(__file__).resolve().parent.parent
    for root in (package / "_catalogue", package.parent):
        if (root / "attacks" / "presets").is_dir() and (root / "models").is_dir():
            return root
    raise BadCatalogue("the shipped catalogue is missing", remedy="install robustbench-inv again")


def _named_roots() -> Iterator[Path]:
    for text in os.environ.get(CATALOGUE_VARIABLE, "").split(os.pathsep):
        if text:
            root = Path(text).expanduser()
            if not root.is_dir():
                raise BadCatalogue("no such catalogue folder", got=text)
            yield root


def _name(kind: FileKind, path: Path) -> str:
    if kind == "reproductions":
        return f"{path.parent.name}/{path.stem}"
    return path.parent.name if kind == "models" else path.stem


def _singular(kind: FileKind) -> str:
    return kind.removesuffix("s")


_FOREIGN_NAMES = {
    "aa": "write standard, an AutoAttack-style ensemble, or torchattacks:AutoAttack",
    "autoattack": "write standard, an AutoAttack-style ensemble, or torchattacks:AutoAttack",
    "apgdce": "write apgd:loss=ce",
    "apgddlr": "write apgd:loss=dlr",
    "apgdt": "write apgd-targeted",
    "bim": "write pgd, or torchattacks:BIM",
    "carliniwagner": "write cw, or minimum-norm",
    "cwl2": "write cw, or minimum-norm",
    "fab": "write minimum-norm, or torchattacks:FAB",
    "fabt": "write minimum-norm, or torchattacks:FABT",
    "ifgsm": "write pgd, or torchattacks:BIM",
    "squareattack": "write square",
}
"""What to write for attacks of other libraries, whose names are given without case and punctuation."""

WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".h5", ".pkl")
"""Endings of files that hold weights, not the network."""


def _hint(kind: FileKind, name: str) -> str:
    """Return what to write for a name that users of other tools try; empty for all others."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if kind == "attacks":
        return _FOREIGN_NAMES.get(plain, "")
    if kind == "models" and name.endswith(".py"):
        return f"name the network or the function that builds it: {name}:NAME"
    if kind == "models" and name.lower().endswith(WEIGHT_FILES):
        return "weights need their network: write FILE.py:FUNCTION, a function that builds the network and loads them"
    if kind == "threats" and name.replace("/", "").replace(".", "").isdecimal():
        return f"name the norm: linf={name}"
    return ""


def _remedy(kind: FileKind, name: str, known: dict[str, Path]) -> str:
    near = _hint(kind, name) or did_you_mean(name, known)
    elsewhere = [other for other in _PLACES if other != kind and name in entries(other)]
    if not near and elsewhere:
        near = f"{name} is among the {elsewhere[0]}"
    return "; ".join([near or suggest(name, known), *find_plugins().problems])
