"""The options that several commands share, each with its one help text."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DataRoot", "Device", "Existing", "ExistingOption", "Json", "What", "option"]


option = partial(typer.Option, show_envvar=False)
"""An option; its environment variable INVBENCH_<COMMAND>_<OPTION> is left out of the help."""


class What(StrEnum):
    """The kinds of entry."""

    models = "models"
    attacks = "attacks"
    datasets = "datasets"
    suites = "suites"
    threats = "threats"


class Existing(StrEnum):
    """What to do about records that are already there."""

    resume = "resume"
    skip = "skip"
    redo = "redo"


Json = Annotated[bool, option("--json", help="Print JSON on standard output.")]

DataRoot = Annotated[
    Path | None,
    typer.Option(
        envvar="INVBENCH_DATA",
        help="Folder with a folder for each data set.",
        show_default="the user's cache",
    ),
]

Device = Annotated[str, option(help="Where models compute: cpu, cuda, cuda:1, mps.")]

ExistingOption = Annotated[
    Existing,
    option(help="What to do with cells that have records: go on, leave them, or start again."),
]
