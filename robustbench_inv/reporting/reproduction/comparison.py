"""Published numbers beside ours, for every row and column of a paper's table."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import pandas as pd

from robustbench_inv.catalogue.reproduction import Column, Reproduction, Row
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.reproduction.outcomes import ReproductionOutcomes, rate_of
from robustbench_inv.results.experiment_result import ExperimentResult, MeasuredNumber
from robustbench_inv.results.summary import Rate

__all__ = [
    "ComparedNumber",
    "ComparedRow",
    "compare_outcomes",
    "compare_result",
    "find_datasets",
    "numbers_by_remark",
]

REMARK_DIFFERENCE = 0.1
"""A larger difference needs a remark: 10 percentage points, or a tenth of a published amount."""


@dataclass(frozen=True)
class ComparedRow:
    """A row of the paper's table.

    Args:
        label: unique name that claims and remarks refer to.
        name: heading of the row.
        eps: budget of the attack; 0 without one.
        metric: which share the row reports, as ``RowMetric``; empty for rows of an experiment.
        is_amount: whether the row reports amounts rather than shares.
    """

    label: str
    name: str
    eps: float = 0.0
    metric: str = ""
    is_amount: bool = False

    @classmethod
    def of(cls, row: Row) -> "ComparedRow":
        """Return the row of an item that runs attacks."""
        return cls(row.label, row.name, row.eps, row.metric)


@dataclass(frozen=True)
class ComparedNumber:
    """One number of the paper's table and ours.

    Args:
        row: its row.
        column: name of its column.
        published: the paper's share (a fraction) or amount; nan if the paper gives none.
        ours: our number, with the attack as published; None if it was not measured.
        adaptive: our worst-case share; None if the row has none or nothing was measured.
        remark: why the numbers differ; empty if the item gives no reason.
        model: the model behind our number; empty for an experiment.
    """

    row: ComparedRow
    column: str
    published: float
    ours: MeasuredNumber | None
    adaptive: Rate | None = None
    remark: str = ""
    model: str = ""

    @property
    def label(self) -> str:
        """Row and column."""
        return f"{self.row.label}, {self.column}"

    @property
    def difference(self) -> float:
        """Ours minus published; nan if one of them is missing."""
        return self.ours.value - self.published if self.ours else nan

    @property
    def needs_remark(self) -> bool:
        """Is the difference above 10 points, or above a tenth of a published amount? A rounding error is ignored."""
        scale = abs(self.published) if self.row.is_amount else 1
        return abs(self.difference) > (REMARK_DIFFERENCE + 1e-9) * scale

    @property
    def lacks_remark(self) -> bool:
        """Does the number need a remark that the item does not give?"""
        return self.needs_remark and not self.remark

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints; shares are fractions."""
        return {
            "row": self.row.label,
            "attack": self.row.name,
            "eps": self.row.eps,
            "metric": self.row.metric or None,
            "column": self.column,
            "model": self.model or None,
            "published": _number_or_none(self.published),
            "ours": _measured_json(self.ours),
            "difference": _number_or_none(self.difference),
            "adaptive": self.adaptive.to_json() if self.adaptive else None,
            "remark": self.remark or None,
            "has_remark": bool(self.remark) if self.needs_remark else None,
        }


def compare_outcomes(outcomes: ReproductionOutcomes) -> list[ComparedNumber]:
    """Return every number of an item that runs attacks, row by row."""
    item = outcomes.item
    return [_compare_shares(outcomes, row, column) for row in item.rows for column in item.columns]


def compare_result(item: Reproduction, result: ExperimentResult) -> list[ComparedNumber]:
    """Return every number of an item that runs an experiment: the published rows first, then further ones."""
    # a share of no samples, such as of a class that a small subset lacks, was not measured
    measured = {(each.row, each.column): each for each in result.numbers if not isnan(each.value)}
    labels = dict.fromkeys((*item.published, *(each.row for each in result.numbers)))
    amounts = {each.row for each in measured.values() if not (each.trials or each.trainings)}
    rows = [ComparedRow(label, label, is_amount=label in amounts) for label in labels]
    return [
        _compare_measured(item, row, column, measured.get((row.label, column.name)))
        for row in rows
        for column in item.columns
    ]


def numbers_by_remark(numbers: Sequence[ComparedNumber]) -> dict[str, list[ComparedNumber]]:
    """Return the numbers that have or need a remark, by remark; those that lack one last."""
    found: dict[str, list[ComparedNumber]] = {}
    for number in sorted(numbers, key=lambda each: not each.remark):
        if number.remark or number.needs_remark:
            found.setdefault(number.remark, []).append(number)
    return found


def find_datasets(
    item: Reproduction, outcomes: pd.DataFrame, dataset: str | None = None
) -> dict[str, str]:
    """Return, for each data set of an item, the data set on which it was evaluated.

    Args:
        item: what is reproduced.
        outcomes: as ``outcomes_frame`` returns them.
        dataset: which one to use if there are records on several.

    Raises:
        BadResults: if there are no records, or records on several data sets and none is named.
    """
    if dataset is not None:
        return item.places(dataset)
    names: dict[str, str] = {}
    known = set(map(str, outcomes.index.get_level_values("dataset")))
    for data in item.datasets:
        candidates = known.difference(item.datasets) | {data}
        found = sorted(name for name in known & candidates if name.startswith(data))
        if len(found) > 1:
            raise BadResults(
                "records on several data sets", got=found, remedy="choose one with --dataset"
            )
        names |= zip([data] * len(found), found, strict=True)
    if not names:
        expected = " or ".join(item.datasets)
        raise BadResults(f"no records of {item.name}", got=sorted(known), expected=expected)
    return names


def _compare_shares(outcomes: ReproductionOutcomes, row: Row, column: Column) -> ComparedNumber:
    item, (data,) = outcomes.item, outcomes.item.datasets
    ours = rate_of(outcomes.counted(row, column, "published", data))
    adaptive = rate_of(outcomes.counted(row, column, "adaptive", data))
    return ComparedNumber(
        ComparedRow.of(row),
        column.name,
        published=outcomes.published_share(row, column),
        ours=_measured_share(row.label, column.name, ours),
        adaptive=adaptive if adaptive.trials else None,
        remark=item.remark(row.label, column.name),
        model=column.model(item.trial(row.trial).side, data),
    )


def _measured_share(row: str, column: str, rate: Rate) -> MeasuredNumber | None:
    return MeasuredNumber(row, column, rate.value, rate.trials) if rate.trials else None


def _compare_measured(
    item: Reproduction, row: ComparedRow, column: Column, ours: MeasuredNumber | None
) -> ComparedNumber:
    position = item.columns.index(column)
    published = item.published[row.label][position] if row.label in item.published else nan
    published /= 1 if row.is_amount else 100
    is_blank = ours is None and isnan(published)
    remark = "" if is_blank else item.remark(row.label, column.name)
    return ComparedNumber(row, column.name, published, ours, remark=remark)


def _measured_json(number: MeasuredNumber | None) -> dict[str, Any] | None:
    if number is None:
        return None
    rate = number.rate.to_json() if number.rate else {}
    trainings = {"trainings": list(number.trainings)} if number.trainings else {}
    return rate | {"value": number.value} | trainings


def _number_or_none(value: float) -> float | None:
    return None if isnan(value) else value
