"""Tables on standard output: results of a run, estimated cost of a plan, comparison with a paper."""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustbench_inv.arguments import format_eps, printable
from robustbench_inv.checks.verdict import mark_of_cells
from robustbench_inv.cli.output import (
    print_json,
    print_warnings,
    results_stream,
    seconds_so_far,
)
from robustbench_inv.results.certificates import sandwiches
from robustbench_inv.results.rates import EnsembleBreakdown

if TYPE_CHECKING:
    from pathlib import Path

    from robustbench_inv.checks.audit_verdict import Conclusion
    from robustbench_inv.evaluation.cost import Estimate
    from robustbench_inv.evaluation.plan import Plan
    from robustbench_inv.reporting.reproduction.claims import ClaimFinding
    from robustbench_inv.reporting.reproduction.reproduction_report import ReproductionReport
    from robustbench_inv.reporting.table_formats import Table as ReportTable
    from robustbench_inv.results.cell import FinishedCell
    from robustbench_inv.run import Run

__all__ = ["print_plan", "print_reproduction", "print_rescored", "print_run"]


WIDTH = 200
"""Width of tables in characters if standard output is not a terminal."""


def print_run(run: "Run") -> None:
    """Print one row for each cell, every check that fails or warns, the verdict on each model, and the records' folder.

    Invariance cells get a second table, ensembles a line with the number of samples that each member broke.
    """
    from robustbench_inv.results.sequences import early_texts

    checks = run.checks
    cells = [
        {**told, "mark": mark_of_cells([cell], checks)}
        for cell, told in zip(run.cells, run.to_json(), strict=True)
    ]
    console = _console()
    _print_rates(console, cells)
    lines = [
        *(_ensemble_line(cell) for cell in cells if cell["ensemble"]),
        *(line for cell in run.cells for line in _certified_lines(cell)),
        *_time_lines(cells),
        *early_texts(run.decisions, run.cells),
        *map(_check_line, _warnings_and_failures(cells)),
        *(line for conclusion in run.conclusions for line in _conclusion_lines(conclusion)),
        f"records: {run.path}",
        f"next: invbench report --from {shlex.quote(str(run.path))}",
    ]
    _print_lines(console, lines)


def print_rescored(cells: "Sequence[Mapping[str, Any]]", folder: "Path") -> None:
    """Print the accuracies of each cell, the invariance rates of invariance attacks, and the folder of the records.

    Args:
        cells: as ``--json`` prints them, without checks.
        folder: of the run.
    """
    console = _console()
    _print_rates(console, [{**cell, "checks": []} for cell in cells])
    _print_lines(console, [f"records: {folder}"])


def print_plan(plan: "Plan", json: bool) -> None:
    """Print the warnings of a plan, then one row or JSON object for each cell with its estimated cost."""
    from robustbench_inv.evaluation.cost import estimate_jobs

    print_warnings(plan.warnings)
    start = seconds_so_far()  # the command itself loads code, models and data as well
    estimates = estimate_jobs(plan.jobs)
    if json:
        pairs = zip(plan.jobs, estimates, strict=True)
        return print_json([{**job.to_json(), **estimate.to_json()} for job, estimate in pairs])
    return _print_estimates(plan, estimates, start)


def print_reproduction(report: "ReproductionReport") -> None:
    """Print the numbers, claims and further tables of a report, and what a reader must check."""
    console = _console()
    for part in report.parts:
        tables = [part.numbers_table] if part.numbers else []
        for table in (*tables, *part.details):
            console.print(_report_table(table))
        lines = [
            *map(_claim_line, part.findings),
            *(f"unexplained difference: {n.label}" for n in part.numbers if n.lacks_remark),
        ]
        _print_lines(console, lines)
    if report.missing:
        more = f" and {len(report.missing) - 1} more" if len(report.missing) > 1 else ""
        _print_lines(console, [f"not run: {report.missing[0]}{more}; without them no claim holds"])
    _print_lines(console, map(_check_line, report.failed_checks))


