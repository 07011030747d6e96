"""The outcome of every sample in every cell of a reproduction, and the shares that follow from it."""

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
from robustbench_inv.reporting.table_formats import plain_text
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.files import read_gzip
from robustbench_inv.results.summary import Rate, broken_within, same_eps

__all__ = [
    "CERTIFIED",
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
"""Suffixes of further columns of a cell: was the adversarial example rejected, were all gradients of the attack zero?
1 or 0; nan if unknown."""

CERTIFIED = " | certified radius"
"""Suffix of a column: the distance within which the label is proven to be predicted; 0 without a proof."""

NOT_REQUESTED = "-"
"""In the file: a sample that was not requested from a cell. An empty field is a robust sample."""


def outcomes_frame(cells: Iterable[tuple[CellAddress, FinishedCell]]) -> pd.DataFrame:
    """Return one row for each sample and one column for each cell address.

    Args:
        cells: with their addresses; two cells of one data set must not share an address.

    Returns:
        Rows by data set, sample id and label. A value is the smallest eps that breaks the sample: 0 if the sample
        is misclassified without an attack, inf if it is robust, nan if it was not requested. See REJECTED,
        NO_GRADIENT and CERTIFIED for further columns.

    Raises:
        BadResults: if two cells have the same address: one number cannot come from both.
    """
    columns: dict[str, dict[str, FinishedCell]] = {}
    for address, cell in cells:
        by_dataset = columns.setdefault(str(address), {})
        other = by_dataset.setdefault(cell.dataset.name, cell)
        if other is not cell:
            raise BadResults(
                f"two cells have the address {address}",
                got=[other.digest, cell.digest],
                expected="one cell; the other may have older weights or another seed",
                remedy="name a folder that holds one of them",
            )
    joined = [
        pd.concat([_outcome_columns(name, cell) for cell in by_dataset.values()])
        for name, by_dataset in columns.items()
    ]
    return pd.concat(joined, axis=1).sort_index() if joined else _no_outcomes()


def outcomes_to_gzip(outcomes: pd.DataFrame) -> bytes:
    """Return outcomes as ``outcomes.csv.gz``: the same bytes for the same outcomes."""
    texts = outcomes.map(_outcome_text).rename(columns=plain_text)
    text = texts.to_csv(lineterminator="\n")
    return gzip.compress(text.encode(), mtime=0)


def read_outcomes(path: Path) -> pd.DataFrame:
    """Read a file that ``outcomes_to_gzip`` wrote.

    Raises:
        BadResults: if the file is missing, damaged or of another kind.
    """
    text = read_gzip(path)
    try:
        frame = pd.read_csv(BytesIO(text), dtype=str, keep_default_na=False)
        frame = frame.rename(columns=lambda name: name.removeprefix("'"))
        frame[INDEX[1:]] = frame[INDEX[1:]].astype(np.int64)
        return frame.set_index(INDEX).map(_outcome_value)
    except (ValueError, LookupError, TypeError) as error:
        raise BadResults(f"cannot read the outcomes in {path}", remedy=str(error)) from error


def _outcome_columns(name: str, cell: FinishedCell) -> pd.DataFrame:
    """Return the columns of one cell: the breaking eps, and other values of its records."""
    found = cell.records.columns
    names = [cell.dataset.name] * len(found)
    rows = zip(names, found.sample.tolist(), found.label.tolist(), strict=True)
    columns = {name: cell.broken_at}
    if cell.can_reject:
        columns[name + REJECTED] = found.adversarial.rejected.astype(float)
    if found.backward_passes.any():
        columns[name + NO_GRADIENT] = np.where(found.backward_passes > 0, found.zero_gradient, nan)
    if cell.certificates and cell.certificates.norm == cell.norm:
        columns[name + CERTIFIED] = cell.certificates.radii(found.sample.tolist())
    return pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(rows, names=INDEX))


def _no_outcomes() -> pd.DataFrame:
    return pd.DataFrame(index=pd.MultiIndex.from_arrays([[], [], []], names=INDEX))


def _outcome_text(broken_at: float) -> str:
    return NOT_REQUESTED if isnan(broken_at) else "" if broken_at == inf else f"{broken_at:.10g}"


