"""Published numbers beside ours: as published, and adaptive, for every row and column of a paper's table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd

from robustbench_inv.catalogue.reproduction import (
    Address,
    Column,
    Panel,
    Reproduction,
    Row,
    Side,
)
from robustbench_inv.errors import BadResults
from robustbench_inv.results.summary import Rate

__all__ = ["Entry", "Evidence", "Held", "compare", "find_places", "is_far", "rate_of"]

Held: TypeAlias = "pd.Series[bool]"
"""Which samples held, by data set, sample id and label."""

FAR = 0.1
"""A difference from the published share above which a remark is due."""


def is_far(difference: float) -> bool:
    """Is a remark due? Not where rounding alone lifts the difference above FAR, nor where there is none (nan)."""
    return abs(difference) > FAR + 1e-9


@dataclass(frozen=True)
class Evidence:
    """What was measured for an item.

    Args:
        item: what is reproduced.
        outcomes: at which eps every sample fell, as ``outcomes_of`` returns them.
        places: on which data set each of the item's own was evaluated.
    """

    item: Reproduction
    outcomes: pd.DataFrame
    places: Mapping[str, str]

    def held(self, side: Side, line: Row | Panel, column: Column, data: str, eps: float) -> Held:
        """Return which samples held, of those that everything counted here saw.

        Args:
            side: as published: against that attack; adaptive: against all that the line lists, if any.
            line: which attack, or attacks.
            column: which model.
            data: which of the item's data sets.
            eps: trials that do not tell who falls there are left out.
        """
        item = self.item
        listed = item.competitors(line) if line.worst_of else ()
        trials = [item.trial(line.trial)] if side == "published" else listed
        telling = [t for t in trials if not eps or eps in (item.sweep(t) or (eps,))]
        names = [str(item.address(trial, column, data)) for trial in telling]
        known = [name for name in dict.fromkeys(names) if name in self.outcomes]
        if not known or data not in self.places:
            return pd.Series(dtype=bool)
        index = self.outcomes.index
        here = index.get_level_values("dataset") == self.places[data]
        if isinstance(line, Panel) and line.label is not None:
            here &= index.get_level_values("label") == line.label
        return self.outcomes.loc[here, known].dropna().gt(eps).all(axis=1)

    def number(self, row: Row, column: Column) -> float:
        """Return the paper's share."""
        return self.item.published[row.label][self.item.columns.index(column)] / 100

    @property
    def missing(self) -> list[Address]:
        """The cells without records."""
        item = self.item
        wanted = [
            item.address(trial, column, data)
            for data in self.places
            for trial in item.trials
            for column in item.columns
        ]
        return [address for address in wanted if str(address) not in self.outcomes]


@dataclass(frozen=True)
class Entry:
    """One number of the paper's table and what we have for it.

    Args:
        row: which attack, at which eps.
        column: which model.
        model: the model that was attacked as published.
        published: the paper's share.
        ours: the share that held as published; no trials if that was not run.
        adaptive: the share that held against everything; None for a row that has no such number.
        remark: why the numbers differ; empty if nothing was said.
    """

    row: Row
    column: Column
    model: str
    published: float
    ours: Rate
    adaptive: Rate | None
    remark: str

    @property
    def place(self) -> str:
        """Where it stands in the table."""
        return f"{self.row.label}, {self.column.name}"

    @property
    def difference(self) -> float:
        """Ours minus published; nan if it was not run."""
        return self.ours.value - self.published

    @property
    def far(self) -> bool:
        """Do the numbers differ by more than 10 points?"""
        return is_far(self.difference)

    @property
    def unexplained(self) -> bool:
        """Do they, and nobody said why?"""
        return self.far and not self.remark

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints; shares are fractions."""
        known = bool(self.ours.trials)
        return {
            "row": self.row.label,
            "attack": self.row.name,
            "eps": self.row.eps,
            "column": self.column.name,
            "model": self.model,
            "published": self.published,
            "ours": self.ours.to_json() if known else None,
            "difference": self.difference if known else None,
            "interval": [self.ours.low, self.ours.high] if known else None,
            "adaptive": self.adaptive.to_json() if self.adaptive else None,
            "remark": self.remark or None,
            "explained": bool(self.remark) if self.far else None,
        }


def compare(evidence: Evidence) -> list[Entry]:
    """Return the entries of the table, row by row; every number follows from the outcomes alone."""
    item = evidence.item
    return [_entry(evidence, row, column) for row in item.rows for column in item.columns]


def find_places(
    item: Reproduction, outcomes: pd.DataFrame, dataset: str | None = None
) -> dict[str, str]:
    """Return on which data set each of the item's own was evaluated, as the outcomes say.

    Args:
        item: what is reproduced.
        outcomes: what was measured.
        dataset: the one that is meant, if there are records on several.

    Raises:
        BadResults: if there is none, or if there are several and none is named.
    """
    if dataset is not None:
        return item.places(dataset)
    places: dict[str, str] = {}
    known = set(map(str, outcomes.index.get_level_values("dataset")))
    for data in item.datasets:
        others = known.difference(item.datasets) | {data}
        found = sorted(name for name in known & others if name.startswith(data))
        if len(found) > 1:
            raise BadResults(
                "records on several data sets", got=found, remedy="name one: --dataset"
            )
        places |= zip([data] * len(found), found, strict=True)
    if not places:
        raise BadResults(
            f"no records of {item.name}", got=sorted(known), expected=" or ".join(item.datasets)
        )
    return places


def rate_of(held: Held) -> Rate:
    """Return the share that held."""
    return Rate(int(held.sum()), len(held))


def _entry(evidence: Evidence, row: Row, column: Column) -> Entry:
    item, (data,) = evidence.item, evidence.item.datasets
    worst = evidence.held("adaptive", row, column, data, row.eps)
    return Entry(
        row=row,
        column=column,
        model=item.address(item.trial(row.trial), column, data).model,
        published=evidence.number(row, column),
        ours=rate_of(evidence.held("published", row, column, data, row.eps)),
        adaptive=rate_of(worst) if len(worst) else None,
        remark=item.remark(row, column),
    )
