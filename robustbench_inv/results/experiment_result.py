"""The result of an experiment that is not a robustness evaluation, stored as one versioned file."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import read_gzip
from robustbench_inv.results.pixels import Pixels
from robustbench_inv.results.summary import Rate

__all__ = [
    "ExperimentResult",
    "Histogram",
    "HistogramPanels",
    "ImageGrid",
    "LinePanel",
    "LinePanels",
    "LogitRow",
    "LogitSheet",
    "MeasuredNumber",
    "read_result",
    "result_to_gzip",
]


@dataclass(frozen=True)
class Histogram:
    """One panel.

    Args:
        title: a few words.
        edges: (k + 1,) ascending ends of the bins.
        counts: (k,) numbers in each bin by whose they are; the first bin holds what lies below it as well.
        limits: positions of vertical lines, by name.
        note: one short line, such as a share.
    """

    title: str
    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    limits: Mapping[str, float]
    note: str = ""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Histogram":
        """Read the plain values of one."""
        return cls(
            title=str(found["title"]),
            edges=tuple(map(float, found["edges"])),
            counts={str(whose): tuple(map(int, n)) for whose, n in found["counts"].items()},
            limits={str(name): float(at) for name, at in found["limits"].items()},
            note=str(found["note"]),
        )


@dataclass(frozen=True)
class HistogramPanels:
    """Panels side by side that are read in the same way.

    Args:
        name: for file names.
        title: a few words.
        caption: how to read it.
        axis: label of the horizontal axis, with its unit.
        panels: the histograms.
    """

    name: str
    title: str
    caption: str
    axis: str
    panels: tuple[Histogram, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {**vars(self), "panels": [vars(panel) for panel in self.panels]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "HistogramPanels":
        """Read what ``to_json`` returned."""
        words = {key: str(found[key]) for key in ("name", "title", "caption", "axis")}
        return cls(**words, panels=tuple(map(Histogram.from_json, found["panels"])))


@dataclass(frozen=True)
class LinePanel:
    """One panel of lines.

    Args:
        title: a few words.
        lines: positions x and values y by name; names that occur in other panels have the same colour there.
    """

    title: str
    lines: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "LinePanel":
        """Read the plain values of one."""
        lines = {
            str(name): (tuple(map(float, x)), tuple(map(float, y)))
            for name, (x, y) in found["lines"].items()
        }
        return cls(str(found["title"]), lines)


@dataclass(frozen=True)
class LinePanels:
    """Panels of lines side by side that are read in the same way.

    Args:
        name: for file names.
        title: a few words.
        caption: how to read it.
        x, y: labels of the axes, with their units.
        panels: the lines.
        log: do values have a logarithmic scale? Values that are not positive are left out.
        thin: many lines without legend, such as paths.
    """

    name: str
    title: str
    caption: str
    x: str
    y: str
    panels: tuple[LinePanel, ...]
    log: bool = False
    thin: bool = False

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {**vars(self), "panels": [vars(panel) for panel in self.panels]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "LinePanels":
        """Read what ``to_json`` returned."""
        words = {key: str(found[key]) for key in ("name", "title", "caption", "x", "y")}
        panels = tuple(map(LinePanel.from_json, found["panels"]))
        return cls(**words, panels=panels, log=bool(found["log"]), thin=bool(found["thin"]))


RESULT_VERSION = 2
"""Version 1 called three of the keys otherwise (see ``_KEYS_V1``); it is still read."""

_KEYS_V1 = {"grids": "image_grids", "sheets": "logit_sheets", "spreads": "histograms"}


@dataclass(frozen=True)
class MeasuredNumber:
    """One number of a table: a share of trials, the mean of such shares over trainings, or an amount.

    Args:
        row: what was measured.
        column: of which model, as the table calls it.
        value: the share, the mean, or the amount.
        trials: of a share; 0 for a mean and for an amount.
        counted: positions of the trials that count towards the share, where they are known: two shares of the
            same trials can then be compared trial by trial.
        trainings: of a mean, the share of each training.
    """

    row: str
    column: str
    value: float
    trials: int = 0
    counted: tuple[int, ...] | None = None
    trainings: tuple[float, ...] = ()

    @classmethod
    def of(cls, row: str, column: str, held: "np.typing.NDArray[np.bool_]") -> "MeasuredNumber":
        """Return the share of trials that hold, each known by its position; nan without trials."""
        counted, n = tuple(np.flatnonzero(held).tolist()), len(held)
        return cls(row, column, len(counted) / n if n else nan, n, counted)

    @classmethod
    def mean_of(cls, row: str, column: str, shares: Sequence[float]) -> "MeasuredNumber":
        """Return the mean of the shares of several trainings."""
        return cls(row, column, fmean(shares), trainings=tuple(shares))

    @property
    def rate(self) -> Rate | None:
        """The share with its interval; None for a mean and for an amount."""
        return Rate(round(self.value * self.trials), self.trials) if self.trials else None


@dataclass(frozen=True)
class ImageGrid:
    """Images in rows and columns.

    Args:
        name: for file names.
        title: a few words.
        caption: how to read it.
        rows: names on the left.
        groups: headings, and the number of columns of each.
        images: (rows, columns, 1 or 3, height, width) of 0 to 255.
        heads: above each column; empty for none.
        words: beneath each image, row by row; a row without words may be empty.
    """

    name: str
    title: str
    caption: str
    rows: tuple[str, ...]
    groups: tuple[tuple[str, int], ...]
    images: Pixels
    heads: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        pixels = base64.b64encode(np.ascontiguousarray(self.images).tobytes()).decode()
        return {**vars(self), "images": {"shape": list(self.images.shape), "pixels": pixels}}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "ImageGrid":
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
class LogitRow:
    """Numbers of one row of a sheet.

    Args:
        name: of the row.
        values: one for each heading; nan for none.
        accepted: does the model accept the class of the largest value? None if the row is no output.
        wrong: is that class wrong?
    """

    name: str
    values: tuple[float, ...]
    accepted: bool | None = None
    wrong: bool = False

    def to_json(self) -> dict[str, object]:
        """Return plain values; nan, which JSON lacks, is null."""
        return {**vars(self), "values": [None if isnan(v) else v for v in self.values]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "LogitRow":
        """Read what ``to_json`` returned."""
        values = tuple(nan if value is None else float(value) for value in found["values"])
        return cls(str(found["name"]), values, found["accepted"], bool(found["wrong"]))


@dataclass(frozen=True)
class LogitSheet:
    """Numbers to be read in rows, as logits are.

    Args:
        name: for file names.
        title: a few words.
        caption: how to read it.
        heads: above the columns.
        lines: the rows.
    """

    name: str
    title: str
    caption: str
    heads: tuple[str, ...]
    lines: tuple[LogitRow, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {**vars(self), "lines": [line.to_json() for line in self.lines]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "LogitSheet":
        """Read what ``to_json`` returned."""
        words = {key: str(found[key]) for key in ("name", "title", "caption")}
        lines = tuple(map(LogitRow.from_json, found["lines"]))
        return cls(**words, heads=tuple(found["heads"]), lines=lines)


@dataclass(frozen=True)
class ExperimentResult:
    """The results on one data set.

    Args:
        dataset: its name, as opened.
        samples: number of samples.
        models: digest of everything that a model's outputs depend on, by its name.
        numbers: of the table.
        image_grids: of images.
        logit_sheets: of logits.
        histograms: of scores, in histograms.
        planes: decisions on planes, as ``reporting.decision_planes`` reads them; None without.
        lines: curves of numbers, in panels.
        layers: hidden layers before and after, as ``reporting.layer_views`` reads them; None without.
        left_out: why a part was not measured, by its name.
    """

    dataset: str
    samples: int
    models: Mapping[str, str]
    numbers: tuple[MeasuredNumber, ...] = ()
    image_grids: tuple[ImageGrid, ...] = ()
    logit_sheets: tuple[LogitSheet, ...] = ()
    histograms: tuple[HistogramPanels, ...] = ()
    planes: Mapping[str, Any] | None = field(default=None, repr=False)
    layers: Mapping[str, Any] | None = field(default=None, repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict)
    lines: tuple[LinePanels, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return plain values, version first."""
        image_grids = [grid.to_json() for grid in self.image_grids]
        logit_sheets = [sheet.to_json() for sheet in self.logit_sheets]
        histograms = [spread.to_json() for spread in self.histograms]
        named = {
            "numbers": [_number_to_json(number) for number in self.numbers],
            "image_grids": image_grids,
            "logit_sheets": logit_sheets,
            "histograms": histograms,
        }
        lines = {"lines": [panels.to_json() for panels in self.lines]} if self.lines else {}
        later = ("left_out", "lines")  # keys that older files lack
        present = {key: value for key, value in vars(self).items() if key not in later or value}
        return {"version": RESULT_VERSION, **present, **named, **lines}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "ExperimentResult":
        """Read what ``to_json`` returned.

        Raises:
            BadResults: for another version.
        """
        if found["version"] == 1:
            found = {_KEYS_V1.get(key, key): value for key, value in found.items()}
        elif found["version"] != RESULT_VERSION:
            expected = f"1 to {RESULT_VERSION}"
            raise BadResults("unknown version", got=found["version"], expected=expected)
        return cls(
            dataset=str(found["dataset"]),
            samples=int(found["samples"]),
            models=dict(found["models"]),
            numbers=tuple(map(_number_from_json, found["numbers"])),
            image_grids=tuple(map(ImageGrid.from_json, found["image_grids"])),
            logit_sheets=tuple(map(LogitSheet.from_json, found.get("logit_sheets", ()))),
            histograms=tuple(map(HistogramPanels.from_json, found.get("histograms", ()))),
            planes=found["planes"],
            layers=found["layers"],
            left_out=dict(found.get("left_out", {})),
            lines=tuple(map(LinePanels.from_json, found.get("lines", ()))),
        )


def result_to_gzip(measured: ExperimentResult) -> bytes:
    """Return a result as ``.json.gz``: the same bytes for the same values."""
    text = json.dumps(measured.to_json(), ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def read_result(path: Path) -> ExperimentResult:
    """Read what ``result_to_gzip`` wrote.

    Raises:
        BadResults: if the file is missing, damaged, or something else.
    """
    data = read_gzip(path)
    try:
        return ExperimentResult.from_json(json.loads(data))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"cannot read the result in {path}"
        raise BadResults(problem, remedy=f"{type(error).__name__}: {error}") from error


def _number_to_json(number: MeasuredNumber) -> dict[str, object]:
    found = vars(number) | {"value": None if isnan(number.value) else number.value}
    return {key: value for key, value in found.items() if key != "trainings" or value}


def _number_from_json(found: Mapping[str, Any]) -> MeasuredNumber:
    counted = found["counted"]
    counted = None if counted is None else tuple(counted)
    value = nan if found["value"] is None else float(found["value"])
    place = str(found["row"]), str(found["column"])
    shares = tuple(map(float, found.get("trainings", ())))
    return MeasuredNumber(*place, value, int(found["trials"]), counted, shares)
