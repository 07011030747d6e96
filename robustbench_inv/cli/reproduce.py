"""``invbench reproduce``: runs what a paper's table or figure needs, and sets our numbers beside the published."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_inv.cli.list import list_catalogue
from robustbench_inv.cli.measurements import show_measured
from robustbench_inv.cli.options import (
    BatchSize,
    Checks,
    DataRoot,
    Device,
    DryRun,
    Existing,
    ExistingOption,
    Json,
    Samples,
    Seed,
    What,
    Workers,
    number_of,
    option,
)
from robustbench_inv.cli.output import complain, print_json, say

if TYPE_CHECKING:
    from robustbench_inv.catalogue.reproduction import Reproduction
    from robustbench_inv.evaluation.plan import Plan
    from robustbench_inv.evaluation.run import Run
    from robustbench_inv.reporting.reproduction.report import Asked

__all__ = ["reproduce"]


def reproduce(  # noqa: PLR0913, PLR0917 - one parameter is one option
    name: Annotated[
        str | None, typer.Argument(help="PAPER/ITEM, or a TOML file.", show_default="list them")
    ] = None,
    only: Annotated[
        str | None, option(help="A pattern of rows, as 'PGD w*'.", show_default="all")
    ] = None,
    dataset: Annotated[
        str | None,
        option(help="What stands in for the paper's data.", show_default="the paper's"),
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    runs: Annotated[
        list[Path] | None,
        option("--from", help="Run nothing, draw from these results; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, option(help="Folder of the results.", show_default="runs/PAPER-ITEM")
    ] = None,
    report: Annotated[
        Path | None, option(help="The HTML file to write.", show_default="ITEM.html in the folder")
    ] = None,
    existing: ExistingOption = Existing.resume,
    dry_run: DryRun = False,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    workers: Workers = "1",
    data_root: DataRoot = None,
    checks: Checks = True,
    json: Json = False,
) -> None:
    """Reproduce a table or figure of a paper: published numbers, ours as published, ours adaptive.

    Without a name, list what there is. What was evaluated is not evaluated again. Exit code 1 if a cell failed.
    """
    if name is None:
        return list_catalogue(What.reproductions, json=json)
    item, asked = _item(name, only), {"dataset": dataset, "samples": samples, "seed": seed}
    page = report or (out or (runs or [_folder(item)])[0]) / f"{item.name.rpartition('/')[2]}.html"
    if item.measurement:
        more = {"device": device, "data_root": data_root, "dry_run": dry_run}
        folder = out or _folder(item)
        return show_measured(item, page, runs or (), folder, {**asked, **more}, json=json)
    if runs:
        return _tell(item, runs, page, json, dataset=dataset)
    plan = _plan(item, {**asked, "device": device, "data_root": data_root})
    if dry_run:
        return _print_plan(plan, json)
    folder, settings = out or _folder(item), (batch_size, device, False, existing.value)
    run = _run(plan, folder, settings, number_of(workers), checks=checks)
    samples_of = {job.spec.digest: job.samples for job in plan.jobs}
    _tell(item, [folder], page, json, dataset=dataset, asked=samples_of)
    for failure in run.failures:
        say(f"failed: {failure}")
    raise typer.Exit(1 if run.failures else 0)


def _item(name: str, only: str | None) -> "Reproduction":
    from robustbench_inv.catalogue.reproduction_file import load_reproduction

    item = load_reproduction(name)
    return item.only(only) if only else item


def _folder(item: "Reproduction") -> Path:
    return Path("runs") / item.name.replace("/", "-")


def _plan(item: "Reproduction", question: dict[str, Any]) -> "Plan":
    from robustbench_inv.evaluation.reproduce import plan_reproduction
    from robustbench_inv.evaluation.sources import Question

    root, samples = question["data_root"], question["samples"]
    question |= {"data_root": root and str(root), "samples": samples and number_of(samples)}
    return plan_reproduction(item, Question((), **question), ["invbench", *sys.argv[1:]])


def _print_plan(plan: "Plan", json: bool) -> None:
    from robustbench_inv.cli.summary import print_plan

    complain(plan.warnings)
    print_plan(plan, json)


def _run(
    plan: "Plan", folder: Path, settings: tuple[Any, ...], workers: int | str, *, checks: bool
) -> "Run":
    from robustbench_inv.cli.progress import reporting
    from robustbench_inv.evaluation.engine import Settings
    from robustbench_inv.evaluation.run import check_run, run_plan

    chosen = Settings(*settings)
    with reporting() as progress:
        run = run_plan(plan, folder, chosen, progress, workers)
    if checks:
        check_run(run, chosen.device)
    complain(run.notes)
    return run


def _tell(
    item: "Reproduction",
    runs: Sequence[Path],
    page: Path,
    json: bool,
    *,
    dataset: str | None,
    asked: "Asked | None" = None,
) -> None:
    """Write the report and print what it says."""
    from robustbench_inv.cli.summary import print_reproduction
    from robustbench_inv.reporting.reproduction.report import reproduce

    found = reproduce(item, runs, dataset=dataset, asked=asked)
    found.write(page)
    if json:
        return print_json({**found.to_json(), "report": str(page)})
    print_reproduction(found)
    return typer.echo(page)
