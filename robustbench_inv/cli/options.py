"""The options that several commands share, each with its one help text."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchSize",
    "Checks",
    "DataRoot",
    "Device",
    "DryRun",
    "EntryKind",
    "Existing",
    "ExistingOption",
    "Json",
    "SamplesOption",
    "Seed",
    "Workers",
    "int_or_text",
    "option",
]


option = partial(typer.Option, show_envvar=False)
"""An option; its environment variable INVBENCH_<COMMAND>_<OPTION> is left out of the help."""


class EntryKind(StrEnum):
    """The kinds of entry."""

    models = "models"
    attacks = "attacks"
    datasets = "datasets"
    suites = "suites"
    threats = "threats"
    oracles = "oracles"
    reproductions = "reproductions"


class Existing(StrEnum):
    """EntryKind to do about records that are already there."""

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

SamplesOption = Annotated[
    str | None,
    option(metavar="N|first:N", help="A fixed balanced draw, or the first.", show_default="all"),
]

Seed = Annotated[int, option(help="Of all random numbers.")]

DryRun = Annotated[bool, option("--dry-run", help="Print the cells and what they will cost.")]

BatchSize = Annotated[int | None, option(min=1, help="Samples of a block.")]

Workers = Annotated[str, option(help="Number of processes, or ray.")]

Checks = Annotated[bool, option(help="Run the validity checks.")]


def int_or_text(text: str) -> int | str:
    """Return the number that a text is, or the text where it is none (``first:100``, ``ray``)."""
    return int(text) if text.removeprefix("-").isdecimal() else text
