"""The table of inputs that a data set gives: with whom does a model agree, on all of them (check C35)?"""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from robustbench_inv.reporting.cells import CellResult
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, show_rate, slug
from robustbench_inv.reporting.facts import IntervalOf, identity_facts, oracle_of, rate_facts
from robustbench_inv.results.summary import Rate

__all__ = ["agreement_tables"]

ALTERED = (
    "Decisions on altered inputs, in % [95 % interval] of all of them: how many are the class that the oracle sees, and "
    "how many the original label. To keep the label where the oracle sees another class is the failure. {truth}"
)
SHIFTED = "Accuracy in % [95 % interval] on the inputs as they were, and on the same ones shifted. {truth}"


def agreement_tables(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    """Yield a table for each family of data sets whose given inputs were shown: one row for each model.

    Args:
        cells: of any kind; those of attacks that search, or show what is of no class, are passed over.
        interval: of every share.
    """
    families: dict[tuple[str, str], list[CellResult]] = {}
    for cell in cells:
        if cell.kind == "given" and not cell.panel.no_class:
            families.setdefault((_family(cell), cell.panel.goal), []).append(cell)
    for (family, goal), group in families.items():
        altered = any(_judged(cell) for cell in group)
        title = "Agreement on altered inputs" if altered else "Accuracy before and after the shift"
        yield Table(
            slug(f"agreement-{family}-{goal}"),
            f"{title}: {family}",
            (ALTERED if altered else SHIFTED).format(truth=_truths(group)).strip(),
            pd.DataFrame([_fact(cell, interval) for cell in group]),
            ("Model", *(f"{_set(cell)}: {who}" for cell in _sets(group) for who in _rates(cell))),
            tuple(_rows(group, interval)),
        )


def _rows(group: Sequence[CellResult], interval: IntervalOf) -> Iterable[tuple[Shown, ...]]:
    """Yield a row for each model, a pair of columns for each set; a dash where it was not measured."""
    sets = [(cell.panel.dataset, _rates(cell)) for cell in _sets(group)]
    for model in dict.fromkeys(cell.model for cell in group):
        mine = {cell.panel.dataset: _rates(cell) for cell in group if cell.model == model}
        row = [Shown(model, tone="name")]
        for name, usual in sets:
            found = mine.get(name)
            row += (
                [show_rate(r, interval(r)) for r in found.values()]
                if found
                else [EMPTY] * len(usual)
            )
        yield tuple(row)


def _rates(cell: CellResult) -> dict[str, Rate]:
    """Return the pair of shares of a cell by their heading."""
    if not _judged(cell):
        n = len(cell.records)
        before = sum(r.before.decision == r.label for r in cell.records)
        return {"before": Rate(before, n), "after": _agreeing(cell, "label", changed=False)}
    who = oracle_of(cell) or "oracle"
    return {
        who: _agreeing(cell, "oracle", changed=False),
        "label": _agreeing(cell, "label", changed=False),
    }


def _agreeing(cell: CellResult, field: str, *, changed: bool) -> Rate:
    """Return how many decisions are the oracle's class or the label; ``changed``: only where these differ."""
    records = [r for r in cell.records if r.oracle is not None or not _judged(cell)]
    records = [r for r in records if not changed or r.oracle != r.label]
    return Rate(sum(r.after.decision == getattr(r, field) for r in records), len(records))


def _fact(cell: CellResult, interval: IntervalOf) -> dict[str, Any]:
    n, judged = len(cell.records), _judged(cell)
    rates = {
        "clean_accuracy": cell.summary.clean_accuracy,
        "agrees_with_label": _agreeing(cell, "label", changed=False),
        "agrees_with_oracle": _agreeing(cell, "oracle", changed=False) if judged else None,
        "agrees_where_changed": _agreeing(cell, "oracle", changed=True) if judged else None,
        "changed": Rate(_changed(cell), n) if judged else None,
    }
    return {**identity_facts(cell), "oracle": oracle_of(cell), **rate_facts(rates, interval)}


def _truths(group: Sequence[CellResult]) -> str:
    """Say of each set how often the oracle itself sees another class."""
    told = [
        f"{_changed(cell)} of {len(cell.records)} ({_set(cell)})"
        for cell in _sets(group)
        if _judged(cell)
    ]
    return f"The oracle sees another class than the label in {', '.join(told)}." if told else ""


def _changed(cell: CellResult) -> int:
    return sum(r.oracle not in (None, r.label) for r in cell.records)


def _judged(cell: CellResult) -> bool:
    return any(r.oracle is not None for r in cell.records)


def _sets(group: Sequence[CellResult]) -> list[CellResult]:
    """Return the first cell of each data set."""
    return list({cell.panel.dataset: cell for cell in reversed(group)}.values())[::-1]


def _family(cell: CellResult) -> str:
    return cell.panel.dataset.partition(":")[0]


def _set(cell: CellResult) -> str:
    """Return what tells a data set from its family: the value of its only parameter, or all parameters.

    It is the whole name for a data set without parameters.
    """
    parameters = cell.panel.dataset.partition(":")[2]
    if not parameters:
        return cell.panel.dataset
    return parameters.partition("=")[2] if "," not in parameters else parameters.replace(",", " ")
