"""Outcomes: what became of every sample in every cell, in one small file from which all numbers follow."""

import gzip
from collections.abc import Iterable
from io import BytesIO
from math import inf, isnan, nan
from pathlib import Path

import numpy as np
import pandas as pd

from robustbench_inv.catalogue.reproduction import Address
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.cells import CellResult
from robustbench_inv.results.rejection import rejects

__all__ = ["NO_GRADIENT", "REJECTED", "outcomes_of", "read_outcomes", "to_gzip"]

INDEX = ["dataset", "sample", "label"]

REJECTED, NO_GRADIENT = " | rejected", " | no gradient"
"""Behind an address: was what is shown rejected, was every gradient zero that was taken? 1, 0, or nan."""

NOT_ASKED = "-"
"""In the file, a sample that a cell was not asked about; one that held is empty."""


def outcomes_of(cells: Iterable[tuple[Address, CellResult]]) -> pd.DataFrame:
    """Return one row for each sample and one column for each address.

    Args:
        cells: with the names they go by; no two of one data set with the same names.

    Returns:
        Rows by data set, sample id and label; the eps at which the sample fell, 0 if it was wrong before any
        attack, inf where it held, nan where it was not asked about. Further columns for what else can be told
        of a cell: see REJECTED and NO_GRADIENT.

    Raises:
        BadResults: if two cells have the same names: one number cannot come from both.
    """
    columns: dict[str, dict[str, CellResult]] = {}
    for address, cell in cells:
        place = columns.setdefault(str(address), {})
        other = place.setdefault(cell.panel.dataset, cell)
        if other is not cell:
            raise BadResults(
                f"two cells are called {address}",
                got=[other.folder.digest, cell.folder.digest],
                expected="one: the other may be of older weights, or have another seed",
                remedy="name a folder that holds one of them",
            )
    joined = [
        pd.concat([_columns(name, cell) for cell in place.values()])
        for name, place in columns.items()
    ]
    return pd.concat(joined, axis=1).sort_index() if joined else _nothing()


def to_gzip(outcomes: pd.DataFrame) -> bytes:
    """Return outcomes as ``outcomes.csv.gz``: the same bytes for the same outcomes."""
    text = outcomes.map(_written).to_csv(lineterminator="\n")
    return gzip.compress(text.encode(), mtime=0)


def read_outcomes(path: Path) -> pd.DataFrame:
    """Read what ``to_gzip`` wrote.

    Raises:
        BadResults: if the file is missing, damaged, or something else.
    """
    try:
        text = gzip.decompress(path.read_bytes())
        frame = pd.read_csv(BytesIO(text), dtype=str, keep_default_na=False)
        frame[INDEX[1:]] = frame[INDEX[1:]].astype(np.int64)
        return frame.set_index(INDEX).map(_read)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise BadResults(f"cannot read the outcomes in {path}", remedy=str(error)) from error


def _columns(name: str, cell: CellResult) -> pd.DataFrame:
    """Return what is told of a cell's samples: where they fell, and what else there is to tell."""
    rows = [(cell.panel.dataset, record.sample, record.label) for record in cell.records]
    told = {name: cell.broken_at}
    if rejects(cell.records):
        told[name + REJECTED] = np.array([r.after.accepted is False for r in cell.records], float)
    if any(r.backward_passes for r in cell.records):
        blind = [float(r.zero_gradient) if r.backward_passes else nan for r in cell.records]
        told[name + NO_GRADIENT] = np.array(blind)
    return pd.DataFrame(told, index=pd.MultiIndex.from_tuples(rows, names=INDEX))


def _nothing() -> pd.DataFrame:
    return pd.DataFrame(index=pd.MultiIndex.from_arrays([[], [], []], names=INDEX))


def _written(fell: float) -> str:
    return NOT_ASKED if isnan(fell) else "" if fell == inf else f"{fell:.10g}"


def _read(text: str) -> float:
    return float({NOT_ASKED: "nan", "": "inf"}.get(text, text))