def _outcome_value(text: str) -> float:
    return float({NOT_REQUESTED: "nan", "": "inf"}.get(text, text))


SampleMask: TypeAlias = "pd.Series[bool]"
"""Which samples count, by cell, data set, sample id and label."""

MaskOfCells = Callable[[Sequence[str], str], SampleMask]
"""(addresses of competing cells, the published attack first; data set) → which samples count."""


@dataclass(frozen=True)
class ReproductionOutcomes:
    """The outcomes of an item that runs attacks, and the shares that it reports.

    Args:
        item: what is reproduced.
        outcomes: as ``outcomes_frame`` returns them.
        dataset_names: for each data set of the item, the one on which it was evaluated.
    """

    item: Reproduction
    outcomes: pd.DataFrame
    dataset_names: Mapping[str, str]

    def counted(self, row: Row, column: Column, side: Side, data: str) -> SampleMask:
        """Return which samples count towards a row's number, of those that all its cells contain.

        Args:
            row: which attacks, and which share.
            column: which model.
            side: as published: that attack alone; adaptive: the worst case over all attacks of the row, if any.
            data: data set of the item.
        """
        if row.metric == "robust":
            return self.robust(row, column, side, data, row.eps)
        masks = {
            "success": self._succeeded,
            "undetected": self._undetected,
            "detected": self._detected,
        }

        def counted(names: Sequence[str], dataset: str) -> SampleMask:
            known = self._known(names)
            # all three metrics refer to the samples that the published attack broke
            has_published = known[:1] == names[:1]
            return masks[row.metric](known, dataset) if has_published else _no_samples()

        return self._join_cells(self._trials(row, side), column, data, counted)

    def robust(
        self, line: Row | CurvePanel, column: Column, side: Side, data: str, eps: float
    ) -> SampleMask:
        """Return which samples are robust, of those that all cells contain.

        Args:
            line: which attacks.
            column: which model.
            side: as published or adaptive, as in ``counted``.
            data: data set of the item.
            eps: budget; attacks that did not run at this eps do not count.
        """
        at_eps = self._trials_at(line, side, eps)

        def survives(names: Sequence[str], dataset: str) -> SampleMask:
            known = self._known(names)
            if known[:1] != names[:1]:
                return _no_samples()  # the published attack is always one of the worst case
            broken_at = self._select(line, known, dataset)
            robust = ~broken_within(broken_at.to_numpy(), eps).any(axis=1)
            return pd.Series(robust, index=broken_at.index)

        return self._join_cells(at_eps, column, data, survives)

    def zero_gradient(self, panel: CurvePanel, column: Column, side: Side, data: str) -> SampleMask:
        """Return for which samples every gradient of every attack was zero."""

        def all_zero(names: Sequence[str], dataset: str) -> SampleMask:
            known = self._known(f"{name}{NO_GRADIENT}" for name in names)
            return self._select(panel, known, dataset).all(axis=1) if known else _no_samples()

        return self._join_cells(self._trials(panel, side), column, data, all_zero)

    def certified(self, panel: CurvePanel, column: Column, data: str, eps: float) -> SampleMask:
        """Return which samples are proven robust, of those that the panel's cells contain; none without certificates."""

        def is_proven(names: Sequence[str], dataset: str) -> SampleMask:
            known = self._known(f"{name}{CERTIFIED}" for name in names)
            if not known:
                return _no_samples()
            radii = self._select(panel, known, dataset).max(axis=1)
            return (radii >= eps * (1 - 1e-9)) & (radii > 0)

        return self._join_cells(self._trials(panel, "published"), column, data, is_proven)

    def published_share(self, row: Row, column: Column) -> float:
        """Return the paper's share; nan if it gives none."""
        return self.item.published[row.label][self.item.columns.index(column)] / 100

    def has_cells(self, row: Row, column: Column, side: Side, data: str) -> bool:
        """Return whether there are records of every cell that counts towards a row's number."""
        trials = self._trials_at(row, side, row.eps) if row.metric == "robust" else None
        return all(
            str(address) in self.outcomes
            for trial in (self._trials(row, side) if trials is None else trials)
            if trial.attacks(column)
            for address in self.item.addresses(trial, column, data)
        )

    @property
    def missing(self) -> list[CellAddress]:
        """The cells without records."""
        item = self.item
        wanted = [
            address
            for data in self.dataset_names
            for trial in item.trials
            for column in item.attacked(trial)
            for address in item.addresses(trial, column, data)
        ]
        return [address for address in wanted if str(address) not in self.outcomes]

    def _trials(self, line: Row | CurvePanel, side: Side) -> list[Trial]:
        """Return the trials that count, the published one first."""
        if side == "published":
            return [self.item.trial(line.trial)]
        return list(self.item.worst_case_trials(line)) if line.worst_of else []

    def _trials_at(self, line: Row | CurvePanel, side: Side, eps: float) -> list[Trial]:
        """Return the trials that count and ran at a budget."""
        trials, sweep = self._trials(line, side), self.item.sweep
        return [t for t in trials if not eps or any(same_eps(eps, e) for e in sweep(t) or (eps,))]

    def _join_cells(
        self, trials: Sequence[Trial], column: Column, data: str, mask_of: MaskOfCells
    ) -> SampleMask:
        """Return the masks of all cells of the first trial, one below the other."""
        if data not in self.dataset_names:
            return _no_samples()
        dataset = self.dataset_names[data]
        cells = enumerate(self._competing([t for t in trials if t.attacks(column)], column, data))
        found = {number: mask_of(names, dataset) for number, names in cells}
        known = {number: mask for number, mask in found.items() if len(mask)}
        return pd.concat(known) if known else _no_samples()

    def _competing(self, trials: Sequence[Trial], column: Column, data: str) -> Iterator[list[str]]:
        """Yield, for each cell of the first trial, its address and those of the cells that compete with it."""
        rows = [map(str, self.item.addresses(trial, column, data)) for trial in trials]
        yield from (list(dict.fromkeys(names)) for names in zip(*rows, strict=True))

    def _known(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self.outcomes]

    def _select(
        self, line: Row | CurvePanel | None, names: Sequence[str], dataset: str
    ) -> pd.DataFrame:
        """Return columns of the outcomes on one data set, for the samples that all of them contain."""
        index = self.outcomes.index
        here = index.get_level_values("dataset") == dataset
        if isinstance(line, CurvePanel) and line.label is not None:
            here &= index.get_level_values("label") == line.label
        return self.outcomes.loc[here, list(names)].dropna()

    def _succeeded(self, names: Sequence[str], dataset: str) -> SampleMask:
        broken_at = self._select(None, names, dataset)[names[0]]
        return _is_broken(broken_at[broken_at > 0])

    def _undetected(self, names: Sequence[str], dataset: str) -> SampleMask:
        """Return which attacked samples have an adversarial example that the model accepts."""
        broken_at = self._select(None, names, dataset)
        broken_at = broken_at[broken_at[names[0]] > 0]
        accepted = [
            _is_broken(broken_at[name]) & ~self._rejected(name, broken_at.index) for name in names
        ]
        undetected: SampleMask = pd.concat(accepted, axis=1).any(axis=1)
        return undetected

    def _detected(self, names: Sequence[str], dataset: str) -> SampleMask:
        if f"{names[0]}{REJECTED}" not in self.outcomes:
            return _no_samples()  # the model never rejects
        undetected = self._undetected(names, dataset)
        broken = _is_broken(self.outcomes.loc[undetected.index, names[0]])
        detected: SampleMask = ~undetected[broken]
        return detected

    def _rejected(self, name: str, index: pd.Index) -> SampleMask:
        column = f"{name}{REJECTED}"
        if column not in self.outcomes:
            return pd.Series(data=False, index=index)
        rejected: SampleMask = self.outcomes.loc[index, column] == 1
        return rejected


def rate_of(mask: SampleMask) -> Rate:
    """Return the share of samples that count."""
    return Rate(int(mask.sum()), len(mask))


def _is_broken(broken_at: "pd.Series[float]") -> SampleMask:
    broken: SampleMask = broken_at < inf
    return broken


def _no_samples() -> SampleMask:
    return pd.Series(dtype=bool)
