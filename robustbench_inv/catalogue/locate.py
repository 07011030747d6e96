"""Where the catalogue is: shipped in the wheel or in a checkout, from plugins, and from ``--catalogue``."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from robustbench_inv.catalogue.plugins import find_plugins
from robustbench_inv.catalogue.references import nearest, suggest
from robustbench_inv.errors import BadCatalogue, UnknownName

__all__ = ["CATALOGUE_VARIABLE", "Kind", "catalogue_roots", "entries", "find", "shipped_root"]

CATALOGUE_VARIABLE = "INVBENCH_CATALOGUE"
"""Environment variable with further catalogue folders, separated as in PATH."""

Kind = Literal["models", "attacks", "suites", "threats", "oracles", "reports", "reproductions"]

_PLACES: dict[Kind, str] = {
    "models": "models/*/card.toml",
    "attacks": "attacks/presets/*.toml",
    "suites": "attacks/suites/*.toml",
    "threats": "attacks/threats/*.toml",
    "oracles": "attacks/oracles/*.toml",
    "reports": "reports/definitions/*.toml",
    "reproductions": "reports/definitions/*/*-*.toml",
}
"""Where the file of an entry is. A reproduction is called PAPER/ITEM, and every ITEM has a hyphen, as in table-1;
what the items of a paper share, protocol.toml beside them, has none."""


def catalogue_roots() -> tuple[Path, ...]:
    """Return the folders that hold ``attacks/presets``, ``models`` and so on, the shipped one first.

    Raises:
        BadCatalogue: if a folder of INVBENCH_CATALOGUE (``--catalogue``) does not exist.
    """
    roots = (shipped_root(), *_named_roots(), *find_plugins().roots)
    return tuple(dict.fromkeys(root.resolve() for root in roots))


def entries(kind: Kind) -> dict[str, Path]:
    """Return the file of each entry by name; an earlier root wins, so that names are stable."""
    found: dict[str, Path] = {}
    for root in catalogue_roots():
        for path in sorted(root.glob(_PLACES[kind])):
            found.setdefault(_name(kind, path), path)
    return found


def find(kind: Kind, name: str) -> Path:
    """Return the file of one entry.

    Raises:
        UnknownName: if there is none; the remedy names the nearest ones, also of other kinds.
    """
    known = entries(kind)
    if name not in known:
        remedy = _remedy(kind, name, known)
        raise UnknownName(f"no {_singular(kind)} is called {name}", remedy=remedy)
    return known[name]


@cache
def shipped_root() -> Path:
    """Return the catalogue that came with this package: in the wheel beside the code, else the checkout's.

    Raises:
        BadCatalogue: if neither is there.
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


def _name(kind: Kind, path: Path) -> str:
    if kind == "reproductions":
        return f"{path.parent.name}/{path.stem}"
    return path.parent.name if kind == "models" else path.stem


def _singular(kind: Kind) -> str:
    return kind.removesuffix("s")


def _remedy(kind: Kind, name: str, known: dict[str, Path]) -> str:
    near = nearest(name, known)
    elsewhere = [other for other in _PLACES if other != kind and name in entries(other)]
    if not near and elsewhere:
        near = f"{name} is among the {elsewhere[0]}"
    return "; ".join([near or suggest(name, known), *find_plugins().problems])
