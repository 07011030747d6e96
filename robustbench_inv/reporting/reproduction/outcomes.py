"""The outcome of every sample in every cell of a reproduction: one file, from which all numbers follow."""

import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf, isnan, nan
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from robustbench_inv.catalogue.reproduction import (
    CellAddress,
    Column,
    CurvePanel,
    Reproduction,
    Row,
    Side,
    Trial,
)
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.run_results import ReportCell
from robustbench_inv.results.rates import can_reject
from robustbench_inv.results.summary import Rate

__all__ = [
    "NO_GRADIENT",
    "REJECTED",
    "ReproductionOutcomes",
    "SampleMask",
    "outcomes_frame",
    "outcomes_to_gzip",
    "rate_of",
    "read_outcomes",
]


INDEX = ["dataset", "sample", "label"]

REJECTED, NO_GRADIENT = " | rejected", " | no gradient"
"""Behind an address: was what is shown rejected, was every gradient zero that was taken? 1, 0, or nan."""

NOT_REQUESTED = "-"
"""In the file, a sample that a cell was not asked about; one that held is empty."""


def outcomes_frame(cells: Iterable[tuple[CellAddress, ReportCell]]) -> pd.DataFrame:
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
    columns: dict[str, dict[str, ReportCell]] = {}
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
        pd.concat([_outcome_columns(name, cell) for cell in place.values()])
        for name, place in columns.items()
    ]
    return pd.concat(joined, axis=1).sort_index() if joined else _no_outcomes()


def outcomes_to_gzip(outcomes: pd.DataFrame) -> bytes:
    """Return outcomes as ``outcomes.csv.gz``: the same bytes for the same outcomes."""
    text = outcomes.map(_outcome_text).to_csv(lineterminator="\n")
    return gzip.compress(text.encode(), mtime=0)


def read_outcomes(path: Path) -> pd.DataFrame:
    """Read what ``outcomes_to_gzip`` wrote.

    Raises:
        BadResults: if the file is missing, damaged, or something else.
    """
    try:
        text = gzip.decompress(path.read_bytes())
        frame = pd.read_csv(BytesIO(text), dtype=str, keep_default_na=False)
        frame[INDEX[1:]] = frame[INDEX[1:]].astype(np.int64)
        return frame.set_index(INDEX).map(_outcome_value)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise BadResults(f"cannot read the outcomes in {path}", remedy=str(error)) from error


def _outcome_columns(name: str, cell: ReportCell) -> pd.DataFrame:
    """Return what is told of a cell's samples: where they fell, and what else there is to tell."""
    rows = [(cell.panel.dataset, record.sample, record.label) for record in cell.records]
    told = {name: cell.broken_at}
    if can_reject(cell.records):
        told[name + REJECTED] = np.array(
            [r.adversarial.accepted is False for r in cell.records], float
        )
    if any(r.backward_passes for r in cell.records):
        zero_gradient = [float(r.zero_gradient) if r.backward_passes else nan for r in cell.records]
        told[name + NO_GRADIENT] = np.array(zero_gradient)
    return pd.DataFrame(told, index=pd.MultiIndex.from_tuples(rows, names=INDEX))


def _no_outcomes() -> pd.DataFrame:
    return pd.DataFrame(index=pd.MultiIndex.from_arrays([[], [], []], names=INDEX))


def _outcome_text(fell: float) -> str:
    return NOT_REQUESTED if isnan(fell) else "" if fell == inf else f"{fell:.10g}"


def _outcome_value(text: str) -> float:
    return float({NOT_REQUESTED: "nan", "": "inf"}.get(text, text))


SampleMask: TypeAlias = "pd.Series[bool]"
"""Which samples count, by cell, data set, sample id and label."""

MaskOfCells = Callable[[Sequence[str], str], SampleMask]
"""(addresses of competing cells, the first that of the attack as published; data set) → which samples count."""