def _print_estimates(plan: "Plan", estimates: "Sequence[Estimate]", start: float) -> None:
    table = _table("model", "attack", "threat", "data set", title=plan.name)
    for heading in ("samples", "passes", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for job, cost in zip(plan.jobs, estimates, strict=True):
        names = (*job.shown, job.threat.text, job.dataset.name)
        sign = "~" if cost.guessed else ""
        table.add_row(*names, str(cost.samples), f"{sign}{cost.passes}", _duration(cost))
    console = _console()
    console.print(table)
    rows = [(start,) * 3, *((cost.seconds, cost.low, cost.high) for cost in estimates)]
    total = format_duration(*map(sum, zip(*rows, strict=True)))
    console.print(f"{total} in total, the start included; nothing was run", highlight=False)


def _duration(cost: "Estimate") -> str:
    return format_duration(cost.seconds, cost.low, cost.high)


def format_duration(seconds: float, low: float, high: float) -> str:
    """Return an expected time and its range in the unit that suits it.

    Example:
        >>> format_duration(3000, 1800, 5400), format_duration(4.2, 2, 9)
        ('about 50 min (30 to 90)', 'about 4 s (2 to 9)')
    """
    unit, name = next(((s, n) for s, n in ((3600, "h"), (60, "min")) if seconds >= 2 * s), (1, "s"))
    numbers = [
        f"{value / unit:.{0 if value >= 2 * unit else 1}f}" for value in (seconds, low, high)
    ]
    return f"about {numbers[0]} {name} ({numbers[1]} to {numbers[2]})"


def _console() -> Console:
    stream = results_stream()
    return Console(file=stream, emoji=False, width=None if stream.isatty() else WIDTH)


def _print_rates(console: Console, cells: Sequence[dict[str, Any]]) -> None:
    """Print the accuracies of each cell, and the invariance rates of those that have any."""
    console.print(_result_table(cells))
    if rejecting := [cell for cell in cells if cell["rejection"] and not cell["invariance"]]:
        console.print(_rejection_table(rejecting))
    if invariance := [cell for cell in cells if cell["invariance"]]:
        console.print(_invariance_table(invariance))


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _result_table(cells: Sequence[dict[str, Any]]) -> Table:
    table = _table(
        "model",
        "attack",
        "norm",
        title="accuracy in per cent, with 95 % intervals; ✗ do not publish, ! with reservations",
    )
    seeds = len({cell["seed"] for cell in cells}) > 1
    for heading in (
        *(["seed"] if seeds else []),
        "samples",
        "clean accuracy",
        "eps",
        "robust accuracy",
        "median distance",
        "passes",
        "attack time",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("checks", no_wrap=True)
    for cell in cells:
        table.add_row(*_result_row(cell, seeds=seeds))
    return table


def _rejection_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    title = (
        "reject option: a rejected input counts as robust above, as an error in these accuracies"
    )
    table = _table("model", "attack", title=title)
    headings = {
        "clean_accuracy_with_rejection": "clean accuracy",
        "false_rejection": "clean inputs rejected",
        "accuracy_with_rejection": "accuracy under attack",
        "accuracy_on_accepted": "of accepted inputs",
    }
    for heading in headings.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in cells:
        shares = (_format_rate(cell["rejection"][name]) for name in headings)
        table.add_row(cell["model"], cell["attack_label"], *shares)
    return table


def _invariance_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    title = "invariance attacks: per cent of attacked samples, with 95 % intervals"
    table = _table("model", "attack", title=title)
    headings = {
        "same_prediction": "prediction kept",
        "class_changed": "class changed",
        "success": "invariance failure",
        "oracle_undecided": "oracle undecided",
    }
    for heading in headings.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("median distance", overflow="fold")
    table.add_column("oracle", overflow="fold")
    table.add_column("oracle error", justify="right", no_wrap=True)
    table.add_column("failure, corrected", justify="right", no_wrap=True)
    for cell in cells:
        found = cell["invariance"]
        error = _format_rate(found["oracle_error_rate"]) if found["oracle_error_rate"] else ""
        shares = [_format_rate(found[name]) for name in headings]
        medians = ", ".join(
            f"{norm} {'∞' if each['median'] is None else format(each['median'], '.3g')}"
            for norm, each in found["distances"].items()
        )
        row = cell["model"], cell["attack_label"], *shares, medians, found["oracle"], error
        table.add_row(*row, _format_estimate(found["corrected_success"]))
    return table


class _PlainTable(Table):
    """A table whose texts are printed as they are: neither markup nor control characters have an effect."""

    def add_row(self, *cells: Any, **options: Any) -> None:  # noqa: ANN401 - rich's
        super().add_row(*(Text(printable(str(cell))) for cell in cells), **options)


def _table(*headings: str, title: str) -> Table:
    table = _PlainTable(box=box.SIMPLE_HEAD, title=Text(printable(title)), title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _result_row(cell: dict[str, Any], *, seeds: bool) -> tuple[str, ...]:
    passes = cell["forward_passes"] + cell["backward_passes"]
    return (
        cell["model"],
        cell["attack_label"],
        cell["norm"],
        *([str(cell["seed"])] if seeds else []),
        str(cell["samples"]),
        _format_rate(cell["clean_accuracy"]),
        "\n".join(map(format_eps, cell["epsilons"])),
        _robust_accuracies(cell),
        _format_median(cell),
        f"{passes:.0f}",
        f"{cell['attack_seconds']:.1f} s" if "attack_seconds" in cell else "",
        _count_verdicts(cell["checks"]),
    )


def _robust_accuracies(cell: Mapping[str, Any]) -> str:
    """Return the robust accuracy at each eps; of an invariance attack, what it is there."""
    mark = cell.get("mark", "") + (" without failure" if cell["invariance"] else "")
    return "\n".join(_format_rate(rate) + mark for rate in cell["robust_accuracy"])


def _report_table(report: "ReportTable") -> Table:
    table = _table(title=report.title)
    words = ("name", "note")
    for heading, cell in zip(report.columns, report.rows[0], strict=True):
        number = cell.tone not in words
        side: Literal["left", "right"] = "right" if number else "left"
        table.add_column(Text(printable(heading)), justify=side, no_wrap=number)
    for row in report.rows:
        table.add_row(*(cell.plain for cell in row))
    return table


def _claim_line(finding: "ClaimFinding") -> str:
    paper, published, adaptive = map(finding.status, finding.comparisons)
    return (
        f"{finding.text} (paper: {paper}; our run as published: {published}; adaptive: {adaptive})"
    )


def _time_lines(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the times of all attacks and of the checks, if the checks were timed."""
    if cells and (checks := cells[0].get("check_seconds")) is not None:
        attacks = sum(cell["attack_seconds"] for cell in cells)
        yield f"time: {attacks:.1f} s for the attacks, {checks:.1f} s for the checks"


def _ensemble_line(cell: Mapping[str, Any]) -> str:
    breakdown = EnsembleBreakdown(**cell["ensemble"])
    return f"{cell['attack_label']} on {cell['model']}, {cell['threat']}: {breakdown.text}"


def _certified_lines(cell: "FinishedCell") -> Iterator[str]:
    """Yield the robust accuracy at each eps as an interval, certified below and attacked above."""
    for each in sandwiches(cell):
        where = f"{cell.model_label}, {cell.attack_label}, {cell.norm} {format_eps(each.eps)}"
        yield f"{where}: robust accuracy {each.text}"


def _check_line(verdict: Mapping[str, Any]) -> str:
    return f"{verdict['verdict']} {verdict['id']} {verdict['subject']}: {verdict['evidence']}"


def _conclusion_lines(conclusion: "Conclusion") -> Iterator[str]:
    """Yield the verdict on a model, its other reasons, and the next command."""
    yield f"verdict on {conclusion.model}, {conclusion.dataset}: {conclusion.text}"
    yield from (f"  also: {reason.text}" for reason in conclusion.reasons[1:])
    yield from (f"  {number}" for number in conclusion.numbers if conclusion.reasons)
    if conclusion.command:
        yield f"  next: {conclusion.command}"


def _format_median(cell: Mapping[str, Any]) -> str:
    """Return the median distance over the attacked samples: ∞ if half of them are robust, nothing if none was sought."""
    if cell["median_distance"] is not None:
        return f"{cell['median_distance']:.3g}"
    sought = cell["kind"] == "minimum-norm" and cell["attack_success_rate"]["trials"]
    return "∞" if sought else ""


def _format_estimate(rate: dict[str, float | None] | None) -> str:
    """Return a corrected rate in per cent with its interval, without an estimate the interval alone; empty for None."""
    if rate is None:
        return ""
    given = (rate["value"], rate["low"], rate["high"])
    value, low, high = ("" if each is None else f"{100 * each:.1f}" for each in given)
    return f"{value} [{low}, {high}]".strip()


def _format_rate(rate: dict[str, float]) -> str:
    if not rate["trials"]:
        return "none"
    share = rate["successes"] / rate["trials"]
    return f"{100 * share:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _count_verdicts(verdicts: Sequence[dict[str, Any]]) -> str:
    grades = Counter(verdict["verdict"] for verdict in verdicts)
    return "\n".join(f"{grades[g]} {g}" for g in ("FAIL", "WARN", "NOTE", "PASS") if grades[g])


def _warnings_and_failures(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {
        (verdict["id"], verdict["subject"], verdict["evidence"]): verdict
        for cell in cells
        for verdict in cell["checks"]
        if verdict["verdict"] in ("WARN", "FAIL")
    }
    return [found[key] for key in sorted(found)]
