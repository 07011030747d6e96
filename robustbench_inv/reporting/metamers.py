"""The table of metamers: how exact the inverse is, what survives clipping and rounding, whose class they have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import pandas as pd

from robustbench_inv.reporting.cells import CellResult, panels
from robustbench_inv.reporting.exports import Shown, Table, number, show_rate, slug
from robustbench_inv.reporting.facts import IntervalOf, identity_facts, oracle_of, rate_facts
from robustbench_inv.results.measured import read_measured
from robustbench_inv.results.summary import Rate

__all__ = ["metamer_tables"]

EXACT = 1e-3
"""How near logits must stay to count as the same where the goal does not say."""

STAGES = {"raw": "decoded", "clip": "clipped", "round": "rounded"}


def metamer_tables(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    """Yield a table for each panel that has metamers.

    Args:
        cells: of any kind; those without the measurements of metamers are passed over.
        interval: of every share.
    """
    measured = [_Metamers(cell, read_measured(cell.folder.events())) for cell in cells]
    found = {m.cell.folder.digest: m for m in measured if "reencoding" in m.columns}
    for panel, group in panels(m.cell for m in found.values()).items():
        told = [found[cell.folder.digest] for cell in group]
        yield Table(
            slug(f"metamers-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"Metamers: {panel.title}",
            _caption(told),
            pd.DataFrame([_fact(each, interval) for each in told]),
            ("Model", "Attack", "Metamers", "Error", *told[0].rates),
            tuple(_row(each, interval) for each in told),
        )


@dataclass(frozen=True)
class _Metamers:
    """A cell and what was measured of its samples: name → sample → number."""

    cell: CellResult
    columns: Mapping[str, Mapping[int, float | None]]

    @property
    def ids(self) -> list[int]:
        """The samples of which a metamer was shown."""
        return [r.sample for r in self.cell.records if r.status == "ok"]

    @property
    def tolerance(self) -> float:
        """How far logits may be off and still be the same."""
        goal = self.cell.info["threat"].get("goal_parameters") or {}
        return float(goal.get("tolerance", EXACT))

    @property
    def error(self) -> float:
        """The largest difference of re-encoded logits from those that were given."""
        errors = [self.columns["reencoding"][i] for i in self.ids]
        return max((inf if error is None else error for error in errors), default=0.0)

    @property
    def rates(self) -> dict[str, Rate]:
        """Every share, by its heading."""
        shares = {
            **{f"Decision {word}": self._decided(stage) for stage, word in STAGES.items()},
            **{f"Logits {word}": self._near(stage) for stage, word in STAGES.items()},
            "Donor's class": self._seen(self.columns["donor_label"]),
            "Source's class": self._seen({r.sample: r.label for r in self.cell.records}),
        }
        return {name: Rate(count, len(self.ids)) for name, count in shares.items()}

    def _decided(self, stage: str) -> int:
        return sum(self.columns[f"{stage}_decision"][i] == 1 for i in self.ids)

    def _near(self, stage: str) -> int:
        moved = [self.columns[f"{stage}_logits"][i] for i in self.ids]
        return sum(far is not None and far <= self.tolerance for far in moved)

    def _seen(self, classes: Mapping[int, float | None]) -> int:
        shown = [r for r in self.cell.records if r.status == "ok" and r.oracle is not None]
        return sum(r.oracle == classes[r.sample] for r in shown)


def _caption(told: Sequence[_Metamers]) -> str:
    near = " or ".join(f"{t:g}" for t in sorted({each.tolerance for each in told}))
    return (
        "Shares in % [95 % interval] of the metamers. Error: largest difference of a decoded metamer's logits, encoded "
        "anew, from those it was given. Decision, logits: those of the source are kept (logits to "
        f"{near}) as decoded, when clipped to the bounds, when rounded to 256 grey levels. Donor's, source's: the class "
        "that the oracle sees in what is shown."
    )


def _row(told: _Metamers, interval: IntervalOf) -> tuple[Shown, ...]:
    return (
        Shown(told.cell.model, tone="name"),
        Shown(told.cell.attack, tone="name"),
        Shown(f"{len(told.ids):,}"),
        Shown(number(told.error)),
        *(show_rate(rate, interval(rate)) for rate in told.rates.values()),
    )


def _fact(told: _Metamers, interval: IntervalOf) -> dict[str, Any]:
    rates = {name.replace("'", "").replace(" ", "_").lower(): r for name, r in told.rates.items()}
    return {
        **identity_facts(told.cell),
        "oracle": oracle_of(told.cell),
        "tolerance": told.tolerance,
        "largest_error": told.error,
        **rate_facts(rates, interval),
    }
