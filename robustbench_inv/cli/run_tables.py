"""Tables on standard output: results of a run, estimated cost of a plan, comparison with a paper."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from robustbench_inv.cli.output import print_json
from robustbench_inv.results.cell import label_with_substitute
from robustbench_inv.results.rates import EnsembleBreakdown

if TYPE_CHECKING:
    from pathlib import Path

    from robustbench_inv.api import Run
    from robustbench_inv.evaluation.cost import Estimate
    from robustbench_inv.evaluation.plan import Plan
    from robustbench_inv.reporting.reproduction.claims import ClaimFinding
    from robustbench_inv.reporting.reproduction.paper_report import PaperReport

__all__ = ["print_invariance", "print_plan", "print_reproduction", "print_run"]


WIDTH = 200
"""Columns that a table may take where there is no terminal."""


def print_run(run: "Run") -> None:
    """Print one row for each cell, then every check that is not content, then where the records are.

    Of invariance cells it is told besides what stayed, what changed, and who says so; of cascades, which member
    broke how many.
    """
    cells = run.to_json()
    console = _console()
    console.print(_result_table(cells))
    if kept := [cell for cell in cells if cell["invariance"]]:
        console.print(_invariance_table(kept))
    for cell in cells:
        if cell["ensemble"]:
            console.print(_ensemble_line(cell), highlight=False, markup=False, soft_wrap=True)
    for verdict in _warnings_and_failures(cells):
        console.print(_check_line(verdict), highlight=False, markup=False, soft_wrap=True)
    console.print(f"records: {run.path}", highlight=False, markup=False, soft_wrap=True)


def print_invariance(cells: "Sequence[Mapping[str, Any]]", folder: "Path") -> None:
    """Print what became of decisions and classes in each cell, then where the records are.

    Args:
        cells: each with ``model``, ``attack`` and ``invariance``, as ``--json`` prints them.
        folder: of the run.
    """
    console = _console()
    console.print(_invariance_table(cells))
    console.print(f"records: {folder}", highlight=False, markup=False, soft_wrap=True)


def print_plan(plan: "Plan", json: bool) -> None:
    """Print one row for each planned cell and the time that all will take at most, or an object for each."""
    from robustbench_inv.evaluation.cost import estimate_jobs

    estimates = estimate_jobs(plan.jobs)
    if json:
        pairs = zip(plan.jobs, estimates, strict=True)
        return print_json([{**job.to_json(), **estimate.to_json()} for job, estimate in pairs])
    return _print_estimates(plan, estimates)


def print_reproduction(found: "PaperReport") -> None:
    """Print the paper's table with ours, what became of its claims, what is unexplained, and every doubtful check."""
    console = _console()
    if found.entries:
        console.print(_comparison_table(found))
    lines = [
        *(_claim_line(finding) for finding in found.findings),
        *(f"not explained yet: {entry.place}" for entry in found.unexplained),
        *map(_check_line, found.failed_checks),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_estimates(plan: "Plan", estimates: "Sequence[Estimate]") -> None:
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


def _result_table(cells: Sequence[dict[str, Any]]) -> Table:
    table = _table("model", "attack", "norm", title="per cent, with 95 % intervals")
    for heading in ("samples", "clean", "eps", "robust", "distance", "passes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("checks", no_wrap=True)
    for cell in cells:
        table.add_row(*_result_row(cell))
    return table


def _invariance_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    title = "decision kept, class changed: per cent of the attacked, with 95 % intervals"
    table = _table("model", "attack", title=title)
    headings = {
        "same_prediction": "same prediction",
        "class_changed": "class changed",
        "success": "both",
        "oracle_undecided": "oracle undecided",
    }
    for heading in headings.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("oracle", overflow="fold")
    table.add_column("its error", justify="right", no_wrap=True)
    for cell in cells:
        found = cell["invariance"]
        error = _format_rate(found["oracle_error_rate"]) if found["oracle_error_rate"] else ""
        shares = [_format_rate(found[name]) for name in headings]
        table.add_row(cell["model"], cell["attack"], *shares, found["oracle"], error)
    return table


def _table(*headings: str, title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _result_row(cell: dict[str, Any]) -> tuple[str, ...]:
    distance = cell["median_distance"]
    passes = cell["forward_passes"] + cell["backward_passes"]
    return (
        cell["model"],
        label_with_substitute(cell["attack"], cell["access"], cell["substitute"]),
        cell["norm"],
        str(cell["samples"]),
        _format_rate(cell["clean_accuracy"]),
        "\n".join(f"{eps:g}" for eps in cell["epsilons"]),
        "\n".join(map(_format_rate, cell["robust_accuracy"])),
        "" if distance is None else f"{distance:.3g}",
        f"{passes:.0f}",
        _count_verdicts(cell["checks"]),
    )


def _comparison_table(found: "PaperReport") -> Table:
    """Lay the paper's table out: below each published number ours, the difference, and the adaptive one."""
    table = _table("attack", "accuracy", title=f"{found.item.title}; per cent")
    for column in found.item.columns:
        table.add_column(column.name, justify="right", no_wrap=True)
    for band in found.bands:
        for i, (name, shown) in enumerate(band.lines):
            last = i == len(band.lines) - 1
            label = "" if i else band.row.label
            table.add_row(label, name, *(cell.text for cell in shown), end_section=last)
    return table


def _claim_line(finding: "ClaimFinding") -> str:
    paper, published, adaptive = map(finding.status, finding.contrasts)
    said = f"in the paper {paper}, as published {published}, adaptive {adaptive}"
    return f"{finding.claim.text} ({said})"


def _ensemble_line(cell: Mapping[str, Any]) -> str:
    told = EnsembleBreakdown(**cell["ensemble"])
    return f"{cell['attack']} on {cell['model']}, {cell['threat']}: {told.text}"


def _check_line(verdict: Mapping[str, Any]) -> str:
    return f"{verdict['verdict']} {verdict['id']} {verdict['subject']}: {verdict['evidence']}"


def _format_rate(rate: dict[str, float]) -> str:
    if not rate["trials"]:
        return "none"
    share = rate["successes"] / rate["trials"]
    return f"{100 * share:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _count_verdicts(verdicts: Sequence[dict[str, Any]]) -> str:
    grades = Counter(verdict["verdict"] for verdict in verdicts)
    return "\n".join(f"{grades[g]} {g}" for g in ("FAIL", "WARN", "PASS") if grades[g])


def _warnings_and_failures(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {
        (verdict["id"], verdict["subject"], verdict["evidence"]): verdict
        for cell in cells
        for verdict in cell["checks"]
        if verdict["verdict"] in ("WARN", "FAIL")
    }
    return [found[key] for key in sorted(found)]
