"""Benchmark files of ``invbench run``: models, data sets, suites, budgets and seeds, with the runs of a suite."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from robustbench_inv.catalogue.cards import (
    SuiteEntry,
    check_table,
    read_entries,
    read_toml,
)
from robustbench_inv.catalogue.references import (
    MODEL_LIBRARIES,
    locate_code,
    locate_threat,
    parse_source,
)
from robustbench_inv.errors import BadCatalogue

__all__ = ["Benchmark", "read_benchmark"]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as a file: every model on every data set, under every suite, threat and seed.

    Args:
        models: references; ``LABEL=REFERENCE`` sets a label.
        datasets: references; empty for the data set of each model's card.
        suites: names of suites.
        threats: budgets that replace those of the suites; empty for the suites' own.
        runs: further attacks with their threats, as a suite lists them.
        seeds: random seeds.
        samples: N, ``first:N``, or None for all.
        probes: checks of the models, as in a suite.
        summary: one sentence.
        paper: source of the benchmark.
    """

    models: tuple[str, ...]
    datasets: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    threats: tuple[str, ...] = ()
    runs: tuple[SuiteEntry, ...] = ()
    seeds: tuple[int, ...] = (0,)
    samples: int | str | None = None
    probes: Literal["usual", "deep"] = "usual"
    summary: str = ""
    paper: str = ""


def read_benchmark(path: Path) -> Benchmark:
    """Read a benchmark; paths of code and data are relative to the file, and become absolute except in ``models``.

    Raises:
        BadCatalogue: for a file that is not TOML, an invalid key or value, or code that the file may not name.
    """
    values = read_toml(path)
    if "runs" in values:
        values["runs"] = read_entries(values["runs"], path)
    card = Benchmark(**check_table(Benchmark, values, path))
    for key in ("models", "seeds"):
        if not getattr(card, key):
            raise BadCatalogue(f"{path}: {key} is empty", expected="at least one")
    if not (card.suites or card.runs):
        expected = 'suites = ["standard"], or [[runs]] with attack and threat'
        raise BadCatalogue(f"{path}: nothing to attack with", expected=expected)
    if card.threats and not card.suites:
        remedy = "give each of the runs its own threat"
        raise BadCatalogue(
            f"{path}: threats are those of suites, and there are none", remedy=remedy
        )
    folder = path.resolve().parent
    return replace(
        card,
        datasets=tuple(_dataset(each, folder) for each in card.datasets),
        threats=tuple(locate_threat(each, folder) for each in card.threats),
    )


def _dataset(text: str, folder: Path) -> str:
    """Return a data set with the absolute paths of its code, or of the files that it is read from."""
    source = parse_source(text)
    if source is None or source[0] in MODEL_LIBRARIES:
        return text
    kind, reference = source
    if kind == "code":
        tail = text.strip()[len(reference.name) :]
        return locate_code(reference.name, folder) + tail
    place = text.strip()[len(kind) + 1 :]
    tail = re.sub(
        r"\b(labels|classes)=([^,]+)",
        lambda found: f"{found[1]}={_absolute(found[2], folder)}",
        place[len(reference.name) :],
    )
    return f"{kind}:{_absolute(reference.name, folder)}{tail}"


def _absolute(path: str, folder: Path) -> Path:
    return (folder / Path(path.strip()).expanduser()).resolve()
