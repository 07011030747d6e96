"""What was measured for an item: which samples count towards a share, as published and adaptive."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

import pandas as pd

from robustbench_inv.catalogue.reproduction import (
    Address,
    Column,
    Panel,
    Reproduction,
    Row,
    Side,
    Trial,
)
from robustbench_inv.reporting.reproduction.outcomes import NO_GRADIENT, REJECTED
from robustbench_inv.results.summary import Rate

__all__ = ["Evidence", "Held", "rate_of"]

Held: TypeAlias = "pd.Series[bool]"
"""Which samples count, by cell, data set, sample id and label."""

Counted = Callable[[Sequence[str], str], Held]
"""(addresses of competing cells, the first that of the attack as published; data set) → which samples count."""


@dataclass(frozen=True)
class Evidence:
    """What was measured for an item.

    Args:
        item: what is reproduced.
        outcomes: what became of every sample, as ``outcomes_of`` returns it.
        places: on which data set each of the item's own was evaluated.
    """

    item: Reproduction
    outcomes: pd.DataFrame
    places: Mapping[str, str]

    def share(self, side: Side, row: Row, column: Column, data: str) -> Held:
        """Return which samples count towards a row's number, of those that everything counted here saw.

        Args:
            side: as published: against that attack; adaptive: against all that the row lists, if any.
            row: which attack, or attacks, and what is told of them.
            column: which model.
            data: the item's data set.
        """
        if row.tells == "held":
            return self.held(side, row, column, data, row.eps)
        told = {"reached": self._reached, "fooled": self._fooled, "detected": self._detected}

        def counted(names: Sequence[str], place: str) -> Held:
            # without the attack as published it is not known whom it reached
            known = self._known(names)
            return told[row.tells](known, place) if known[:1] == names[:1] else _none()

        return self._together(self._trials(side, row, column), column, data, counted)

    def held(self, side: Side, line: Row | Panel, column: Column, data: str, eps: float) -> Held:
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

        def standing(names: Sequence[str], place: str) -> Held:
            known = self._known(names)
            return self._of(line, known, place).gt(eps).all(axis=1) if known else _none()

        return self._together(telling, column, data, standing)

    def blind(self, side: Side, panel: Panel, column: Column, data: str) -> Held:
        """Return for which samples every gradient was zero that any of the attacks took."""
        trials = self._trials(side, panel, column)

        def all_zero(names: Sequence[str], place: str) -> Held:
            known = self._known(f"{name}{NO_GRADIENT}" for name in names)
            return self._of(panel, known, place).all(axis=1) if known else _none()

        return self._together(trials, column, data, all_zero)

    def number(self, row: Row, column: Column) -> float:
        """Return the paper's share; nan where it gives none."""
        return self.item.published[row.label][self.item.columns.index(column)] / 100

    @property
    def missing(self) -> list[Address]:
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

    def _trials(self, side: Side, line: Row | Panel, column: Column) -> list[Trial]:
        """Return the trials that count, the one as published first."""
        listed = self.item.competitors(line) if line.worst_of else ()
        trials = [self.item.trial(line.trial)] if side == "published" else listed
        return [trial for trial in trials if trial.attacks(column)]

    def _together(
        self, trials: Sequence[Trial], column: Column, data: str, counted: Counted
    ) -> Held:
        """Return what is counted cell by cell, the cells of one trial below each other."""
        if data not in self.places:
            return _none()
        cells = enumerate(self._cells(trials, column, data))
        found = {number: counted(names, self.places[data]) for number, names in cells}
        known = {number: held for number, held in found.items() if len(held)}
        return pd.concat(known) if known else _none()

    def _cells(self, trials: Sequence[Trial], column: Column, data: str) -> Iterator[list[str]]:
        """Yield for each cell of the first trial its address and those that compete with it."""
        rows = [map(str, self.item.addresses(trial, column, data)) for trial in trials]
        yield from (list(dict.fromkeys(names)) for names in zip(*rows, strict=True))

    def _known(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self.outcomes]

    def _of(self, line: Row | Panel | None, names: Sequence[str], place: str) -> pd.DataFrame:
        """Return some columns of the outcomes on one data set, without the samples that one of them was not asked about."""
        index = self.outcomes.index
        here = index.get_level_values("dataset") == place
        if isinstance(line, Panel) and line.label is not None:
            here &= index.get_level_values("label") == line.label
        return self.outcomes.loc[here, list(names)].dropna()

    def _reached(self, names: Sequence[str], place: str) -> Held:
        fell = self._of(None, names, place)[names[0]]
        return _finite(fell[fell > 0])

    def _fooled(self, names: Sequence[str], place: str) -> Held:
        """Return, of the attacked samples, those on which one of the attacks reached its goal and was not rejected."""
        fell = self._of(None, names, place)
        fell = fell[fell[names[0]] > 0]
        fools = [_finite(fell[name]) & ~self._rejected(name, fell.index) for name in names]
        found: Held = pd.concat(fools, axis=1).any(axis=1)
        return found

    def _detected(self, names: Sequence[str], place: str) -> Held:
        if f"{names[0]}{REJECTED}" not in self.outcomes:
            return _none()  # the model never rejects
        fooled = self._fooled(names, place)
        detected: Held = ~fooled[_finite(self.outcomes.loc[fooled.index, names[0]])]
        return detected

    def _rejected(self, name: str, index: pd.Index) -> Held:
        column = f"{name}{REJECTED}"
        if column not in self.outcomes:
            return pd.Series(data=False, index=index)
        told: Held = self.outcomes.loc[index, column] == 1
        return told


def rate_of(held: Held) -> Rate:
    """Return the share that counts."""
    return Rate(int(held.sum()), len(held))


def _finite(fell: "pd.Series[float]") -> Held:
    finite: Held = fell < inf
    return finite


def _none() -> Held:
    return pd.Series(dtype=bool)
