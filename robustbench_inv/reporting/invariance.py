"""The table of invariance attacks: decisions that stayed, classes that changed, both, and how far the oracle is right."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from robustbench_inv.reporting.cells import CellResult, panels
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, show_rate, slug
from robustbench_inv.reporting.facts import IntervalOf, identity_facts, oracle_of, rate_facts
from robustbench_inv.results.invariance import tell_invariance
from robustbench_inv.results.summary import Rate

__all__ = ["invariance_tables"]

CAPTION = (
    "Shares in % [95 % interval] of the attacked samples (those that were wrong before are not). Both: the decision "
    "stayed although the oracle names another class, which is the failure. Unknown: the oracle names none. As the "
    "oracle says, as the old label says: decisions on changed inputs whose class the oracle knows; to follow the old "
    "label is no merit. Oracle wrong: its own error on clean inputs or catch trials."
)

COLUMNS = ("Model", "Attack", "Attacked", "Stays", "Class changed", "Both", "Unknown")
MORE = ("As the oracle says", "As the old label says", "Oracle", "Oracle wrong", "Oracle unknown")


def invariance_tables(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    """Yield a table for each panel of invariance attacks.

    Args:
        cells: of any kind; those that seek another decision are passed over.
        interval: of every share.
    """
    for panel, group in panels(c for c in cells if c.panel.keeps).items():
        yield Table(
            slug(f"invariance-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"Decision kept, class changed: {panel.title}",
            CAPTION,
            pd.DataFrame([_fact(cell, interval) for cell in group]),
            (*COLUMNS, *MORE),
            tuple(_row(cell, interval) for cell in group),
        )


def _row(cell: CellResult, interval: IntervalOf) -> tuple[Shown, ...]:
    found, errors = tell_invariance(cell.records), _error_rates(cell)

    def show(rate: Rate | None) -> Shown:
        return show_rate(rate, interval(rate)) if rate else EMPTY

    return (
        Shown(cell.model, tone="name"),
        Shown(cell.attack, tone="name"),
        Shown(f"{found.kept.trials:,}"),
        *map(show, (found.kept, found.changed, found.failed, found.unknown)),
        *map(show, (found.as_oracle, found.as_label)),
        Shown(oracle_of(cell) or "—", tone="note"),
        *map(show, errors.values()),
    )


def _fact(cell: CellResult, interval: IntervalOf) -> dict[str, Any]:
    found = vars(tell_invariance(cell.records))
    return {
        **identity_facts(cell),
        "oracle": oracle_of(cell),
        **rate_facts({**found, **_error_rates(cell)}, interval),
    }


def _error_rates(cell: CellResult) -> dict[str, Rate | None]:
    """Return how often a cell's oracle errs itself; None where that was not measured."""
    error = cell.folder.oracle_error()
    return {
        "oracle_wrong": error.wrong_rate if error else None,
        "oracle_unknown": error.unknown_rate if error else None,
    }
