"""``invbench new``: writes an installable plugin with its tests."""

import keyword
import re
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_inv.cli.options import Json, folder_option, print_path
from robustbench_inv.cli.output import print_message

if TYPE_CHECKING:
    from robustbench_inv.catalogue.locate import FileKind

__all__ = ["new"]

SCAFFOLD = Path(__file__).parent / "scaffold"
"""Files of each kind, with ``.in`` appended; ``$name``, ``$package``, ``$class_name`` and ``$kind`` are replaced, in their paths too."""


class PluginKind(StrEnum):
    """What a plugin can add."""

    attack = "attack"
    model = "model"
    oracle = "oracle"
    dataset = "dataset"


KINDS: dict[PluginKind, "FileKind"] = {
    PluginKind.attack: "attacks",
    PluginKind.model: "models",
    PluginKind.oracle: "oracles",
}
"""Kinds of catalogue entries; a data set has none."""


def new(
    kind: Annotated[PluginKind, typer.Argument(metavar="KIND", help="What the plugin adds.")],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its name: lower-case letters, digits, hyphens.")
    ],
    out: Annotated[Path | None, folder_option("Write the plugin to this folder.", "NAME")] = None,
    json: Json = False,
) -> None:
    """Write a plugin that can be installed and tested: code, card, tests, README.

    It works as it is; replace the parts that its README names with your own.
    """
    from robustbench_inv.catalogue.locate import entries
    from robustbench_inv.errors import BadParameter, BadResults
    from robustbench_inv.results.files import explain_write_errors

    package = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(package):
        expected = "lower-case letters, digits, hyphens"
        raise BadParameter("unusable name of a plugin", got=name, expected=expected)
    if kind is not PluginKind.dataset and name in entries(KINDS[kind]):
        remedy = "choose another name: the shipped one would win"
        raise BadParameter(f"the catalogue has this {kind.value}", got=name, remedy=remedy)
    folder = out or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadResults(
            f"{folder} exists", expected="a new or empty folder", remedy="--out FOLDER"
        )
    words = {
        "kind": kind.value,
        "name": name,
        "package": package,
        "class_name": "".join(part.capitalize() for part in name.split("-")),
    }
    with explain_write_errors(folder):
        for path, text in plugin_files(kind.value, words).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    step = f"read {folder / 'README.md'}, which names the commands"
    print_path(folder, json=json, key="plugin", next=step)
    if not json:
        print_message(f"next: {step}")


def plugin_files(kind: str, words: dict[str, str]) -> dict[str, str]:
    """Return the text of each file of a plugin, by its path below the plugin's folder."""
    found = {}
    for root in (SCAFFOLD / "common", SCAFFOLD / kind):
        for path in sorted(each for each in root.rglob("*") if each.is_file()):
            place = Template(str(path.relative_to(root).with_suffix(""))).substitute(words)
            found[place] = Template(path.read_text("utf-8")).substitute(words)
    return found
