"""Published numbers beside ours: as published, and adaptive, for every row and column of a paper's table."""

from dataclasses import dataclass
from math import isnan
from typing import Any

import pandas as pd

from robustbench_inv.catalogue.reproduction import Column, Reproduction, Row
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.reproduction.evidence import Evidence, rate_of
from robustbench_inv.results.summary import Rate

__all__ = ["Entry", "compare", "find_places", "is_far"]

FAR = 0.1
"""A difference from the published share above which a remark is due."""


def is_far(difference: float) -> bool:
    """Is a remark due? Not where rounding alone lifts the difference above FAR, nor where there is none (nan)."""
    return abs(difference) > FAR + 1e-9


@dataclass(frozen=True)
class Entry:
    """One number of the paper's table and what we have for it.

    Args:
        row: which attack, at which eps.
        column: which model.
        model: the model that was attacked as published.
        published: the paper's share; nan where it gives none.
        ours: the share as published; no trials if that was not run.
        adaptive: the share under everything that counts; None for a row that has no such number.
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
        """Ours minus published; nan if one of them is missing."""
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
        known, compared = bool(self.ours.trials), not isnan(self.difference)
        return {
            "row": self.row.label,
            "attack": self.row.name,
            "eps": self.row.eps,
            "tells": self.row.tells,
            "column": self.column.name,
            "model": self.model,
            "published": None if isnan(self.published) else self.published,
            "ours": self.ours.to_json() if known else None,
            "difference": self.difference if compared else None,
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


def _entry(evidence: Evidence, row: Row, column: Column) -> Entry:
    item, (data,) = evidence.item, evidence.item.datasets
    worst = evidence.share("adaptive", row, column, data)
    return Entry(
        row=row,
        column=column,
        model=column.model(item.trial(row.trial).on, data),
        published=evidence.number(row, column),
        ours=rate_of(evidence.share("published", row, column, data)),
        adaptive=rate_of(worst) if len(worst) else None,
        remark=item.remark(row, column),
    )