@dataclass(frozen=True)
class ReproductionOutcomes:
    """What was measured for an item.

    Args:
        item: what is reproduced.
        outcomes: what became of every sample, as ``outcomes_of`` returns it.
        places: on which data set each of the item's own was evaluated.
    """

    item: Reproduction
    outcomes: pd.DataFrame
    places: Mapping[str, str]

    def share(self, side: Side, row: Row, column: Column, data: str) -> SampleMask:
        """Return which samples count towards a row's number, of those that everything counted here saw.

        Args:
            side: as published: against that attack; adaptive: against all that the row lists, if any.
            row: which attack, or attacks, and what is told of them.
            column: which model.
            data: the item's data set.
        """
        if row.metric == "robust":
            return self.held(side, row, column, data, row.eps)
        told = {"success": self._reached, "undetected": self._fooled, "detected": self._detected}

        def counted(names: Sequence[str], place: str) -> SampleMask:
            # without the attack as published it is not known whom it reached
            known = self._known(names)
            return told[row.metric](known, place) if known[:1] == names[:1] else _no_samples()

        return self._together(self._trials(side, row, column), column, data, counted)

    def held(
        self, side: Side, line: Row | CurvePanel, column: Column, data: str, eps: float
    ) -> SampleMask:
        """Return which samples held, of those that everything counted here saw.

        Args:
            side: as published: against that attack; adaptive: against all that the line lists, if any.
            line: which attack, or attacks.
            column: which model.
            data: which of the item's data sets.
            eps: trials that do not tell who falls there are left out.
        """
        trials = self._trials(side, line, column)
        telling = [t for t in trials if not eps or eps in (self.item.sweep(t) or (eps,))]

        def standing(names: Sequence[str], place: str) -> SampleMask:
            known = self._known(names)
            return self._of(line, known, place).gt(eps).all(axis=1) if known else _no_samples()

        return self._together(telling, column, data, standing)

    def zero_gradient(self, side: Side, panel: CurvePanel, column: Column, data: str) -> SampleMask:
        """Return for which samples every gradient was zero that any of the attacks took."""
        trials = self._trials(side, panel, column)

        def all_zero(names: Sequence[str], place: str) -> SampleMask:
            known = self._known(f"{name}{NO_GRADIENT}" for name in names)
            return self._of(panel, known, place).all(axis=1) if known else _no_samples()

        return self._together(trials, column, data, all_zero)

    def number(self, row: Row, column: Column) -> float:
        """Return the paper's share; nan where it gives none."""
        return self.item.published[row.label][self.item.columns.index(column)] / 100

    @property
    def missing(self) -> list[CellAddress]:
        """The cells without records."""
        item = self.item
        wanted = [
            address
            for data in self.places
            for trial in item.trials
            for column in item.attacked(trial)
            for address in item.addresses(trial, column, data)
        ]
        return [address for address in wanted if str(address) not in self.outcomes]

    def _trials(self, side: Side, line: Row | CurvePanel, column: Column) -> list[Trial]:
        """Return the trials that count, the one as published first."""
        listed = self.item.worst_case_trials(line) if line.worst_of else ()
        trials = [self.item.trial(line.trial)] if side == "published" else listed
        return [trial for trial in trials if trial.attacks(column)]

    def _together(
        self, trials: Sequence[Trial], column: Column, data: str, counted: MaskOfCells
    ) -> SampleMask:
        """Return what is counted cell by cell, the cells of one trial below each other."""
        if data not in self.places:
            return _no_samples()
        cells = enumerate(self._cells(trials, column, data))
        found = {number: counted(names, self.places[data]) for number, names in cells}
        known = {number: held for number, held in found.items() if len(held)}
        return pd.concat(known) if known else _no_samples()

    def _cells(self, trials: Sequence[Trial], column: Column, data: str) -> Iterator[list[str]]:
        """Yield for each cell of the first trial its address and those that compete with it."""
        rows = [map(str, self.item.addresses(trial, column, data)) for trial in trials]
        yield from (list(dict.fromkeys(names)) for names in zip(*rows, strict=True))

    def _known(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self.outcomes]

    def _of(self, line: Row | CurvePanel | None, names: Sequence[str], place: str) -> pd.DataFrame:
        """Return some columns of the outcomes on one data set, without the samples that one of them was not asked about."""
        index = self.outcomes.index
        here = index.get_level_values("dataset") == place
        if isinstance(line, CurvePanel) and line.label is not None:
            here &= index.get_level_values("label") == line.label
        return self.outcomes.loc[here, list(names)].dropna()

    def _reached(self, names: Sequence[str], place: str) -> SampleMask:
        fell = self._of(None, names, place)[names[0]]
        return _is_finite(fell[fell > 0])

    def _fooled(self, names: Sequence[str], place: str) -> SampleMask:
        """Return, of the attacked samples, those on which one of the attacks reached its goal and was not rejected."""
        fell = self._of(None, names, place)
        fell = fell[fell[names[0]] > 0]
        fools = [_is_finite(fell[name]) & ~self._rejected(name, fell.index) for name in names]
        found: SampleMask = pd.concat(fools, axis=1).any(axis=1)
        return found

    def _detected(self, names: Sequence[str], place: str) -> SampleMask:
        if f"{names[0]}{REJECTED}" not in self.outcomes:
            return _no_samples()  # the model never rejects
        fooled = self._fooled(names, place)
        detected: SampleMask = ~fooled[_is_finite(self.outcomes.loc[fooled.index, names[0]])]
        return detected

    def _rejected(self, name: str, index: pd.Index) -> SampleMask:
        column = f"{name}{REJECTED}"
        if column not in self.outcomes:
            return pd.Series(data=False, index=index)
        told: SampleMask = self.outcomes.loc[index, column] == 1
        return told


def rate_of(held: SampleMask) -> Rate:
    """Return the share that counts."""
    return Rate(int(held.sum()), len(held))


def _is_finite(fell: "pd.Series[float]") -> SampleMask:
    finite: SampleMask = fell < inf
    return finite


def _no_samples() -> SampleMask:
    return pd.Series(dtype=bool)
