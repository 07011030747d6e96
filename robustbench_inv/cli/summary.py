"""Tables on standard output: what an evaluation found, and what a planned one will cost."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from robustbench_inv.evaluation.cost import Estimate
    from robustbench_inv.evaluation.plan import Plan
    from robustbench_inv.evaluation.run import Run

__all__ = ["print_estimates", "print_run"]

WIDTH = 200
"""Columns that a table may take where there is no terminal."""


def print_run(run: "Run") -> None:
    """Print one row for each cell, then every check that is not content, then where the records are."""
    cells = run.to_json()
    console = _console()
    console.print(_results(cells))
    for verdict in _doubtful(cells):
        console.print(
            f"{verdict['verdict']} {verdict['id']} {verdict['subject']}: {verdict['evidence']}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    console.print(f"records: {run.path}", highlight=False, markup=False, soft_wrap=True)


def print_estimates(plan: "Plan", estimates: "Sequence[Estimate]") -> None:
    """Print one row for each planned cell and the time that all will take at most."""
    table = _table("model", "attack", "threat", "data set", title=plan.name)
    for heading in ("samples", "passes", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for job, cost in zip(plan.jobs, estimates, strict=True):
        about = job.to_json()
        names = [str(about[key]) for key in ("model", "attack", "threat", "dataset")]
        sign = "~" if cost.guessed else ""
        seconds = f"{cost.low:.0f} to {sign}{cost.high:.0f}"
        table.add_row(*names, str(cost.samples), f"{sign}{cost.passes}", seconds)
    console = _console()
    console.print(table)
    low, high = sum(cost.low for cost in estimates), sum(cost.high for cost in estimates)
    console.print(f"{low:.0f} to {high:.0f} seconds in all; nothing was run", highlight=False)


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def _results(cells: Sequence[dict[str, Any]]) -> Table:
    table = _table("model", "attack", "norm", title="per cent, with 95 % intervals")
    for heading in ("samples", "clean", "eps", "robust", "distance", "passes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("checks", no_wrap=True)
    for cell in cells:
        table.add_row(*_row(cell))
    return table


def _table(*headings: str, title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _row(cell: dict[str, Any]) -> tuple[str, ...]:
    distance = cell["median_distance"]
    passes = cell["forward_passes"] + cell["backward_passes"]
    return (
        cell["model"],
        cell["attack"],
        _norm(cell["threat"]),
        str(cell["samples"]),
        _rate(cell["clean_accuracy"]),
        "\n".join(f"{eps:g}" for eps in cell["epsilons"]),
        "\n".join(map(_rate, cell["robust_accuracy"])),
        "" if distance is None else f"{distance:.3g}",
        f"{passes:.0f}",
        _count(cell["checks"]),
    )


def _norm(threat: str) -> str:
    """Return the norm of a threat; ``none`` measures in l2 unless it says otherwise."""
    return "l2" if threat == "none" else threat.removeprefix("none:norm=").partition("=")[0]


def _rate(rate: dict[str, float]) -> str:
    if not rate["trials"]:
        return "none"
    share = rate["successes"] / rate["trials"]
    return f"{100 * share:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _count(verdicts: Sequence[dict[str, Any]]) -> str:
    grades = Counter(verdict["verdict"] for verdict in verdicts)
    return "\n".join(f"{grades[g]} {g}" for g in ("FAIL", "WARN", "PASS") if grades[g])


def _doubtful(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {
        (verdict["id"], verdict["subject"], verdict["evidence"]): verdict
        for cell in cells
        for verdict in cell["checks"]
        if verdict["verdict"] in ("WARN", "FAIL")
    }
    return [found[key] for key in sorted(found)]
