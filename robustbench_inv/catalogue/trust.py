"""Decides which code a catalogue file may name: the package, plugins, its own files, and what the user trusts."""

import os
from pathlib import Path

from robustbench_inv.catalogue.locate import (
    CATALOGUE_FOLDERS,
    catalogue_roots,
    plugin_packages,
    shipped_root,
)
from robustbench_inv.errors import BadCatalogue, UsageError

__all__ = ["TRUST_VARIABLE", "check_definition", "check_file", "check_module", "trusted_name"]

TRUST_VARIABLE = "INVBENCH_TRUST"
"""Environment variable with the modules and files that every catalogue file may name, separated as in PATH."""

PARTS = ("attacks", "experiments", "models", "testing", "training")
"""Sub-packages whose code a file may name. Other code of the package loads or writes whatever its arguments name."""


def check_module(module: str, folder: Path) -> None:
    """Check that a file of the catalogue may name a module.

    Args:
        module: dotted name, as the file writes it.
        folder: folder of the file.

    Raises:
        BadCatalogue: if the module belongs neither to the package nor to a plugin, and is not trusted.
    """
    if not (_is_shipped(folder) or _is_known(module) or _is_trusted(module)):
        raise BadCatalogue(
            f"a file in {folder} names code of a module that is not trusted",
            got=module,
            expected="a module of robustbench_inv or of a plugin, or a file in the same catalogue",
            remedy=f"if you trust it: invbench --trust {module.partition('.')[0]} …",
        )


def check_file(path: Path, folder: Path) -> None:
    """Check that a file of the catalogue may name a Python file.

    Args:
        path: the Python file; symbolic links are followed.
        folder: folder of the file that names it.

    Raises:
        BadCatalogue: if the Python file is outside the catalogue, and is not trusted.
    """
    root = _root(folder)
    trusted = {Path(each).expanduser().resolve() for each in _trusted() if each.endswith(".py")}
    inside = _is_shipped(folder) or path.resolve().is_relative_to(root)
    if not inside and path.resolve() not in trusted:
        raise BadCatalogue(
            f"a file in {folder} names code outside its catalogue",
            got=str(path),
            expected=f"a file in {root}",
            remedy=f"if you trust it: invbench --trust {path} …",
        )


def check_definition(found: object, reference: str, folder: Path) -> None:
    """Check that what a file names in a module of the package or of a plugin is defined in such a module.

    Args:
        found: the imported object.
        reference: ``module:Name``, as the file writes it.
        folder: folder of the file.

    Raises:
        BadCatalogue: for what such a module imports from elsewhere, such as ``os``.
    """
    place = reference.rpartition(":")[0]
    home = getattr(found, "__module__", None)
    if _is_shipped(folder) or _is_trusted(place):
        return
    if not isinstance(home, str) or not _is_known(home):
        raise BadCatalogue(
            f"{reference} is not defined in {place}",
            got=home or type(found).__name__,
            expected="a class or function of that module",
        )


def trusted_name(text: str) -> str:
    """Return a module or file that the user trusts, as TRUST_VARIABLE holds it.

    Raises:
        UsageError: for a file that does not exist, or what is neither a module nor a Python file.
    """
    if text.endswith(".py") and Path(text).is_file():
        return str(Path(text).resolve())
    if text.endswith(".py") or not all(part.isidentifier() for part in text.split(".")):
        raise UsageError("cannot trust this", got=text, expected="a module, or an existing FILE.py")
    return text


def _root(folder: Path) -> Path:
    """Return the innermost catalogue that contains a folder, or the folder itself if none does."""
    place, shipped = folder.resolve(), shipped_root().resolve()
    roots = [root for root in catalogue_roots() if place.is_relative_to(root) and root != shipped]
    return max(roots, key=lambda root: len(root.parts), default=place)


def _is_shipped(folder: Path) -> bool:
    """Return whether a folder belongs to the shipped catalogue; a checkout contains other folders as well."""
    place, shipped = folder.resolve(), shipped_root().resolve()
    return any(place.is_relative_to(shipped / part) for part in CATALOGUE_FOLDERS)


def _is_known(module: str) -> bool:
    package, _, rest = module.partition(".")
    if package == "robustbench_inv":
        return rest.partition(".")[0] in PARTS
    return package in plugin_packages()


def _is_trusted(module: str) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in _trusted())


def _trusted() -> list[str]:
    return [each for each in os.environ.get(TRUST_VARIABLE, "").split(os.pathsep) if each]
