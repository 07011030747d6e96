"""The table of cascades: how many samples fell to each of the attacks that were run one after the other."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from robustbench_inv.reporting.cells import CellResult, panels
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, slug
from robustbench_inv.reporting.facts import IntervalOf, budget_of, identity_facts
from robustbench_inv.results.breakers import Breakers, tell_breakers

__all__ = ["breaker_tables"]

CAPTION = (
    "Numbers of samples. Each attack got what those to its left had not broken, and a sample counts for the one that "
    "broke it, at the smallest eps where it fell. Left: what none of them broke at the largest eps."
)


def breaker_tables(cells: Sequence[CellResult], _interval: IntervalOf) -> Iterable[Table]:
    """Yield a table for each panel that has cascades.

    Args:
        cells: of any kind; attacks that are no cascade are passed over.
    """
    told = {c.folder.digest: tell_breakers(c.info, c.records, c.folder.events()) for c in cells}
    for panel, group in panels(c for c in cells if told[c.folder.digest]).items():
        found = [(cell, each) for cell in group if (each := told[cell.folder.digest])]
        members = tuple(dict.fromkeys(name for _, each in found for name in each.members))
        met = ("Met on the way",) if any(each.others for _, each in found) else ()
        yield Table(
            slug(f"broken-by-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"Broken by: {panel.title}",
            CAPTION,
            pd.DataFrame([fact for cell, each in found for fact in _facts(cell, each)]),
            ("Model", "Attack", "Budget", "Samples", "Wrong before", *members, *met, "Left"),
            tuple(_row(cell, each, members, bool(met)) for cell, each in found),
        )


def _row(cell: CellResult, told: Breakers, members: Sequence[str], met: bool) -> tuple[Shown, ...]:
    return (
        Shown(cell.model, tone="name"),
        Shown(cell.attack, tone="name"),
        Shown(budget_of(cell)),
        Shown(f"{len(cell.records):,}"),
        Shown(f"{told.wrong:,}"),
        *(_count(told.members.get(name)) for name in members),
        *((_count(told.others),) if met else ()),
        Shown(f"{told.left:,}"),
    )


def _count(count: int | None) -> Shown:
    return EMPTY if count is None else Shown(f"{count:,}")


def _facts(cell: CellResult, told: Breakers) -> Iterable[dict[str, Any]]:
    """Yield a row for each member, and one for each other end that a sample came to."""
    ends = {"met on the way": told.others, "wrong before": told.wrong, "left": told.left}
    for name, count in {**told.members, **ends}.items():
        yield {**identity_facts(cell), "broken_by": name, "count": count}
