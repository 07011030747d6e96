"""Plugins: installed packages that bring a catalogue of their own, found by their entry points."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

__all__ = ["GROUP", "Plugins", "find_plugins"]

GROUP = "robustbench_inv.catalogues"
"""An entry point of this group names a package whose folder is a catalogue, or ``module:name`` of the
path of one, or of a function that returns it."""


PARTS = ("attacks", "models", "reports")
"""The folders of a catalogue, of which a plugin brings one at least."""


@dataclass(frozen=True)
class Plugins:
    """The catalogues that plugins brought, and one line for each plugin that could not be read."""

    roots: tuple[Path, ...]
    problems: tuple[str, ...]


@cache
def find_plugins() -> Plugins:
    """Find the plugins of this Python environment; looked for once in a process."""
    roots, problems = [], []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            roots.append(_folder(point))
        except Exception as error:  # whatever a plugin raises must not stop the others
            problems.append(f"plugin {point.name} is broken: {type(error).__name__}: {error}")
    return Plugins(tuple(roots), tuple(problems))


def _folder(point: EntryPoint) -> Path:
    folder = _returned(point) if point.attr else _package_folder(point.module)
    if not folder.is_dir():
        raise NotADirectoryError(f"its catalogue {folder} is not a folder")
    if not any((folder / part).is_dir() for part in PARTS):
        raise FileNotFoundError(f"{folder} has none of {', '.join(PARTS)}; are they in the wheel?")
    return folder


def _returned(point: EntryPoint) -> Path:
    found = point.load()
    return Path(found() if callable(found) else found)


def _package_folder(package: str) -> Path:
    # found without importing it: a listing must not wait for what the plugin imports
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise ModuleNotFoundError(f"no package {package}")
    return Path(places[0])
