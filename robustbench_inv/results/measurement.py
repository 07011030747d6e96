"""What was measured for a table or figure that no attack's records can tell, as one versioned file holds it."""

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_inv.errors import BadResults
from robustbench_inv.results.histogram import Spread
from robustbench_inv.results.seen import Seen
from robustbench_inv.results.summary import Rate

__all__ = ["Grid", "Line", "Measured", "Number", "Sheet", "read_measured_file", "to_gzip"]

VERSION = 1


@dataclass(frozen=True)
class Number:
    """One number of a table: a share of trials, or an amount.

    Args:
        row: what was measured.
        column: of which model, as the table calls it.
        value: the share, or the amount.
        trials: of a share; 0 for an amount.
        counted: positions of the trials that count towards the share, where they are known: two shares of the
            same trials can then be compared trial by trial.
    """

    row: str
    column: str
    value: float
    trials: int = 0
    counted: tuple[int, ...] | None = None

    @classmethod
    def of(cls, row: str, column: str, held: "np.typing.NDArray[np.bool_]") -> "Number":
        """Return the share of trials that hold, each known by its position."""
        counted = tuple(np.flatnonzero(held).tolist())
        return cls(row, column, len(counted) / len(held), len(held), counted)

    @property
    def rate(self) -> Rate | None:
        """The share with its interval; None for an amount."""
        return Rate(round(self.value * self.trials), self.trials) if self.trials else None


@dataclass(frozen=True)
class Grid:
    """Images to be looked at, in rows and columns.

    Args:
        name: for file names.
        title: a few words.
        caption: what is to be seen.
        rows: names on the left.
        groups: headings, and over how many columns each stands.
        images: (rows, columns, 1 or 3, height, width) of 0 to 255.
        heads: above each column; empty for none.
        words: beneath each image, row by row; a row without words may be empty.
    """

    name: str
    title: str
    caption: str
    rows: tuple[str, ...]
    groups: tuple[tuple[str, int], ...]
    images: Seen
    heads: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        pixels = base64.b64encode(np.ascontiguousarray(self.images).tobytes()).decode()
        return {**vars(self), "images": {"shape": list(self.images.shape), "pixels": pixels}}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Grid":
        """Read what ``to_json`` returned."""
        stored = found["images"]
        pixels = np.frombuffer(base64.b64decode(stored["pixels"]), dtype=np.uint8)
        return cls(
            **{key: str(found[key]) for key in ("name", "title", "caption")},
            rows=tuple(found["rows"]),
            groups=tuple((str(title), int(count)) for title, count in found["groups"]),
            images=pixels.reshape(stored["shape"]),
            heads=tuple(found["heads"]),
            words=tuple(map(tuple, found["words"])),
        )


@dataclass(frozen=True)
class Line:
    """Numbers of one row of a sheet.

    Args:
        name: of the row.
        values: one for each heading; nan for none.
        accepted: is the largest of them one that the model accepts as its answer? None where it is no answer.
        wrong: is it a wrong answer?
    """

    name: str
    values: tuple[float, ...]
    accepted: bool | None = None
    wrong: bool = False

    def to_json(self) -> dict[str, object]:
        """Return plain values; nan, which JSON lacks, is null."""
        return {**vars(self), "values": [None if isnan(v) else v for v in self.values]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Line":
        """Read what ``to_json`` returned."""
        values = tuple(nan if value is None else float(value) for value in found["values"])
        return cls(str(found["name"]), values, found["accepted"], bool(found["wrong"]))


@dataclass(frozen=True)
class Sheet:
    """Numbers to be read in rows, as logits are.

    Args:
        name: for file names.
        title: a few words.
        caption: what is to be seen.
        heads: above the columns.
        lines: the rows.
    """

    name: str
    title: str
    caption: str
    heads: tuple[str, ...]
    lines: tuple[Line, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {**vars(self), "lines": [line.to_json() for line in self.lines]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Sheet":
        """Read what ``to_json`` returned."""
        words = {key: str(found[key]) for key in ("name", "title", "caption")}
        lines = tuple(map(Line.from_json, found["lines"]))
        return cls(**words, heads=tuple(found["heads"]), lines=lines)


@dataclass(frozen=True)
class Measured:
    """All that was measured on one data set.

    Args:
        dataset: its name, as opened.
        samples: how many of it were looked at.
        models: digest of all that a model's answers depend on, by its name.
        numbers: of the table.
        grids: of images.
        sheets: of logits.
        spreads: of scores, in histograms.
        planes: decisions on planes, as ``reporting.decision_planes`` reads them; None without.
        layers: hidden layers before and after, as ``reporting.layer_views`` reads them; None without.
    """

    dataset: str
    samples: int
    models: Mapping[str, str]
    numbers: tuple[Number, ...] = ()
    grids: tuple[Grid, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    spreads: tuple[Spread, ...] = ()
    planes: Mapping[str, Any] | None = field(default=None, repr=False)
    layers: Mapping[str, Any] | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, object]:
        """Return plain values, version first."""
        numbers = [vars(number) for number in self.numbers]
        grids = [grid.to_json() for grid in self.grids]
        sheets = [sheet.to_json() for sheet in self.sheets]
        spreads = [spread.to_json() for spread in self.spreads]
        named = {"numbers": numbers, "grids": grids, "sheets": sheets, "spreads": spreads}
        return {"version": VERSION, **vars(self), **named}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Measured":
        """Read what ``to_json`` returned.

        Raises:
            BadResults: for another version.
        """
        if found["version"] != VERSION:
            expected = str(VERSION)
            raise BadResults("another version", got=found["version"], expected=expected)
        return cls(
            dataset=str(found["dataset"]),
            samples=int(found["samples"]),
            models=dict(found["models"]),
            numbers=tuple(map(_number, found["numbers"])),
            grids=tuple(map(Grid.from_json, found["grids"])),
            sheets=tuple(map(Sheet.from_json, found.get("sheets", ()))),
            spreads=tuple(map(Spread.from_json, found.get("spreads", ()))),
            planes=found["planes"],
            layers=found["layers"],
        )


def to_gzip(measured: Measured) -> bytes:
    """Return what was measured as ``.json.gz``: the same bytes for the same values."""
    text = json.dumps(measured.to_json(), ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def read_measured_file(path: Path) -> Measured:
    """Read what ``to_gzip`` wrote.

    Raises:
        BadResults: if the file is missing, damaged, or something else.
    """
    try:
        return Measured.from_json(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"cannot read what was measured in {path}"
        raise BadResults(problem, remedy=f"{type(error).__name__}: {error}") from error


def _number(found: Mapping[str, Any]) -> Number:
    counted = found["counted"]
    value = float(found["value"])
    place = str(found["row"]), str(found["column"])
    return Number(*place, value, int(found["trials"]), None if counted is None else tuple(counted))
